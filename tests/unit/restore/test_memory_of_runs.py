"""The states of callbacks and a stopper are committed if one run left them all; and undone."""

import json

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, plan_night, start_night

BEFORE, AFTER = ({"_type": "CLOUDPICKLE_FALLBACK", "value": value} for value in ("00", "01"))
COMMITTED = "experiment_state-2026-11-23_10-00-00_r000001.json"
CALLBACKS = "callback-states-2026-11-23_10-00-00_r000001.pkl"


def restored(failed: list[str]) -> MemoryStore:
    """Restore these trials one by one; each runner leaves a stopper and callbacks of its own."""
    store = MemoryStore()
    rows = [make_row(trial_id, status="ERROR", error=True) for trial_id in failed]
    store.put(STATE_NAME, make_state(rows, _stopper=BEFORE))
    plan = start_night(store, "r")
    for trial_id in failed:
        row = make_row(trial_id, last_result={"training_iteration": 6})
        request = leave_attempt(store, plan, trial_id, row, runner={"_stopper": AFTER})
        directory = layout.attempt_dir("r", trial_id, request.attempt)
        store.put(f"{directory}/callback-states-kept.pkl", b"remembered")
    commit_restore(store, "r")
    return store


def stopper(store: MemoryStore) -> object:
    return json.loads(store.get(COMMITTED))["runner_data"]["_stopper"]


def names(store: MemoryStore) -> list[str]:
    return [entry.name for entry in store.list_dir() if not entry.is_dir]


def test_of_one_trial_it_is_the_experiments():
    store = restored(["a"])
    assert stopper(store) == AFTER
    assert store.get(CALLBACKS) == b"remembered"


def test_of_several_none_is():
    store = restored(["a", "b"])
    assert stopper(store) == BEFORE
    assert CALLBACKS not in names(store)


def test_an_undo_takes_it_back():
    store = restored(["a"])
    undo_commit(store, holder="test")
    assert names(store) == [STATE_NAME]


@pytest.mark.parametrize(
    ("asked", "action"), [(False, TrialAction.KEEP), (True, TrialAction.RESUME)]
)
def test_what_fail_fast_cut_short_is_taken_up_if_that_is_asked(asked, action):
    rows = [
        make_row("bad", status="ERROR", error=True),
        make_row("cut", last_result={"training_iteration": 1}),
        make_row("whole", last_result={"training_iteration": 6, "done": True}),
    ]
    store = MemoryStore()
    store.put(STATE_NAME, make_state(rows, _fail_fast=True, _has_errored=True))
    experiment = read_experiment(store)
    assert "resume_cut_short" in experiment.warnings[-1]
    plan = plan_night(store, flags=ResumeFlags.from_flags(resume_cut_short=asked))
    actions = {trial.trial_id: trial.action for trial in plan.trials}
    assert actions == {"bad": TrialAction.KEEP, "cut": action, "whole": TrialAction.KEEP}
