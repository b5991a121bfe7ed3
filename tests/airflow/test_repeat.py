"""A DAG that takes five trials at a time restores twelve by itself, under a real scheduler.

The runners are recorded: they leave what a trial leaves. All else is Airflow's own, and so is its
database, in which a trial leaves nothing but its mapped task.
"""

from collections import Counter
from pathlib import Path

import pytest

from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.database import OF_AIRFLOW, rows_of_task
from tests.support.airflow.standalone import Airflow
from tests.support.experiments.built import make_experiment, make_row

DAG_ID = "takes_five"
CODE = f'''
"""Restores an experiment, five trials at a time."""

import os

os.environ["AIRFLOW__CORE__MAX_MAP_LENGTH"] = "5"

from airflow.sdk import DAG

from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from tests.support.airflow import recorded

recorded.install()

with DAG("{DAG_ID}", schedule=None, max_active_runs=1):
    TuneRestoreTaskGroup(
        "restore",
        experiments="{{{{ dag_run.conf['experiment'] }}}}",
        trainable="m:train",
        resume_errored=True,
        repeat=True,
        max_duration=3600,
    )
'''
ROUNDS = 3


@pytest.fixture(scope="module")
def experiment(running: Airflow, tmp_path_factory) -> Path:
    """Twelve trials that failed, and one that finished; the DAG restores them from now on."""
    rows = [
        make_row(f"t{number:02}", status="ERROR", last_result_time=float(number))
        for number in range(12)
    ]
    made = make_experiment(
        tmp_path_factory.mktemp("sweeps") / "sweep", [*rows, make_row("done")], total_samples=13
    )
    (running.dags / f"{DAG_ID}.py").write_text(CODE)
    return made


@pytest.fixture(scope="module")
def runs(running: Airflow, experiment: Path) -> list[str]:
    """Start the DAG once, and return the ids of all its runs, in order."""
    running.trigger(DAG_ID, {"experiment": str(experiment)})

    def ended() -> list[str] | None:
        found = sorted(running.runs(DAG_ID), key=lambda run: run["run_after"])
        is_over = all(run["state"] in ("success", "failed") for run in found)
        # a DAG run that has ended has started the next one before
        return [run["dag_run_id"] for run in found] if is_over else None

    return running.eventually(ended)


def test_all_trials_are_restored_by_dag_runs_that_start_each_other(running, runs, experiment):
    assert [run["state"] for run in running.runs(DAG_ID)] == ["success"] * ROUNDS
    tasks = [Counter(task["task_id"] for task in running.tasks(DAG_ID, run)) for run in runs]
    assert [each["restore.trial"] for each in tasks] == [5, 5, 2]
    state = read_base(open_store(str(experiment)))
    assert {trial.status for trial in state.trials} == {TrialStatus.TERMINATED}
    assert [running.states(DAG_ID, run)["restore.repeat"] for run in runs] == [
        ["success"], ["success"], ["skipped"],
    ]  # fmt: skip


def test_each_run_is_named_after_the_first_and_has_its_conf(running, runs, experiment):
    first, *others = runs
    origin = running.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/{first}")["run_after"]
    assert others == [f"tune_restore_repeat__{origin}__{number}" for number in (1, 2)]
    assert all(run["conf"] == {"experiment": str(experiment)} for run in running.runs(DAG_ID))


def test_what_waits_is_returned_and_logged(running, runs):
    totals = [running.xcom(DAG_ID, run, "restore.commit", "totals") for run in runs]
    assert [each["waiting_trials"] for each in totals] == [7, 2, 0]
    assert [each["trials_finished"] for each in totals] == [5, 5, 2]
    assert running.xcom(DAG_ID, runs[0], "restore.repeat", "return_value") == {
        "run_id": runs[1],
        "waiting_trials": 7,
    }
    assert "7 trials wait for the next DAG run" in running.task_log(DAG_ID, runs[0], "restore.plan")
    for task in ("restore.commit", "restore.done"):
        log = running.task_log(DAG_ID, runs[0], task)
        assert (
            "1 experiment: 1 restored; 7 trials wait for the next DAG run, in 1 experiment" in log
        )
    assert "nothing waits for it" in running.task_log(DAG_ID, runs[-1], "restore.repeat")


@pytest.mark.usefixtures("runs")
def test_a_trial_leaves_nothing_in_the_database_but_its_task(running):
    found = rows_of_task(running.home / "airflow.db", DAG_ID, "restore.trial")
    assert found["task_instance"] == 12
    assert set(found) <= OF_AIRFLOW


@pytest.mark.usefixtures("runs")
def test_an_experiment_without_a_search_leaves_nothing_but_the_task_that_was_skipped(running):
    found = rows_of_task(running.home / "airflow.db", DAG_ID, "restore.continue_search")
    assert found["task_instance"] == ROUNDS
    assert set(found) <= OF_AIRFLOW
