"""The whole way under a real `airflow standalone`, with real Ray, on local disk and real S3.

One Airflow for all tests here. Experiments really failed before; what comes back is read from storage.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from airflow_tune_restore.runner.ray_session import STARTS
from tests.support import ROOT
from tests.support.airflow.standalone import airflow
from tests.support.experiments.sweeps import copy_dags, fail_sweep, killed_sweep
from tests.support.storage.servers import s3_server

MORE_DAGS = """
from datetime import timedelta

from airflow.sdk import DAG
from airflow_tune_restore.task_group import TuneRestoreTaskGroup

with DAG("waits", schedule=None):
    TuneRestoreTaskGroup(
        prefix="{{ dag_run.conf['prefix'] }}",
        trainable="example_sweep:train",
        resume_errored=True,
        deferrable=True,
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
        find_args={"poke_interval": 2, "timeout": 600},
        trial_args={"retries": 0},
    )

with DAG("survives", schedule=None):
    TuneRestoreTaskGroup(
        experiments="{{ dag_run.conf['experiment'] }}",
        trainable="example_sweep:train",
        stale_after=0,
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
        trial_args={"retries": 1, "retry_delay": timedelta(seconds=1)},
    )

with DAG("together", schedule=None):
    TuneRestoreTaskGroup(
        experiments="{{ dag_run.conf['experiment'] }}",
        trainable="example_sweep:train",
        stale_after=0,
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
        plan_args={"strategy": "whole_experiment"},
        trial_args={"max_active_tis_per_dagrun": 2},  # the first two: one of them starts the run
    )
"""


@pytest.fixture(scope="module")
def s3():
    """A real S3 server whose credentials are known to the connection `seaweed` alone."""
    with s3_server() as server:
        yield server


@pytest.fixture
def closed_gate(gate):
    """The gate is open but for tests that ask for this."""
    gate.close()
    yield gate
    gate.open()


@pytest.fixture(scope="module")
def running(s3, gate, tmp_path_factory):
    gate.open()
    dags = copy_dags(tmp_path_factory.mktemp("dags"), gate)
    (dags / "more_dags.py").write_text(MORE_DAGS)
    with airflow(
        tmp_path_factory.mktemp("airflow"),
        dags,
        PYTHONPATH=str(ROOT),
        AIRFLOW_CONN_SEAWEED=s3.airflow_connection,
        RAY_AUTH_MODE="disabled",
        TUNE_GLOBAL_CHECKPOINT_S="1",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def failed_sweep(tmp_path_factory) -> Path:
    """A sweep of four trials of which one raised."""
    storage_path = tmp_path_factory.mktemp("sweeps")
    fail_sweep(storage_path, "sweep")
    return storage_path / "sweep"


def iterations(experiment: Path) -> list[tuple[str, int]]:
    newest = max(experiment.glob("experiment_state-*.json"))
    return sorted(
        (json.loads(t)["status"], json.loads(run)["last_result"].get("training_iteration", 0))
        for t, run in json.loads(newest.read_text())["trial_data"]
    )


def states(tasks) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(task["task_id"], []).append(task["state"])
    return found


def test_nightly_recovery_finds_resumes_and_commits(running, failed_sweep, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(failed_sweep, tmp_path / name)
    run_id = running.trigger("nightly_recovery", {"prefix": str(tmp_path)})
    assert running.finish("nightly_recovery", run_id) == "success", running.log_tail()
    tasks = running.tasks("nightly_recovery", run_id)
    assert states(tasks) == {
        "restore.find": ["success"],
        "restore.plan": ["success"],
        "restore.trial": ["success", "success"],
        "restore.commit": ["success"],
        "restore.samples": ["skipped", "skipped"],
        "restore.done": ["success"],
    }
    labels = {
        task["rendered_map_index"].split()[0]
        for task in tasks
        if task["task_id"] == "restore.trial"
    }
    assert labels == {"first", "second"}
    log = running.task_log("nightly_recovery", run_id, "restore.find")
    assert "2 experiments; 2 errored" in log
    log = running.task_log("nightly_recovery", run_id, "restore.trial", 0)
    assert "iteration 4, score=0.9375" in log
    assert "iteration 6, score=" in log
    log = running.task_log("nightly_recovery", run_id, "restore.commit")
    last = [line for line in log.splitlines() if line.startswith(" ")][-4:]
    assert all("TERMINATED" in line for line in last)
    assert sum("3 → 6" in line for line in last) == 1
    for name in ("first", "second"):
        assert iterations(tmp_path / name) == [("TERMINATED", 6)] * 4


def test_a_sweep_that_fails_in_its_task_reports_itself_and_just_it_is_recovered(
    running, failed_sweep, tmp_path
):
    shutil.copytree(failed_sweep, tmp_path / "another")
    running.unpause("recover_experiment")
    for _ in range(STARTS):  # a Ray that did not start in time leaves no experiment
        run_id = running.trigger("sweep_that_reports", {"storage_path": str(tmp_path)})
        assert running.finish("sweep_that_reports", run_id) == "failed", running.log_tail()
        if made := list(tmp_path.glob("sweep_*")):
            break
    (experiment,) = made
    conf = {"stale_after": 0, "experiment": str(experiment)}
    (run,) = running.eventually(
        lambda: [run for run in running.runs("recover_experiment") if run["conf"] == conf],
        seconds=180,
    )
    assert len(running.runs("recover_experiment")) == len(running.runs("sweep_that_reports"))
    assert running.finish("recover_experiment", run["dag_run_id"]) == "success", running.log_tail()
    assert iterations(experiment) == [("TERMINATED", 6)] * 4
    assert not (tmp_path / "another" / ".tune_restore").exists()


def test_a_night_without_failures_is_skipped_and_succeeds(running, tmp_path):
    run_id = running.trigger("nightly_recovery", {"prefix": str(tmp_path)})
    assert running.finish("nightly_recovery", run_id) == "success"
    found = states(running.tasks("nightly_recovery", run_id))
    assert found.pop("restore.done") == ["success"]
    assert set(map(tuple, found.values())) == {("skipped",)}


def test_a_killed_task_keeps_its_progress_and_a_dead_worker_is_retried(
    running, closed_gate, tmp_path
):
    experiment = killed_sweep(tmp_path)
    run_id = running.trigger("nightly_recovery", {"prefix": str(tmp_path), "stale_after": 0})
    victim = wait_for_progress(running, "nightly_recovery", run_id)
    running.call(
        "PATCH",
        f"/api/v2/dags/nightly_recovery/dagRuns/{run_id}/taskInstances/restore.trial/{victim}",
        {"new_state": "failed"},
    )
    outcomes = ".tune_restore/*/trials/*/attempts/*/outcome.json"
    running.eventually(lambda: list(experiment.glob(outcomes)), seconds=120)
    closed_gate.open()
    assert running.finish("nightly_recovery", run_id) == "failed"
    found = states(running.tasks("nightly_recovery", run_id))
    assert sorted(found["restore.trial"]) == ["failed"] + ["success"] * 3
    assert (found["restore.commit"], found["restore.done"]) == (["success"], ["upstream_failed"])
    log = running.task_log("nightly_recovery", run_id, "restore.trial", victim)
    assert "Stopping the runner; it saves a snapshot first." in log
    *finished, (status, iteration) = sorted(iterations(experiment), reverse=True)
    assert finished == [("TERMINATED", 6)] * 3
    assert status in ("PENDING", "RUNNING", "PAUSED")
    assert 1 <= iteration < 6
    running.eventually(lambda: not runners_of(experiment), seconds=120)
    the_next_night_its_worker_dies_and_a_retry_goes_on(running, experiment)


def the_next_night_its_worker_dies_and_a_retry_goes_on(running, experiment: Path) -> None:
    run_id = running.trigger("survives", {"experiment": str(experiment)})
    runner, *_ = running.eventually(lambda: runners_of(experiment), seconds=400)
    worker = command_of(runner).split()[-1]
    assert "--parent-pid" in command_of(runner)
    os.kill(int(worker), signal.SIGKILL)
    assert running.finish("survives", run_id) == "success", running.log_tail()
    (victim,) = [t for t in running.tasks("survives", run_id) if t["task_id"] == "restore.trial"]
    trial_id = victim["rendered_map_index"].split()[1]
    log = running.task_log("survives", run_id, "restore.trial", victim["map_index"])
    assert "attempt 2 of restore" in log
    assert iterations(experiment) == [("TERMINATED", 6)] * 4
    (results,) = experiment.glob(f"*{trial_id}*/result.json")
    rows = [json.loads(line)["training_iteration"] for line in results.read_text().splitlines()]
    assert sorted(set(rows)) == [1, 2, 3, 4, 5, 6]
    assert rows[-1] == 6


def test_one_run_of_all_is_followed_by_a_task_a_trial_and_outlives_the_one_that_started_it(
    running, tmp_path
):
    experiment = killed_sweep(tmp_path)
    run_id = running.trigger("together", {"experiment": str(experiment)})
    assert running.finish("together", run_id) == "success", running.log_tail()
    tasks = [t for t in running.tasks("together", run_id) if t["task_id"] == "restore.trial"]
    logs = {
        t["map_index"]: running.task_log("together", run_id, "restore.trial", t["map_index"])
        for t in tasks
    }
    (starter,) = [i for i, log in logs.items() if "Starting the run of the whole experiment" in log]
    assert all("iteration 6, score=" in log for log in logs.values())
    # two trials at a time: it ended with its own, while others still ran
    ends = sorted((t["end_date"], t["map_index"]) for t in tasks)
    assert ends[-1][1] != starter
    assert len(list(experiment.glob(".tune_restore/*/whole/attempts/*"))) == 1
    assert iterations(experiment) == [("TERMINATED", 6)] * 4
    running.eventually(lambda: not runners_of(experiment), seconds=120)


def wait_for_progress(running, dag_id: str, run_id: str) -> int:
    """Return the map index of a trial that has reported something."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        for task in running.tasks(dag_id, run_id):
            if task["task_id"] == "restore.trial" and task["state"] == "running":
                log = running.task_log(dag_id, run_id, "restore.trial", task["map_index"])
                if "iteration " in log:
                    return task["map_index"]
        time.sleep(0.5)
    raise TimeoutError(running.log_tail())


def runners_of(experiment: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        command = command_of(int(entry.name))
        if "airflow_tune_restore.runner run" in command and str(experiment) in command:
            found.append(int(entry.name))
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def test_a_deferred_sensor_sees_a_failure_on_s3_through_a_connection(running, s3, failed_sweep):
    prefix = f"s3://seaweed@{s3.bucket}/waits"
    run_id = running.trigger("waits", {"prefix": prefix})
    deadline = time.monotonic() + 300
    while "deferred" not in str(states(running.tasks("waits", run_id)).get("restore.find")):
        assert time.monotonic() < deadline, running.log_tail()
        time.sleep(0.5)
    upload(failed_sweep, s3, f"{s3.bucket}/waits/sweep")
    assert running.finish("waits", run_id) == "success", running.log_tail()
    log = running.task_log("waits", run_id, "restore.commit")
    assert f"s3://{s3.bucket}/waits/sweep: 1 of 1 resumed trials finished" in log
    secret = s3.env["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in running.home.rglob("*") if path.is_file()]
    assert [path.name for path in files if secret in path.read_bytes()] == []


def upload(directory: Path, s3, target: str) -> None:
    """Copy an experiment, its state last: before, nothing has failed."""
    store = s3.filesystem()
    paths = [path for path in directory.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.name.startswith("experiment_state-")):
        store.put_file(str(path), f"{target}/{path.relative_to(directory).as_posix()}")
