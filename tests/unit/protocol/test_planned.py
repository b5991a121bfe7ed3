"""The runner's view of a plan is the plan."""

import json

import pytest

from airflow_tune_restore.exceptions import RecordUnreadableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.planned import read_planned
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import start_night


def test_it_has_the_same_trials_and_options_as_the_whole_plan():
    store = MemoryStore()
    rows = [make_row("bad", status="ERROR"), make_row("ran", status="RUNNING"), make_row("done")]
    store.put(STATE_NAME, make_state(rows))
    plan = start_night(store)
    planned = read_planned(store, plan.restore_id)
    assert planned.base.name == plan.base.name
    for name in ("continues_search", "samples_left", "searcher_lost"):
        assert getattr(planned, name) == getattr(plan, name)
    for mine, whole in zip(planned.trials, plan.trials, strict=True):
        for name in ("trial_id", "action", "checkpoint", "iteration", "new_trial_id"):
            assert getattr(mine, name) == getattr(whole, name)
        assert mine.final_trial_id == whole.final_trial_id
        assert mine.runs is (whole in plan.to_run)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trials": [{"trial_id": "..", "action": "keep"}]}, "it is not a valid name"),
        ({"trials": [{"trial_id": "t", "action": "fly"}]}, "'fly' is not one of keep, resume"),
        ({"trials": [{"trial_id": "t", "action": ["keep"]}]}, "is not one of keep, resume"),
        ({"base": {"name": "../state.json"}}, "it is not a file name"),
        ({"trials": {}}, "trials of a PlannedExperiment: it cannot be a dict"),
    ],
)
def test_a_plan_that_is_not_valid_is_refused_with_the_field(changes, reason):
    store = MemoryStore()
    body = {"base": {"name": ""}, "trials": []} | changes
    store.put(layout.plan_key("r1"), json.dumps(body).encode())
    with pytest.raises(RecordUnreadableError, match=reason):
        read_planned(store, "r1")
