"""What can befall a recovery under a real `airflow standalone`, with real Ray."""

import json
import os
import signal
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.airflow import canary
from tests.support.airflow.trial_tasks import TRIAL, command_of, one_that_reports, runners_of
from tests.support.experiments.sweeps import copy_sweep, ends

ALL_DONE = [("TERMINATED", 6)] * 4

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
        find_args={"poke_interval": 2, "timeout": 1200},
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

with DAG("times_out", schedule=None, dagrun_timeout=timedelta(seconds=90)):
    TuneRestoreTaskGroup(
        experiments="{{ dag_run.conf['experiment'] }}",
        trainable="example_sweep:train",
        stale_after=0,
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


@pytest.fixture(scope="module", autouse=True)
def more_dags(running) -> None:
    (running.dags / "more_dags.py").write_text(MORE_DAGS)


def test_a_killed_task_keeps_its_progress_and_a_dead_worker_is_retried(running, gates, tmp_path):
    experiment = copy_sweep("killed", tmp_path / "killed_task")
    gates.close("killed_task")
    conf = {"prefix": str(tmp_path), "stale_after": 0}
    run_id = running.trigger("nightly_recovery", conf)
    task = running.eventually(lambda: one_that_reports(running, "nightly_recovery", run_id))
    victim = task["map_index"]
    running.call(
        "PATCH",
        f"/api/v2/dags/nightly_recovery/dagRuns/{run_id}/taskInstances/{TRIAL}/{victim}",
        {"new_state": "failed"},
    )
    outcomes = ".tune_restore/*/trials/*/attempts/*/outcome.json"
    running.eventually(lambda: list(experiment.glob(outcomes)))
    gates.open("killed_task")
    assert running.finish("nightly_recovery", run_id) == "failed"
    found = running.states("nightly_recovery", run_id)
    assert sorted(found[TRIAL]) == ["failed"] + ["success"] * 2
    assert (found["restore.commit"], found["restore.done"]) == (["success"], ["upstream_failed"])
    log = running.task_log("nightly_recovery", run_id, TRIAL, victim)
    assert "Asking the run to stop this trial; the others continue." in log  # they share a driver
    *finished, (status, iteration) = sorted(ends(experiment), reverse=True)
    assert finished == [("TERMINATED", 6)] * 3
    assert status in ("PENDING", "RUNNING", "PAUSED")
    assert 1 <= iteration < 6
    running.eventually(lambda: not runners_of(experiment))
    the_next_night_its_worker_dies_and_a_retry_goes_on(running, gates, experiment)


def the_next_night_its_worker_dies_and_a_retry_goes_on(running, gates, experiment: Path) -> None:
    gates.close("killed_task")
    run_id = running.trigger("survives", {"experiment": str(experiment)})
    runner, *_ = running.eventually(lambda: runners_of(experiment))
    worker = command_of(runner).split()[-1]
    assert "--parent-pid" in command_of(runner)
    os.kill(int(worker), signal.SIGKILL)
    gates.open("killed_task")
    assert running.finish("survives", run_id) == "success", running.log_tail()
    (victim,) = [t for t in running.tasks("survives", run_id) if t["task_id"] == TRIAL]
    trial_id = victim["rendered_map_index"].split()[1]
    log = running.task_log("survives", run_id, TRIAL, victim["map_index"])
    assert "attempt 2 of restore" in log
    assert ends(experiment) == ALL_DONE
    (results,) = experiment.glob(f"*{trial_id}*/result.json")
    rows = [json.loads(line)["training_iteration"] for line in results.read_text().splitlines()]
    assert sorted(set(rows)) == [1, 2, 3, 4, 5, 6]
    assert rows[-1] == 6


def test_a_run_that_timed_out_does_not_keep_the_next_one_waiting_for_its_lease(
    running, gates, tmp_path
):
    experiment = copy_sweep("killed", tmp_path / "timed_out")
    gates.close("timed_out")
    run_id = running.trigger("times_out", {"experiment": str(experiment)})
    assert running.finish("times_out", run_id) == "failed"
    running.eventually(lambda: not runners_of(experiment))
    gates.open("timed_out")
    claims = sorted(experiment.glob(".tune_restore/lease/*"))
    assert not [path.name for path in claims if "release" in path.name]
    conf = {"prefix": str(experiment.parent), "stale_after": 0}
    next_id = running.trigger("nightly_recovery", conf)
    assert running.finish("nightly_recovery", next_id) == "success", running.log_tail()
    assert ends(experiment) == ALL_DONE
    log = running.task_log("nightly_recovery", next_id, "restore.plan")
    assert f"of DAG times_out, run {run_id}" in log
    assert f" did not release the lease of {experiment}. It took the lease at 20" in log
    assert f"/dags/times_out/runs/{quote(run_id)}. It is watched for 30 s." in log
    # a person on call clears the trial of the run that timed out
    victim = next(t for t in running.tasks("times_out", run_id) if t["task_id"] == TRIAL)
    running.call(
        "POST",
        "/api/v2/dags/times_out/clearTaskInstances",
        {
            "dag_run_id": run_id,
            "task_ids": [[TRIAL, victim["map_index"]]],
            "dry_run": False,
            "only_failed": False,
        },
    )
    running.finish("times_out", run_id)
    place = (TRIAL, victim["map_index"])
    tasks = {(t["task_id"], t["map_index"]): t for t in running.tasks("times_out", run_id)}
    assert tasks[place]["state"] == "failed"
    log = running.whole_log("times_out", run_id, TRIAL, victim["map_index"])  # with its exception
    assert "has ended: restore airflow-" in log
    assert f"of DAG nightly_recovery, run {next_id}" in log
    assert " took it over and committed what it had done. Nothing was started. To run trial " in log
    assert "clear task restore.plan with its downstream tasks." in log


def test_one_run_of_all_is_followed_by_a_task_a_trial_and_outlives_the_one_that_started_it(
    running, tmp_path
):
    experiment = copy_sweep("killed", tmp_path / "together")
    run_id = running.trigger("together", {"experiment": str(experiment)})
    assert running.finish("together", run_id) == "success", running.log_tail()
    tasks = [t for t in running.tasks("together", run_id) if t["task_id"] == TRIAL]
    logs = {
        t["map_index"]: running.task_log("together", run_id, TRIAL, t["map_index"]) for t in tasks
    }
    (starter,) = [i for i, log in logs.items() if "Starting the whole-experiment run" in log]
    assert all("iteration 6, score=" in log for log in logs.values())
    # two trials at a time: it ended with its own, while others still ran
    ended = sorted((t["end_date"], t["map_index"]) for t in tasks)
    assert ended[-1][1] != starter
    assert len(list(experiment.glob(".tune_restore/*/whole/attempts/*"))) == 1
    assert ends(experiment) == ALL_DONE
    running.eventually(lambda: not runners_of(experiment))


def test_a_deferred_sensor_sees_a_failure_on_s3_through_a_connection(
    running, seaweed, canaries, tmp_path
):
    prefix = f"s3://seaweed@{seaweed.bucket}/waits"
    run_id = running.trigger("waits", {"prefix": prefix})
    running.eventually(lambda: running.states("waits", run_id).get("restore.find") == ["deferred"])
    seaweed.upload(copy_sweep("errored", tmp_path / "sweep"), "waits/sweep")
    assert running.finish("waits", run_id) == "success", running.log_tail()
    log = running.task_log("waits", run_id, "restore.commit")
    assert f"s3://seaweed@{seaweed.bucket}/waits/sweep: 1 resumed trial finished" in log
    assert canary.leaks(canary.files(running.home), canaries.all) == []
