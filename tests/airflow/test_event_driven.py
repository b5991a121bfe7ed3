"""The event-driven DAG under a real `airflow standalone`: a sweep on S3 is killed while it is watched."""

import json
import shutil
import subprocess
import time
from datetime import datetime

import pytest

from airflow_tune_restore.triggers.failed_tune_experiment import SETTLED_SECONDS
from tests.support import ROOT
from tests.support.airflow.standalone import airflow
from tests.support.experiments.sweeps import kill, start_sweep
from tests.support.storage.servers import s3_server

PREFIX = "experiments/sweeps"
STALE_AFTER, POLL = 40.0, 15.0


@pytest.fixture
def s3():
    """A real S3 server whose credentials are known to the sweeps and to the connection `seaweed`."""
    with s3_server() as server:
        yield server


@pytest.fixture
def store(s3):
    """What is in its bucket."""
    return s3.filesystem()


@pytest.fixture
def running(s3, tmp_path):
    dags = tmp_path / "dags"
    dags.mkdir()
    for name in ("event_driven_recovery.py", "example_sweep.py"):
        shutil.copy(ROOT / "dags" / name, dags)
    with airflow(
        tmp_path / "airflow",
        dags,
        PYTHONPATH=str(ROOT),
        RAY_AUTH_MODE="disabled",
        TUNE_GLOBAL_CHECKPOINT_S="1",
        AIRFLOW_CONN_SEAWEED=s3.airflow_connection,
        TUNE_RESTORE_PREFIX=f"s3://seaweed@{PREFIX}",
        TUNE_RESTORE_STALE_AFTER=str(STALE_AFTER),
        TUNE_RESTORE_POLL=str(POLL),
        # a dead triggerer's triggers are given to another one sooner than after 30 s
        AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD="6",
    ) as started:
        yield started


@pytest.fixture
def sweeps(s3, store):
    """Starts sweeps, whose first trials have then reported or only begun."""
    started = []

    def start(name: str, seconds: float, *, reported: bool) -> "subprocess.Popen[bytes]":
        driver = start_sweep(
            f"s3://{PREFIX}",
            name,
            seconds=seconds,
            until=lambda: any(i or not reported for _, i in iterations(store, name)),
            **s3.env,
        )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        kill(driver)


def test_a_sweep_killed_while_it_is_watched_is_recovered_once_and_a_live_one_is_let_alone(
    running, store, sweeps
):
    dag_id = "event_driven_recovery"
    running.unpause(dag_id)
    alive = sweeps("alive", seconds=600.0, reported=False)
    kill(sweeps("dying", seconds=2.0, reported=True))
    running.kill_triggerer()
    files = store.find(f"{PREFIX}/dying", detail=True).values()
    died_at = max(file["LastModified"].timestamp() for file in files)
    running.start_triggerer()

    # Airflow 3.3.2 answers 500 when asked for events whose DAG run has not begun
    running.eventually(lambda: [run for run in running.runs(dag_id) if run["start_date"]])
    (event,) = asset_events(running)
    late = datetime.fromisoformat(event["timestamp"]).timestamp() - died_at - STALE_AFTER
    assert 0 <= late <= 2 * POLL
    assert event["extra"]["payload"]["experiments"] == [f"s3://seaweed@{PREFIX}/dying"]

    time.sleep(SETTLED_SECONDS + 5)  # it remembers now what it has reported
    running.kill_triggerer()
    running.start_triggerer()
    (run,) = running.runs(dag_id)
    assert running.finish(dag_id, run["dag_run_id"]) == "success", running.log_tail()
    assert iterations(store, "dying") == [("TERMINATED", 6)] * 4
    assert len(store.glob(f"{PREFIX}/dying/experiment_state-*_r*.json")) == 1

    time.sleep(3 * POLL)
    assert len(running.runs(dag_id)) == 1
    assert [e["extra"] for e in asset_events(running)] == [event["extra"]]
    assert alive.poll() is None
    assert not store.exists(f"{PREFIX}/alive/.tune_restore")
    log = running.task_log(dag_id, run["dag_run_id"], "restore.find")
    assert "newest write to its root" in log


def asset_events(running) -> list[dict]:
    return running.call("GET", "/api/v2/assets/events?limit=100")["asset_events"]


def iterations(store, name: str) -> list[tuple[str, int]]:
    states = store.glob(f"{PREFIX}/{name}/experiment_state-*.json")
    if not states:
        return []
    rows = json.loads(store.cat_file(max(states)))["trial_data"]
    return sorted(
        (json.loads(t)["status"], json.loads(run)["last_result"].get("training_iteration", 0))
        for t, run in rows
    )
