"""One Airflow for all tests that need a real one, and what it recovers sweeps with.

Servers are started by the first test that asks for them, and Airflow is told through connections. They
end with the last test here: an idle Airflow takes a tenth of the processor from the tests that follow.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.airflow import home as airflow_home  # noqa: F401  before any test imports Airflow
from tests.support.airflow.by_hand import ByHand, restored_by_hand
from tests.support.airflow.canary import Canaries
from tests.support.airflow.names import RELEASE
from tests.support.airflow.site import PAGE
from tests.support.airflow.standalone import Airflow, airflow
from tests.support.experiments.sweeps import Gates, copy_dag, copy_dags, copy_trainables
from tests.support.storage.servers import Server, s3_server

OWN = ROOT / "tests" / "airflow" / "dags"
TEAMS = OWN / "nightly_of_teams.py"
TEMPLATE = ROOT / "docs" / "kubernetes" / "pod-template.yaml"


def allow_recipes(dag: Path) -> None:
    """Let a copied DAG restore sweeps by recipes of their own."""
    code = dag.read_text()
    line = '        trainable="{{ params.trainable }}",\n'
    assert code.count(line) == 1
    dag.write_text(code.replace(line, f"{line}        recipes=True,\n"))


@pytest.fixture(scope="session")
def database() -> None:
    """The database of this process's own Airflow, for `dag.test()`."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture(scope="session")
def canaries() -> Canaries:
    """Credentials that nothing may leave anywhere."""
    return Canaries()


@pytest.fixture(scope="session")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    """Hold up trials of the copied DAGs."""
    return Gates(tmp_path_factory.mktemp("gates"))


@pytest.fixture(scope="session")
def dags(gates: Gates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example DAGs; the one that is woken by events watches a prefix on S3, another uses pods."""
    directory = copy_dags(tmp_path_factory.mktemp("dags"), gates)
    copy_dag(
        directory,
        "event_driven_recovery",
        "event_driven_recovery",
        TUNE_RESTORE_PREFIX="s3://seaweed@experiments/watched",
        TUNE_RESTORE_STALE_AFTER="20",
        TUNE_RESTORE_POLL="5",
    )
    copy_dag(
        directory,
        "nightly_recovery",
        "nightly_in_pods",
        TUNE_RESTORE_LAUNCHER="kubernetes",
        TUNE_RESTORE_POD_TEMPLATE=str(TEMPLATE),
    )
    allow_recipes(directory / "nightly_in_pods.py")
    code = copy_trainables(tmp_path_factory.mktemp("code"))
    (directory / TEAMS.name).write_text(
        TEAMS.read_text().replace("the code of all teams", str(code))
    )
    places = {"where the gates are": str(gates.directory), "the pod template": str(TEMPLATE)}
    for name in ("dying_sweep.py", "sweeps_that_die.py"):
        text = (OWN / name).read_text()
        for words, place in places.items():
            text = text.replace(words, place)
        (directory / name).write_text(text)
    return directory


@pytest.fixture(scope="session")
def ray_sessions() -> Iterator[Path]:
    """Where the private Rays of Airflow's workers keep their sessions: a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="package")
def running(
    dags: Path, canaries: Canaries, ray_sessions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Airflow]:
    """A real `airflow standalone`. It has no keys of a store but in its connections."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            starting = airflow(
                tmp_path_factory.mktemp("airflow"),
                dags,
                PYTHONPATH=str(ROOT),
                RAY_AUTH_MODE="disabled",
                RAY_TMPDIR=str(ray_sessions),
                TUNE_GLOBAL_CHECKPOINT_S="1",
                AIRFLOW__TUNE_RESTORE__PREFIXES=f'{{"sweeps": "s3://seaweed@experiments/{PAGE}"}}',
                **canaries.env,
            )
            started = stack.enter_context(starting)
        yield started


@pytest.fixture(scope="package")
def s3(canaries: Canaries) -> Iterator[Server]:
    """A real S3 server, whose key is in nobody's environment."""
    with s3_server(secret=canaries.key) as server:
        yield server


@pytest.fixture(scope="package")
def seaweed(running: Airflow, s3: Server, canaries: Canaries) -> Server:
    """The same, and Airflow has a connection `seaweed` to it."""
    connection = json.loads(s3.airflow_connection)
    # before 3.3, Airflow's own audit log hides an extra only if its name looks secret
    name = "note" if RELEASE >= (3, 3) else "secret_note"
    connection["extra"][name] = canaries.extra
    running.connect("seaweed", connection)
    return s3


@pytest.fixture(scope="package")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    """The killed sweep as `Tuner.restore` brings it back, while we do."""
    with restored_by_hand(tmp_path_factory.mktemp("theirs")) as restoring:
        yield restoring
