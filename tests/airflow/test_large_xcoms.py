"""A DAG run whose XComs would be too large, by `dag.test()`: a limit that is low makes a few many."""

import json

import pytest

from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.operators import attempt_task, trainable_check
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.context import FakeLauncher
from tests.support.airflow.dag_test import register, run
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import ending

LIMIT = 700
NAMES = [f"sweep_{number}" for number in range(4)]

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def sweeps(tmp_path):
    """Four sweeps of two trials that failed; the first one has a sample left."""
    for name in NAMES:
        rows = [make_row(f"{name}_{trial}", status="ERROR") for trial in "ab"]
        make_experiment(tmp_path / name, rows, total_samples=3 if name == NAMES[0] else None)
    return tmp_path


@pytest.fixture
def launcher(monkeypatch):
    """Starts nothing, and each trial has finished at once."""

    def finish(request):
        ending(open_store(request.experiment), "finished", iteration=3)(request)

    fake = FakeLauncher(on_start=finish)
    for module in (attempt_task, trainable_check):
        monkeypatch.setattr(module, "build_launcher", fake.build)
    return fake


def test_no_xcom_is_too_large_and_every_trial_is_restored(sweeps, launcher, monkeypatch, capfd):
    from airflow.sdk import DAG

    from airflow_tune_restore.task_group import TuneRestoreTaskGroup

    with DAG("large_xcoms", schedule=None) as dag:
        TuneRestoreTaskGroup(
            "restore",
            prefix=str(sweeps),
            trainable="m:train",
            resume_errored=True,
            stale_after=0,
            wait=False,
            retries=0,
            trial_args={"do_xcom_push": True},
        )
    register(dag)
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", LIMIT)
    done = run(dag, capfd)
    assert done.states["restore.trial"] == ["success"] * 8
    assert done.states["restore.commit"] == ["success"]
    sizes = {
        key: max(len(json.dumps(value)) for value in values) for key, values in done.xcoms.items()
    }
    assert {key: size for key, size in sizes.items() if size >= LIMIT} == {}
    (found,), (outcomes,) = (
        done.xcoms["restore.find", "return_value"],
        done.xcoms["restore.plan", "outcomes"],
    )
    assert "packed" in found
    assert "packed" in outcomes
    (references,) = done.xcoms["restore.plan", "return_value"]
    assert references[0].startswith("0:sweep_")
    trials = done.xcoms["restore.trial", "return_value"]
    assert {(each["experiment"], each["trial_id"]) for each in trials} == {
        (str(sweeps / name), f"{name}_{trial}") for name in NAMES for trial in "ab"
    }
    assert sorted(done.labels["restore.trial"]) == [
        f"{name} {name}_{trial}" for name in NAMES for trial in "ab"
    ]
    (committed,) = done.xcoms["restore.commit", "return_value"]
    assert committed[0]["experiment"] == str(sweeps / NAMES[0])
    assert committed[0]["samples_left"] == 1
    assert done.states["restore.continue_search"][0] == "success"
    assert done.states["restore.done"] == ["success"]
    assert "The XCom of this task has no room for details." in done.log
