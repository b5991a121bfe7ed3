"""What attempts are sized by: what was recorded, until a runner knows better."""

import json

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.protocol.resources import (
    describe,
    describe_bundles,
    is_enough,
    most_of,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt, read_resources
from airflow_tune_restore.restore.ledger import read_failures
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_outcome, start_night

GIB = 1024.0**3


@pytest.fixture
def store():
    made = MemoryStore()
    made.put(STATE_NAME, make_state([make_row("bad", status="ERROR", error=True)]))
    return made


@pytest.fixture
def plan(store):
    return start_night(store)


def claim(store, plan, **more):
    return claim_attempt(store, plan, "bad", RunnerSettings(trainable="m:train"), **more)


def too_small(store, plan, **needed):
    """Claim an attempt whose place is too small, and leave what its runner needs."""
    leave_outcome(store, claim(store, plan), "interrupted", resources=needed)


def test_what_was_recorded_is_asked_for_until_a_runner_knows_better(store, plan):
    assert claim(store, plan).resources == plan.trial("bad").resources == {"CPU": 1.0}
    too_small(store, plan, CPU=3.0, GPU=1.0)
    assert claim(store, plan).resources == {"CPU": 3.0, "GPU": 1.0}
    # a pod that was lost afterwards does not make it forget
    assert claim(store, plan, memory=GIB).resources == {"CPU": 3.0, "GPU": 1.0, "memory": GIB}


def test_no_less_memory_than_the_trainable_asks_for(store, plan):
    too_small(store, plan, memory=8 * GIB)
    assert claim(store, plan, memory=2 * GIB).resources["memory"] == 8 * GIB
    assert claim(store, plan, memory=16 * GIB).resources["memory"] == 16 * GIB


def test_the_run_of_all_asks_for_many_of_the_largest(store, plan):
    request = claim_attempt(
        store, plan, layout.WHOLE_EXPERIMENT, RunnerSettings(trainable="m:train", concurrent=4)
    )
    assert request.resources == {"CPU": 4.0}
    leave_outcome(store, request, "interrupted", resources={"CPU": 2.0, "GPU": 0.5})
    request = claim_attempt(
        store, plan, layout.WHOLE_EXPERIMENT, RunnerSettings(trainable="m:train", concurrent=4)
    )
    assert request.resources == {"CPU": 8.0, "GPU": 2.0}


def test_a_place_that_was_too_small_is_no_failed_attempt(store, plan):
    too_small(store, plan, CPU=3.0)
    assert read_failures(store, plan.restore_id, "bad") == ()


def test_one_that_asks_for_more_each_time_is_given_no_third_place(store, plan):
    too_small(store, plan, CPU=3.0)
    too_small(store, plan, CPU=5.0)
    with pytest.raises(
        InvalidInputError,
        match=r"Trial bad of .* requested CPU 3 and got it, and then requested CPU 5\. Let its",
    ):
        read_resources(store, plan, "bad")


def test_what_an_outcome_holds_instead_of_amounts_sizes_nothing():
    given = {"CPU": 2, "GPU": -1, "a": "many", "b": None, "c": float("inf"), "d": True, "e": 0}
    outcome = RunnerOutcome(
        restore_id="r", trial_id="t", attempt=1, result="interrupted", status="",
        final_trial_id="t", resources=given,
    )  # fmt: skip
    assert RunnerOutcome.from_json(outcome.to_json()).resources == {"CPU": 2.0}
    older = json.loads(outcome.to_json())
    del older["resources"]
    assert RunnerOutcome.from_json(json.dumps(older)).resources == {}


@pytest.mark.parametrize(
    ("given", "needed", "enough"),
    [
        ({}, {"CPU": 1.0}, True),  # a pod has one CPU at least
        ({"CPU": 0.5}, {"CPU": 1.0}, True),
        ({"CPU": 1.5}, {"CPU": 2.0}, True),  # and whole ones of them
        ({"CPU": 2.0}, {"CPU": 2.5}, False),
        ({"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 1.0}, True),
        ({"CPU": 1.0}, {"GPU": 0.1}, False),
        ({"CPU": 1.0}, {"memory": 1.0}, False),
        ({"memory": 2 * GIB}, {"memory": 2 * GIB}, True),
        ({"memory": 1.5}, {"memory": 2.0}, False),
        ({"CPU": 4.0, "special": 1.0}, {"CPU": 1.0}, True),
    ],
)
def test_whether_a_place_made_for_one_holds_the_other(given, needed, enough):
    assert is_enough(given, needed) is enough


def test_resources_in_words():
    assert describe({"memory": 8 * GIB, "GPU": 0.5, "CPU": 3.0}) == "CPU 3, GPU 0.5, memory 8.0 GiB"
    assert describe({}) == "nothing"
    assert describe_bundles([{"CPU": 1.0}], "PACK") == "CPU 1"
    bundles = [{"GPU": 1.0}, {"CPU": 2.0}, {"CPU": 2.0}]
    assert describe_bundles(bundles, "SPREAD") == "GPU 1 and 2 bundles of CPU 2 (SPREAD)"
    assert most_of([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 2.0}]) == {"CPU": 2.0, "GPU": 1.0}
