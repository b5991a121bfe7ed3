"""The run of a sweep's own script, as other processes see it: its lease, its plan, and what it leaves."""

from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import (
    LeaseHeldError,
    RecordUnreadableError,
    StateChangedError,
)
from airflow_tune_restore.experiments.experiment import StateFile
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.names import is_sweep
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.sweep import (
    OwnSweep,
    end_sweep,
    find_state,
    find_sweep,
    start_sweep,
)
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_outcome

SETTINGS = RunnerSettings(trainable="a:b", entrypoint="python sweep.py")
HUNG = make_row("hung", status="RUNNING")


@pytest.fixture
def store():
    return MemoryStore()


def start(store, base="night", ttl_seconds=900.0):
    return start_sweep(store, base, holder="DAG d, run r", ttl_seconds=ttl_seconds)


def claim(store, plan):
    return claim_attempt(store, plan, layout.WHOLE_EXPERIMENT, SETTINGS)


def test_it_holds_the_lease_under_an_id_of_its_own_and_requests_its_script(store):
    plan = start(store)
    assert is_sweep(plan.restore_id)
    assert read_plan(store, plan.restore_id) == plan
    assert plan.units == [layout.WHOLE_EXPERIMENT]
    assert (
        lease.check_held(store, plan.restore_id).name == f"sweep {plan.restore_id} of DAG d, run r"
    )
    request = claim(store, plan)
    assert (request.action, request.entrypoint) == (TrialAction.SWEEP, "python sweep.py")
    assert request.trainable == ""


def test_the_caller_finds_its_sweep_again_and_counts_its_runs(store):
    assert find_sweep(store, "night") == OwnSweep(None, None)
    first = start(store).restore_id
    assert find_sweep(store, "night") == OwnSweep(first, first)
    end_sweep(store, first)
    assert find_sweep(store, "night") == OwnSweep(None, first)
    second = start(store).restore_id
    assert (second, find_sweep(store, "night")) == (f"{first}-2", OwnSweep(second, second))
    end_sweep(store, second)
    assert find_sweep(store, "night") == OwnSweep(None, second)


def test_an_experiment_with_a_state_is_never_started(store):
    store.put(STATE_NAME, make_state([HUNG]))
    with pytest.raises(StateChangedError, match=STATE_NAME):
        start(store)
    assert lease.unreleased(store, but="") == []


def test_a_state_without_a_trial_is_none(store):
    store.put(STATE_NAME, make_state([]))
    assert find_state(store) == ""
    start(store)


def test_another_sweep_is_refused_while_it_runs(store):
    start(store)
    with pytest.raises(
        LeaseHeldError, match=r"is the running sweep of DAG d, run r \(restore sweep-"
    ):
        start(store, "another")


def test_a_dead_sweep_leaves_nothing_to_commit_and_the_next_restore_releases_its_lease(store):
    dead = start(store, ttl_seconds=0)
    leave_outcome(store, claim(store, dead), "failed")
    store.put(STATE_NAME, make_state([HUNG]))
    prepared = prepare_restore(store, "r1", PrepareOptions(stale_after=timedelta(0)))
    plan, settled = start_restore(prepared, holder="test", ttl_seconds=900)
    assert [trial.trial_id for trial in plan.to_run] == ["hung"]
    assert settled is None
    assert [held.restore_id for held in lease.unreleased(store, but="")] == ["r1"]
    names = [entry.name for entry in store.list_dir(layout.restore_dir(dead.restore_id))]
    assert "commit.json" not in names


def test_a_sweep_that_has_ended_is_no_work_that_was_left_behind(store):
    ended = start(store)
    leave_outcome(store, claim(store, ended), "finished")
    end_sweep(store, ended.restore_id)
    store.put(STATE_NAME, make_state([make_row("done")]))
    nothing = prepare_restore(store, "r1", PrepareOptions(stale_after=timedelta(0)))
    assert isinstance(nothing, str)
    assert read_experiment(store).state_file.name == STATE_NAME


def test_a_plan_of_a_sweep_with_a_state_is_not_valid(store):
    plan = start(store)
    forged = replace(plan, base=StateFile(name=STATE_NAME, sha256="0" * 64, size_bytes=1))
    store.put(layout.plan_key(plan.restore_id), forged.to_json())
    with pytest.raises(RecordUnreadableError, match="plan of a sweep"):
        read_plan(store, plan.restore_id)
