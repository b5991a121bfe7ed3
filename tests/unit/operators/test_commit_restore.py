"""The commit over many restores."""

import json

import pytest

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.protocol import layout, lease_objects
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import leave_attempt, night, start_night


def start(*experiments, **arguments) -> list:
    context = make_context()
    arguments = {"resume_errored": True, "stale_after": 0, **arguments}
    BuildRestorePlanOperator(
        task_id="plan", experiments=[str(e) for e in experiments], **arguments
    ).execute(context)
    return context["ti"].pushed["outcomes"]


def commit(restores) -> CommitRestoreOperator:
    return CommitRestoreOperator(task_id="commit", outcomes=restores)


def finish(experiment, restore, row) -> None:
    """Leave what the first attempt of the row's trial leaves."""
    store = open_store(str(experiment))
    plan = read_plan(store, restore["restore_id"])
    leave_attempt(store, plan, json.loads(row[0])["trial_id"], row)


def test_it_returns_before_and_after_and_its_log_ends_with_the_table(errored, capfd):
    (restore,) = start(errored)
    finish(errored, restore, make_row("a1", last_result={"training_iteration": 6}))
    (summary,) = commit([restore]).execute(make_context())
    assert summary["state_file"].endswith("_r000001.json")
    assert summary["failed"] == ["a3"]
    changes = {c["trial_id"]: (c["status_before"], c["status_after"]) for c in summary["trials"]}
    assert changes == {
        "a1": ("ERROR", "TERMINATED"),
        "a2": ("TERMINATED", "TERMINATED"),
        "a3": ("ERROR", "ERROR"),
    }
    assert json.loads(json.dumps(summary)) == summary
    lines = [line for line in capfd.readouterr().out.splitlines() if "CommitRestore" in line]
    (ends,) = [
        number for number, line in enumerate(lines) if "1 experiment: 1 failed again" in line
    ]
    assert all(trial in "".join(lines[ends - 3 : ends]) for trial in ("a1", "a2", "a3"))
    assert "1 of 2 finished" in "".join(lines[ends:])


def test_committing_again_changes_nothing(errored):
    restores = start(errored)
    finish(errored, restores[0], make_row("a1", last_result={"training_iteration": 6}))
    first = commit(restores).execute(make_context())
    before = sorted(path.name for path in errored.iterdir())
    assert commit(restores).execute(make_context()) == first
    assert sorted(path.name for path in errored.iterdir()) == before


def test_the_lease_is_given_back(errored):
    (restore,) = start(errored)
    commit([restore]).execute(make_context())
    entries = open_store(str(errored)).list_dir(layout.LEASE)
    assert lease_objects.is_released(entries, 1)


def test_an_experiment_that_cannot_be_committed_fails_the_task_but_no_other_experiment(
    errored, tmp_path
):
    other = make_experiment(tmp_path / "other", [make_row("b1", status="ERROR")])
    restores = start(errored, other)
    make_experiment(errored, [make_row("a1", status="RUNNING")])  # its driver runs again
    context = make_context()
    with pytest.raises(AirflowException, match="1 of 2 restores could not be committed") as error:
        commit(restores).execute(context)
    assert "exp changed since it was planned" in str(error.value)
    (done,) = context["ti"].pushed["return_value"]
    assert done["experiment"] == str(other)


def test_a_restore_without_a_plan_is_released(errored):
    (restore,) = start(errored)
    store = open_store(str(errored))
    store.delete(layout.plan_key(restore["restore_id"]))
    context = make_context()
    assert commit([restore]).execute(context) == []
    (line,) = context["ti"].pushed["experiments"]
    assert "was not started" in line["reason"]
    assert lease_objects.is_released(store.list_dir(layout.LEASE), 1)


@pytest.mark.parametrize("restores", [None, [], ""])
def test_without_restores_it_is_skipped_in_words(restores):
    with pytest.raises(AirflowSkipException, match="Nothing to commit"):
        commit(restores).execute(make_context())


def test_an_item_that_is_not_a_restore_is_shown():
    with pytest.raises(AirflowFailException, match="is not an item of BuildRestorePlanOperator"):
        commit(["exp"]).execute(make_context())


def test_it_runs_whatever_became_of_the_trials():
    assert commit([]).trigger_rule == "all_done"


def test_trials_that_were_quarantined_are_named(errored):
    store = open_store(str(errored))
    night(store, "r1", trial_id="a1")
    plan = start_night(store, "r2")
    leave_attempt(store, plan, "a1", result="failed")
    (summary,) = commit([{"experiment": str(errored), "restore_id": "r2"}]).execute(make_context())
    assert summary["quarantined"] == ["a1"]
    assert "tune-restore release" in summary["headline"]


def test_a_commit_that_was_undone_is_not_put_back(errored):
    store = open_store(str(errored))
    night(store, "r1", trial_id="a1")
    undo_commit(store, holder="test")
    with pytest.raises(AirflowException, match="was undone at"):
        commit([{"experiment": str(errored), "restore_id": "r1"}]).execute(make_context())
