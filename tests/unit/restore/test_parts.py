"""The task of a trial reads its own part of the plan, however many trials there are."""

import json

import pytest

from airflow_tune_restore.exceptions import KeyNotFoundError, RecordUnreadableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.ledger import read_history
from airflow_tune_restore.restore.plan import read_part, read_plan
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, night, start_night
from tests.support.storage.counting import Clock, CountingStore

RESUME = ResumeFlags.from_flags(resume_errored=True)


def make(trials=3, kind=MemoryStore, **made):
    store = CountingStore.new(Clock()) if kind is CountingStore else kind(**made)
    rows = [
        make_row(f"t{n:04}", status="ERROR", config={"lr": n, "_type": "CLOUDPICKLE_FALLBACK"})
        for n in range(trials)
    ]
    store.put(STATE_NAME, make_state(rows))
    return store


@pytest.fixture
def store():
    return make()


@pytest.mark.parametrize("strategy", ["per_trial", "whole_experiment"])
def test_a_part_has_all_that_the_plan_has_of_its_trial(store, strategy):
    plan = start_night(store, strategy=strategy)
    for trial in plan.trials:
        part = read_part(store, "r1", trial.trial_id)
        assert part.trials == (trial,)
        assert part.is_part
        whole = ("restore_id", "experiment", "base", "strategy", "metric", "trainable_name")
        assert [getattr(part, name) for name in whole] == [getattr(plan, name) for name in whole]
        assert part.units == [
            layout.WHOLE_EXPERIMENT if strategy == "whole_experiment" else trial.trial_id
        ]


def test_a_part_names_none_of_the_other_chosen_trials(store):
    start_night(store, trials=("t0000", "t0001"))
    assert read_part(store, "r1", "t0001").choices.trials == ("t0001",)


def test_the_whole_experiment_run_reads_the_whole_plan(store):
    plan = start_night(store, strategy="whole_experiment")
    assert read_part(store, "r1", layout.WHOLE_EXPERIMENT) == plan


def test_a_claim_of_the_whole_run_by_one_of_its_tasks_requests_for_all(store):
    start_night(store, strategy="whole_experiment")
    part = read_part(store, "r1", "t0001")
    request = claim_next_attempt(
        store, part, layout.WHOLE_EXPERIMENT, RunnerSettings(trainable="m:t"), log=print
    )
    assert (request.trial_id, request.state) == (layout.WHOLE_EXPERIMENT, STATE_NAME)


def test_a_seed_of_an_older_version_leads_to_the_plan(store):
    plan = start_night(store)
    key = layout.seed_key("r1", "t0001")
    seed = json.loads(store.get(key))
    del seed[layout.PART_OF_PLAN]
    store.put(key, json.dumps(seed).encode())
    assert read_part(store, "r1", "t0001") == plan
    store.delete(key)
    assert read_part(store, "r1", "t0001") == plan


def test_without_a_restore_there_is_no_part(store):
    with pytest.raises(KeyNotFoundError):
        read_part(store, "r1", "t0001")


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part | {"restore_id": "r2"},
        lambda part: part | {"trials": [part["trials"][0] | {"trial_id": "t0002"}]},
        lambda part: part | {"trials": []},
        lambda part: part | {"trials": [part["trials"][0] | {"checkpoint": "../up"}]},
        lambda part: "nothing",
    ],
)
def test_a_part_that_is_not_valid_is_refused(store, change):
    start_night(store)
    key = layout.seed_key("r1", "t0001")
    seed = json.loads(store.get(key))
    seed[layout.PART_OF_PLAN] = json.dumps(change(json.loads(seed[layout.PART_OF_PLAN])))
    store.put(key, json.dumps(seed).encode())
    with pytest.raises(RecordUnreadableError, match=r"seed\.json"):
        read_part(store, "r1", "t0001")


def test_ray_finds_nothing_to_unpickle_in_a_part(store):
    """Ray decodes objects of a state that name a pickle; a parameter may have any name."""
    start_night(store)
    seed = json.loads(store.get(layout.seed_key("r1", "t0001")))
    assert isinstance(seed[layout.PART_OF_PLAN], str)


def test_a_part_has_the_earlier_failures_of_its_trial_alone(store):
    for restore_id in ("r1", "r2"):
        night(store, restore_id, trial_id="t0001", result="failed", iteration=3)
    start_night(store, "r3", max_attempts=9)
    assert read_part(store, "r3", "t0002").failures == {}
    quarantined = read_plan(store, "r3").trial("t0001")
    assert quarantined.quarantined  # the same failure twice


def test_a_history_has_earlier_failures_and_those_of_this_restore(store):
    night(store, "r1", trial_id="t0001", result="failed", iteration=3)
    plan = start_night(store, "r2")
    leave_attempt(store, plan, "t0001", result="failed", iteration=5)
    store.delete(layout.LEDGER)  # tasks do not read it
    history = read_history(store, read_part(store, "r2", "t0001"), "t0001")
    assert [(f.restore_id, f.iteration) for f in history.failures] == [("r1", 3), ("r2", 5)]


def test_a_task_reads_the_same_however_many_trials_there_are():
    sizes = []
    for trials in (2, 200):
        store = make(trials, CountingStore)
        start_night(store, flags=RESUME)
        store.asked.clear(), store.got.clear()
        part = read_part(store, "r1", "t0001")
        claim_next_attempt(store, part, "t0001", RunnerSettings(trainable="m:t"), log=print)
        sizes.append(
            (dict(store.asked), dict(store.got), len(store.get(layout.seed_key("r1", "t0001"))))
        )
    few, many = sizes
    assert few[:2] == many[:2]
    assert layout.plan_key("r1") not in many[1]
    assert abs(few[2] - many[2]) < 100
