"""The event-driven DAG under a real `airflow standalone`: a sweep is killed while it is watched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from airflow_tune_restore.triggers.failed_tune_experiment import SETTLED_SECONDS
from tests.standalone import ROOT, airflow

SWEEP = ROOT / "dags" / "example_sweep.py"
STALE_AFTER, POLL = 40.0, 8.0


@pytest.fixture
def prefix(tmp_path):
    made = tmp_path / "sweeps"
    made.mkdir()
    return made


@pytest.fixture
def running(prefix, tmp_path):
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
        TUNE_RESTORE_PREFIX=str(prefix),
        TUNE_RESTORE_STALE_AFTER=str(STALE_AFTER),
        TUNE_RESTORE_POLL=str(POLL),
        # a dead triggerer's triggers are given to another one sooner than after 30 s
        AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD="6",
    ) as started:
        yield started


@pytest.fixture
def sweeps(prefix):
    """Starts sweeps, each in a process group of its own."""
    started = []

    def start(name: str, seconds: float) -> "subprocess.Popen[bytes]":
        driver = subprocess.Popen(
            [
                *(sys.executable, SWEEP, "--storage-path", prefix, "--name", name),
                *("--seconds", str(seconds)),
            ],
            env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(driver)
        eventually(lambda: any(i for _, i in iterations(prefix / name)))
        return driver

    yield start
    for driver in started:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def test_a_sweep_killed_while_it_is_watched_is_recovered_once_and_a_live_one_is_let_alone(
    running, prefix, sweeps
):
    dag_id = "event_driven_recovery"
    running.unpause(dag_id)
    alive = sweeps("alive", seconds=60.0)
    dying = sweeps("dying", seconds=2.0)
    os.killpg(dying.pid, signal.SIGKILL)
    running.kill_triggerer()
    died_at = max(path.stat().st_mtime for path in (prefix / "dying").rglob("*") if path.is_file())
    running.start_triggerer()

    eventually(lambda: running.runs(dag_id), what=running.log_tail)
    (event,) = asset_events(running)
    late = datetime.fromisoformat(event["timestamp"]).timestamp() - died_at - STALE_AFTER
    assert 0 <= late <= 2 * POLL
    assert event["extra"]["payload"]["experiments"] == [str(prefix / "dying")]

    time.sleep(SETTLED_SECONDS + 5)  # it remembers now what it has reported
    running.kill_triggerer()
    running.start_triggerer()
    (run,) = running.runs(dag_id)
    assert running.finish(dag_id, run["dag_run_id"]) == "success", running.log_tail()
    assert iterations(prefix / "dying") == [("TERMINATED", 6)] * 4
    assert commits(prefix / "dying") == 1

    time.sleep(3 * POLL)
    assert [e["extra"] for e in asset_events(running)] == [event["extra"]]
    assert len(running.runs(dag_id)) == 1
    assert alive.poll() is None
    assert not (prefix / "alive" / ".tune_restore").exists()
    log = running.task_log(dag_id, run["dag_run_id"], "restore.find")
    assert "newest write to its root" in log


def eventually(condition, *, seconds: float = 240, what=lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


def asset_events(running) -> list[dict]:
    return running.call("GET", "/api/v2/assets/events?limit=100")["asset_events"]


def commits(experiment: Path) -> int:
    return len(list(experiment.glob("experiment_state-*_r*.json")))


def iterations(experiment: Path) -> list[tuple[str, int]]:
    try:
        newest = max(experiment.glob("experiment_state-*.json"))
        rows = json.loads(newest.read_text())["trial_data"]
    except ValueError:  # none yet, or half of one
        return []
    return sorted(
        (json.loads(t)["status"], json.loads(run)["last_result"].get("training_iteration", 0))
        for t, run in rows
    )
