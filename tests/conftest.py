"""What is made once a session: servers, failed experiments, hypothesis profiles."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from tests.made_once import MadeOnce
from tests.support.experiments.failed import make_experiments, make_killed_experiment
from tests.support.storage import servers

pytest.register_assert_rewrite("tests.support.storage.conformance")  # a suite in a plain module

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # private Rays on this machine only
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

settings.register_profile("ci", deadline=None, print_blob=True)
settings.register_profile("nightly", settings.get_profile("ci"))  # see tests/conformance
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def s3() -> Iterator[servers.Server]:
    """A real S3 server (SeaweedFS), its credentials in the environment."""
    yield from _served(servers.s3_server())


@pytest.fixture(scope="session")
def gcs() -> Iterator[servers.Server]:
    """A Google Cloud Storage emulator."""
    yield from _served(servers.gcs_server())


@pytest.fixture(scope="session")
def azure() -> Iterator[servers.Server]:
    """An Azure Blob Storage emulator; needs npm."""
    try:
        yield from _served(servers.azure_server())
    except FileNotFoundError:
        pytest.skip("Azurite comes from npm: install Node.js and run the tests again")


TOGETHER = (
    (
        "errored",
        "sparse",
        "retries",
        "extras",
        "kept",
        "class",
        "registered",
        "with_parameters",
        "with_resources",
        "trainer",
    ),
    ("asha", "pbt", "limited"),
    ("hyperband", "hopeless", "median"),
)
"""Made in one Ray each."""

KILLED = (("killed",), ("left",), ("optuna",), ("hyperopt",))


@pytest.fixture(scope="session")
def failed_experiments(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One directory a kind, made when it is first asked for; never write to them."""
    if keep := os.environ.get("TUNE_TEST_EXPERIMENTS"):  # made before, to save a minute
        return {path.name: path for path in Path(keep).iterdir()}
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    return MadeOnce(root / "failed", (*TOGETHER, *KILLED), _make_batch)


def _make_batch(directory: Path, batch: tuple[str, ...]) -> None:
    if batch in KILLED:
        make_killed_experiment(directory, *batch)
    else:
        make_experiments(directory, batch)


def _served(starting) -> Iterator[servers.Server]:
    with starting as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server
