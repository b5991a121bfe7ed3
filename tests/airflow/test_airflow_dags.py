"""The example DAGs and small ones, run by `dag.test()` with real Ray, on local disk and on real S3."""

import json
import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # imported before any of Airflow
from tests.support.experiments.sweeps import fail_sweep, killed_sweep


@pytest.fixture(scope="session", autouse=True)
def database():
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture(scope="module")
def failed_sweep(tmp_path_factory) -> Path:
    prefix = tmp_path_factory.mktemp("made")
    fail_sweep(prefix, "sweep")
    return prefix / "sweep"


@pytest.fixture
def errored(failed_sweep, tmp_path) -> Path:
    """A copy of a failed sweep: a moved experiment is restored where it is."""
    return Path(shutil.copytree(failed_sweep, tmp_path / "tune" / "errored"))


class Run:
    """A DAG run that `dag.test()` has carried out."""

    def __init__(self, dag_run, log: str) -> None:
        self.state = str(dag_run.state)
        tasks = dag_run.get_task_instances()
        self.states = {}
        for ti in sorted(tasks, key=lambda ti: ti.map_index):
            self.states.setdefault(ti.task_id, []).append(str(ti.state))
        self.labels = sorted(
            ti.rendered_map_index
            for ti in tasks
            if ti.map_index >= 0 and ti.task_id.endswith("trial") and ti.rendered_map_index
        )
        self.log = log


def run_example(dag_id: str, capfd, **conf) -> Run:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(airflow_home.DAGS / f"{dag_id}.py")
    assert not bag.import_errors
    return run(bag.dags[dag_id], capfd, **conf)


def run(dag, capfd, **conf) -> Run:
    capfd.readouterr()
    dag_run = dag.test(run_conf=conf)
    return Run(dag_run, capfd.readouterr().out)


def register(dag) -> None:
    """Make a DAG of a test known: in Airflow 3.3 `dag.test()` wants it in a bundle."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.models.dag import DagModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    with create_session() as session:
        DagBundlesManager().sync_bundles_to_db(session=session)
        session.flush()
        session.add(DagModel(dag_id=dag.dag_id, bundle_name="dags-folder", fileloc=__file__))
        session.flush()
        SerializedDagModel.write_dag(
            LazyDeserializedDAG.from_dag(dag), bundle_name="dags-folder", session=session
        )


def statuses(experiment: Path) -> list[str]:
    newest = max(experiment.glob("experiment_state-*.json"))
    return sorted(json.loads(t)["status"] for t, _ in json.loads(newest.read_text())["trial_data"])


def test_nightly_recovery_brings_back_an_errored_and_a_killed_sweep(errored, capfd):
    prefix = errored.parent
    killed = killed_sweep(prefix, "killed", reported=2)
    done = run_example("nightly_recovery", capfd, prefix=str(prefix), stale_after=0)
    assert done.state == "success"
    assert done.states["restore.trial"] == ["success"] * 5
    assert [label.split()[0] for label in done.labels] == ["errored"] + ["killed"] * 4
    assert "2 experiments; 1 errored, 1 interrupted" in done.log
    assert "iteration 6, score=" in done.log
    assert statuses(errored) == statuses(killed) == ["TERMINATED"] * 4
    table = done.log[done.log.rindex("what happened") :]
    assert table.count(": resumed from checkpoint_") >= 1


def test_nightly_recovery_without_anything_to_do_succeeds_and_says_so(tmp_path, capfd):
    done = run_example("nightly_recovery", capfd, prefix=str(tmp_path))
    assert done.state == "success"
    assert done.states == {
        "restore.find": ["skipped"],
        "restore.plan": ["skipped"],
        "restore.trial": ["skipped"],
        "restore.commit": ["skipped"],
        "restore.samples": ["skipped"],
        "restore.done": ["success"],
    }
    assert f"Nothing to restore under {tmp_path}" in done.log
    assert "Nothing to commit: no restore was started." in done.log


def test_the_prefix_may_come_from_a_variable(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("AIRFLOW_VAR_TUNE_RESTORE_PREFIX", str(tmp_path))
    done = run_example("nightly_recovery", capfd)
    assert done.state == "success"
    assert f"Nothing to restore under {tmp_path}" in done.log


def test_without_any_prefix_the_first_task_says_what_is_missing(capfd):
    done = run_example("nightly_recovery", capfd)
    assert done.state == "failed"
    assert "An experiment address must be a path or a URL, not ''." in done.log


def test_a_sweep_that_fails_is_recovered_in_the_same_run(tmp_path, capfd):
    done = run_example("sweep_with_recovery", capfd, storage_path=str(tmp_path))
    assert done.state == "success"
    assert done.states["sweep"] == ["failed"]
    assert done.states["recovery.trial"] == ["success"]
    (experiment,) = tmp_path.iterdir()
    assert statuses(experiment) == ["TERMINATED"] * 4


def test_a_trial_that_fails_again_is_committed_and_fails_the_run(errored, capfd):
    from airflow.sdk import DAG

    from airflow_tune_restore.task_group import TuneRestoreTaskGroup

    with DAG("fails_again", schedule=None) as dag:
        TuneRestoreTaskGroup(
            experiments=str(errored),
            trainable="example_sweep:train",
            resume_errored=True,
            trial_args={"retries": 5, "retry_delay": timedelta(0)},
        )
    register(dag)
    done = run(dag, capfd)
    assert done.state == "failed"
    assert "attempt 1 of restore" in done.log
    assert "out_of_memory: tried again in 0:01:00" in done.log
    assert "attempt 2 of restore" in done.log
    # it ends where the first one did: the retry policy spends no more of the five
    assert "attempt 3 of restore" not in done.log
    assert "It failed at the same place and iteration before (dags/example_sweep.py:" in done.log
    assert done.states["restore.trial"] == ["failed"]
    assert done.states["restore.commit"] == ["success"]
    assert done.states["restore.done"] == ["upstream_failed"]
    assert "needs more memory than this node has" in done.log
    assert "failed again (out_of_memory): MemoryError: " in done.log
    assert "0 of 1 resumed trials finished, 1 did not" in done.log
    assert "1 quarantined (" in done.log
    assert statuses(errored) == ["ERROR"] + ["TERMINATED"] * 3
    # the next night leaves it alone, and says why
    done = run(dag, capfd)
    assert done.state == "success"
    assert done.states["restore.trial"] == ["skipped"]
    assert "lets one run again" in done.log


def test_a_trial_that_hangs_is_stopped_by_its_timeout_and_goes_on_the_next_night(
    copied, capfd, monkeypatch
):
    from airflow.sdk import DAG

    from airflow_tune_restore.task_group import TuneRestoreTaskGroup

    experiment = copied("killed")
    with DAG("times_out", schedule=None) as dag:
        TuneRestoreTaskGroup(
            experiments=str(experiment),
            trainable="tests.trainables:counting",
            stale_after=0,
            trial_args={"retries": 0, "execution_timeout": timedelta(seconds=90)},
        )
    register(dag)
    monkeypatch.syspath_prepend(airflow_home.ROOT)
    first = run(dag, capfd)
    assert sorted(first.states["restore.trial"]) == ["failed", "success"]
    assert first.states["restore.commit"] == ["success"]
    assert "Stopping the runner; it saves a snapshot first." in first.log
    assert statuses(experiment)[1:] == ["TERMINATED"] * 2
    monkeypatch.setenv("TUNE_TEST_HEALED", "1")
    second = run(dag, capfd)
    assert second.state == "success"
    assert second.states["restore.trial"] == ["success"]
    assert "iteration 3, " in second.log
    assert "iteration 2, " not in second.log
    assert statuses(experiment) == ["TERMINATED"] * 3


def test_of_two_runs_on_one_experiment_the_second_names_the_first(errored, capfd):
    from airflow.sdk import DAG

    from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator

    with DAG("plans_only", schedule=None) as dag:
        BuildRestorePlanOperator(
            task_id="plan", experiments=str(errored), resume_errored=True, retries=0
        )
    register(dag)
    first, second = run(dag, capfd), run(dag, capfd)
    assert (first.state, second.state) == ("success", "failed")
    assert "errored is being restored by DAG plans_only, run manual__" in second.log


def test_a_connection_opens_s3_and_its_secret_is_seen_nowhere(s3, capfd, monkeypatch):
    fail_sweep(f"{s3.url}/nightly", "sweep")
    secret = s3.env["AWS_SECRET_ACCESS_KEY"]
    for name in s3.env:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", s3.airflow_connection)
    prefix = f"s3://seaweed@{s3.bucket}/nightly"
    done = run_example("nightly_recovery", capfd, prefix=prefix)
    assert done.state == "success"
    assert done.states["restore.trial"] == ["success"]
    assert "1 of 1 resumed trials finished" in done.log
    assert f"s3://seaweed@{s3.bucket}/nightly/sweep: restore " in done.log
    assert secret not in done.log
    assert secret not in _all_text_in(airflow_home.HOME / "airflow.db")
    assert secret.encode() not in _all_objects(s3, f"{s3.bucket}/nightly")


def _all_text_in(database: Path) -> str:
    """Return every value of every table: XComs, rendered fields, serialized DAGs."""
    with sqlite3.connect(database) as connection:
        tables = [
            name
            for (name,) in connection.execute("select name from sqlite_master where type='table'")
        ]
        return "\n".join(
            str(row) for table in tables for row in connection.execute(f'select * from "{table}"')
        )


def _all_objects(server, prefix: str) -> bytes:
    store = server.filesystem()
    # zero-byte directory markers are listed and cannot be read
    found = store.cat(prefix, recursive=True, on_error="omit")
    assert any(path.endswith("/plan.json") for path in found)
    return b"\n".join(found.values())
