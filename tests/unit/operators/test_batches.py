"""Many trials in batches, from the plan task to the commit: parts, and the task of the rest."""

import os

import pytest

from airflow_tune_restore.exceptions import RestFailedError
from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowFailException, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import Attempt, leave_attempt, leave_outcome


class Lines:
    """A log that keeps its lines."""

    def __init__(self):
        self.lines = []

    def info(self, text, *values):
        self.lines.append(text % values)

    warning = error = info


def make(path, count=12, status="ERROR"):
    """Return an experiment whose driver has died long ago."""
    rows = [
        make_row(f"t{number:02}", status=status, last_result_time=float(number))
        for number in range(count)
    ]
    experiment = make_experiment(path, rows, total_samples=count)
    for each in experiment.rglob("*"):
        os.utime(each, (1e9, 1e9))
    return experiment


def plan(experiments, run_id="run-1", **arguments):
    """Run the plan task as a DAG run would, and return its items and outcomes."""
    context = make_context(run_id=run_id)
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=experiments, resume_errored=True, **arguments
    )
    return operator.execute(context), context["ti"].pushed["outcomes"]


def commit(outcomes):
    context = make_context()
    operator = CommitRestoreOperator(task_id="commit", outcomes=outcomes)
    return operator.execute(context), context["ti"].pushed


@pytest.mark.parametrize("status", ["ERROR", "RUNNING", "PENDING"])
def test_the_next_dag_run_finds_the_rest_at_once(tmp_path, status):
    """The commit was the last write, so nothing has to be silent for `stale_after` again."""
    experiment = make(tmp_path / "sweep", status=status)
    store, sizes = open_store(str(experiment)), []
    for number in range(3):
        items, outcomes = plan(str(experiment), f"run-{number}", max_trials=5)
        for item in items:
            leave_attempt(store, read_plan(store, item["restore_id"]), item["trial_id"])
        _, pushed = commit(outcomes)
        sizes.append((len(items), outcomes[0]["waiting"], pushed["totals"]["waiting_trials"]))
    assert sizes == [(5, 7, 7), (5, 2, 2), (2, 0, 0)]
    with pytest.raises(AirflowSkipException, match="Nothing to restore"):
        plan(str(experiment), "run-9", max_trials=5)


def test_trials_that_failed_again_are_counted_if_they_got_further(tmp_path):
    items, outcomes = plan(str(make(tmp_path / "a", 4)), max_trials=2)
    for item, iteration in zip(items, (0, 3), strict=True):
        store = open_store(item["experiment"])
        made = read_plan(store, item["restore_id"])
        leave_attempt(store, made, item["trial_id"], result="failed", iteration=iteration)
    numbers = commit(outcomes)[1]["totals"]
    assert [numbers[f"trials_{word}"] for word in ("run", "finished", "advanced")] == [2, 0, 1]


def test_what_waits_is_in_the_table_the_totals_and_the_last_line(tmp_path, capfd):
    experiments = [str(make(tmp_path / name, 4)) for name in ("a", "b", "c")]
    items, outcomes = plan(experiments, max_trials=6)
    for item in items:
        store = open_store(item["experiment"])
        leave_attempt(store, read_plan(store, item["restore_id"]), item["trial_id"])
    committed, pushed = commit(outcomes)
    assert pushed["totals"] == {
        "experiments": {"restored": 2, "waiting": 1},
        "trials_run": 6,
        "trials_finished": 6,
        "trials_advanced": 0,
        "trials_paused": 0,
        "waiting_experiments": 2,
        "waiting_trials": 6,
    }
    assert [line["outcome"] for line in pushed["experiments"]] == [
        "restored",
        "restored",
        "waiting",
    ]
    assert [line["waiting_trials"] for line in pushed["experiments"]] == [0, 2, 4]
    assert "2 trials wait for a later restore" in committed[1]["headline"]
    assert [each["trials_run"] for each in committed] == [4, 2]
    sentence = (
        "3 experiments: 2 restored, 1 waiting; 6 trials wait for the next DAG run, in 2 experiments"
    )
    assert sentence in capfd.readouterr().out
    done = CheckRestoresOperator(task_id="done", outcomes=outcomes, totals=pushed["totals"])
    done.execute(make_context())
    assert sentence in capfd.readouterr().out


def test_two_thousand_experiments_that_wait_are_no_long_log():
    """The first ones have a line each."""
    batch = ExperimentBatch(Address(f"/x/{number}") for number in range(2000))
    for text in batch.places:
        batch.wait(text, "waits for the next DAG run", trials=1)
    log = Lines()
    batch.log(log)
    lines = log.lines
    assert len(lines) == 501
    assert lines[-1] == "… and 1500 more that wait, are left alone or only continued."


# the trials of a coupled experiment that have no task of their own


@pytest.fixture
def rest(tmp_path):
    """Return a coupled experiment, and the items of its five tasks."""
    experiment = make(tmp_path / "sweep")
    items, _ = plan(str(experiment), strategy="whole_experiment", max_trials=5)
    return open_store(str(experiment)), items


def run_all(store, *, failing=(), without=()):
    """Return what a runner of the whole experiment leaves."""

    def leave(request):
        for trial in read_plan(store, request.restore_id).to_run:
            if trial.trial_id in without:
                continue
            result = "failed" if trial.trial_id in failing else "finished"
            key = (request.restore_id, trial.trial_id, request.attempt)
            leave_outcome(store, Attempt(*key), result)
        leave_outcome(store, request, "finished")

    return leave


def follow(item):
    operator = RestoreTrialOperator(task_id="trial", trial=item, trainable="m:train")
    return operator.execute(make_context())


def test_the_first_trials_have_tasks_and_one_more_task_follows_the_rest(rest):
    _, items = rest
    assert [item["trial_id"] for item in items] == [
        "t11",
        "t10",
        "t09",
        "t08",
        layout.WHOLE_EXPERIMENT,
    ]
    assert items[-1]["label"] == "sweep 8 other trials"
    assert items[-1]["action"] == "run"


def test_the_task_of_the_rest_succeeds_if_all_its_trials_have(rest, launcher):
    store, items = rest
    launcher.on_start = run_all(store, failing={"t11"})  # it has a task of its own
    assert follow(items[-1])["trial_id"] == layout.WHOLE_EXPERIMENT
    assert len(launcher.requests) == 1
    assert follow(items[1])["trial_id"] == "t10"
    assert len(launcher.requests) == 1


def test_the_task_of_the_rest_fails_for_good_and_names_the_first_that_failed(rest, launcher):
    store, items = rest
    launcher.on_start = run_all(store, failing={"t00", "t01"}, without={"t07"})
    with pytest.raises(AirflowFailException) as failed:
        follow(items[-1])
    assert isinstance(package_error_behind(failed.value), RestFailedError)
    text = str(failed.value).replace(store.uri, "EXP")
    assert text.startswith(
        "3 of the 8 trials of EXP that this task follows did not finish: t07 (its runner exited without "
        "recording an outcome); t01 (ValueError: no); t00 (ValueError: no). The commit keeps their "
        "progress, and the next restore with resume_errored=True resumes them; it is not retried"
    )


def test_samples_alone_have_no_rest_to_judge(tmp_path, launcher):
    experiment = make_experiment(
        tmp_path / "sweep", [make_row("t0", status="ERROR")], total_samples=3
    )
    items, _ = plan(str(experiment), strategy="whole_experiment", stale_after=0)
    store = open_store(str(experiment))
    launcher.on_start = run_all(store, failing={"t0"})
    assert items[-1]["label"] == "sweep new samples"
    assert follow(items[-1])["trial_id"] == layout.WHOLE_EXPERIMENT
