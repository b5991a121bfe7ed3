"""Scripts that failed once, made smaller. The message of a failing campaign has its script as code."""

import pytest

from airflow_tune_restore.protocol import attempts, checkpoints, lease
from airflow_tune_restore.protocol.kept_lease import _KeptLease, look_until_fresh
from airflow_tune_restore.restore import (
    abandoned,
    claim,
    commit,
    committed_attempts,
    start,
)
from airflow_tune_restore.runner.heartbeat import Heartbeat
from airflow_tune_restore.runner.tune import result_files
from tests.simulation.airflow import TRIES
from tests.simulation.campaign import simulating
from tests.simulation.driver import DriverLife
from tests.simulation.faults import Fault, FaultKind, Storm
from tests.simulation.night import Command, Meddling, Night, Script, simulate
from tests.simulation.planting import Edit, Plant
from tests.simulation.story import tell


def _silenced(kind: FaultKind) -> Fault:
    """Return the fault that kills the first runner from now on, at its first heartbeat."""
    return Fault(kind, "runner", 1, "create", "*/attempts/*/heartbeat.json")


SCRIPTS = {
    "a driver that starts after a commit has the newest state, though a clock is ahead": Script(
        seed=5477970000238,
        sweep="one",
        clocks=(18000.0, 0.0, 0.0, 0.0),
        nights=(
            Night(starts=0.0, meddlings=(Meddling("time out unheard", "", 1.0),)),
            Night(starts=600.0, meddlings=(Meddling("time out unheard", "", 0.0),)),
        ),
        faults=(Fault(FaultKind.DIES_INSIDE, "runner", 2, "put", "*/checkpoint_*"),),
        drivers=(DriverLife(starts=18517.67573885125, ends=23517.67573885125, pause=3.0),),
    ),
    "a seed that is written late by a second plan does not end the restore": Script(
        seed=20,
        sweep="small",
        nights=(Night(starts=0.0, meddlings=(Meddling("twice", "plan", 0.1),)),),
        faults=(Fault(FaultKind.LATE, "plan", 3, "put", "*/seed.json", 7.0),),
    ),
    "an undo whose first delete loses its answer is finished by the next night": Script(
        seed=127,
        sweep="whole-broken",
        faults=(Fault(FaultKind.ANSWER_LOST, "undo", 1, "delete"),),
        commands=(Command("undo", 35.0),),
    ),
    "a claim made while the lease is listed is not passed over": Script(
        seed=0,
        sweep="slow-whole",
        nights=(Night(starts=0.0), Night(starts=1.0)),
        faults=(Fault(FaultKind.SLOW, "plan", 1, "list", ".tune_restore/lease", 30.0),),
    ),
    "a second try of plan that fails leaves the lease to the first": Script(
        seed=511554,
        sweep="small",
        nights=(Night(starts=0.0, meddlings=(Meddling("twice", "plan", 4.0),)),),
        faults=(Fault(FaultKind.REFUSED, "plan", 4, "get", "experiment_state-*"),),
    ),
    "a commit that was frozen does not bring back what was undone meanwhile": Script(
        seed=0,
        sweep="small",
        nights=(Night(starts=0.0), Night(starts=1200.0)),
        faults=(Fault(FaultKind.FREEZES, "commit", 1, "get", "experiment_state-*", 5000.0),),
        commands=(Command("undo", 3000.0),),
    ),
    "a restore that dies while a plan is frozen is settled before that plan goes on": Script(
        seed=900394,
        sweep="small",
        nights=(Night(starts=3600.0), Night(starts=3800.0)),
        faults=(
            Fault(FaultKind.FREEZES, "runner", 1, "put", "*/result.json", 156.0),
            Fault(FaultKind.FREEZES, "plan", 1, "create", "*/selftest-*", 300.0),
        ),
    ),
    "a runner that thaws in a save does not record trials that its successor trains": Script(
        seed=5970930000286,
        sweep="slow-whole",
        ttl_seconds=900.0,
        pace=2.0,
        faults=(Fault(FaultKind.FREEZES, "runner", 3, "put", "*/searcher/*", 200.0),),
    ),
    "a runner that thaws in its preparation does not drop rows of its successor": Script(
        seed=11180084173,
        sweep="whole",
        ttl_seconds=900.0,
        pace=2.0,
        faults=(Fault(FaultKind.FREEZES, "runner", 1, "put", "*/start-*.json", 200.0),),
    ),
    "an attempt of a run of all trials records no failure of the one before it": Script(
        seed=492117,
        sweep="whole-broken",
        ttl_seconds=120.0,
        pace=0.2,
        tail=0.05,
        faults=(
            Fault(FaultKind.SLOW, "runner", 1, "put", "*/attempts/*/heartbeat.json", 29.0),
            Fault(FaultKind.DIES_BEFORE, "plan", 1),
        ),
    ),
    "no trial is run after the commit of its restore, which has not released its lease": Script(
        seed=11320069214,
        sweep="broken",
        pace=2.0,
        nights=(Night(starts=0.0, meddlings=(Meddling("clear", "trial", 390.0),)),),
        storms=(Storm(begins=242.0, seconds=175.0, share=1.0),),
    ),
    "a commit that freezes while it waits for a runner does not take it for dead": Script(
        seed=471198,
        sweep="one",
        pace=2.0,
        nights=(Night(starts=0.0, meddlings=(Meddling("twice", "trial", 260.0),)),),
        faults=(
            *(_silenced(FaultKind.DIES_AFTER),) * TRIES,
            Fault(FaultKind.FREEZES, "commit", 19, seconds=31.0),
        ),
    ),
    "a runner that a commit took for dead ends, and is committed as it ended": Script(
        seed=1,
        sweep="one",
        nights=(Night(starts=0.0, meddlings=(Meddling("twice", "trial", 238.0),)),),
        faults=(
            *(_silenced(FaultKind.DIES_BEFORE),) * TRIES,
            Fault(FaultKind.FREEZES, "runner", 2, "put", "*/attempts/*/state.json", 26.0),
            Fault(FaultKind.SLOW, "commit", 1, "get", "*ledger*", 60.0),
        ),
    ),
    "the rows of a trial that a dead restore had restarted are dropped": Script(
        seed=1,
        sweep="restarted",
        pace=0.2,
        nights=(Night(starts=0.0, meddlings=(Meddling("time out", "", 20.0),)),),
    ),
    "a commit that freezes in a look at its lease looks again before it writes": Script(
        seed=925,
        sweep="search-whole",
        ttl_seconds=120.0,
        pace=2.0,
        nights=(Night(starts=0.0), Night(starts=615.0)),
        faults=(Fault(FaultKind.FREEZES, "commit", 2, "list", ".tune_restore/lease", 875.0),),
        commands=(Command("undo", 874.0),),
    ),
    "a commit has the first snapshot of a runner that saved it while the commit waited": Script(
        seed=1,
        sweep="one",
        nights=(Night(starts=0.0, meddlings=(Meddling("twice", "trial", 210.0),)),),
        faults=(_silenced(FaultKind.DIES_AFTER),) * TRIES,
    ),
    "of two tries that commit what a restore left, the second finishes what the first began": Script(
        seed=1,
        sweep="one",
        nights=(Night(starts=0.0), Night(1200.0, (Meddling("twice", "plan", 60.3),))),
        faults=(
            *(Fault(FaultKind.DIES_BEFORE, "commit", 1),) * TRIES,
            Fault(FaultKind.FREEZES, "plan", 2, "get", "*/commit.json", 5.0),
            Fault(FaultKind.DIES_BEFORE, "plan", 1, "put", "*/commit.json"),
        ),
    ),
    "a trial that a driver began during a look for drivers stays with it": Script(
        seed=90040000004,
        sweep="shared",
        tail=0.05,
    ),
    "a checkpoint that the store writes late is not one of the next attempt": Script(
        seed=4242420005490,
        sweep="shared-many",
        pace=0.2,
        faults=(
            Fault(FaultKind.LATE, "runner", 5, "put", "*/checkpoint_*", 13.0),
            Fault(FaultKind.REFUSED, "runner", 3, "create", "*/heartbeat.json"),
        ),
    ),
    "a driver that nobody hears for a minute loses its trials, even one that it has just begun": Script(
        seed=4242420007564,
        sweep="shared-broken",
        ttl_seconds=120.0,
        faults=(Fault(FaultKind.CUT_OFF, "runner", 2, "list", "*/trials/*/attempts", 60.0),),
    ),
}
"""By what holds now."""

COMMIT_UNSEEN = (
    Edit(Heartbeat._read_lease, "if is_listed(", "if False and is_listed("),
    Edit(committed_attempts.settle_late_attempts, "if over is None", "if True"),
)
"""A runner does not look for a commit, and the commit does not wait until it has."""

LEASE_TAKEN_AWAY = (
    Edit(start.release_unstarted, "not is_listed(store, layout.plan_key(restore_id))", "True"),
    Edit(abandoned._has_uncommitted_work, "    try:\n", "    return False\n    try:\n"),
)
"""A try of plan that fails releases the lease that it shares, and what has no lease is not settled."""

MISTAKES = {
    "a driver that starts after a commit has the newest state, though a clock is ahead": (
        Edit(
            commit._start_time,
            "start if math.isfinite(start) else store.now().timestamp()",
            "max(start, store.now().timestamp())",
        ),
    ),
    "a claim made while the lease is listed is not passed over": (
        Edit(lease.acquire, "if not is_listed and ", "if False and "),
    ),
    "a seed that is written late by a second plan does not end the restore": LEASE_TAKEN_AWAY,
    "a second try of plan that fails leaves the lease to the first": LEASE_TAKEN_AWAY,
    "a restore that dies while a plan is frozen is settled before that plan goes on": (
        Edit(
            abandoned.commit_abandoned,
            "_left_behind(store, restore_id, before=held.epoch)",
            "{} if watch is None else _left_behind(store, restore_id, before=held.epoch)",
        ),
    ),
    "a runner that thaws in a save does not record trials that its successor trains": (
        Edit(Heartbeat.check_lately_or_end, "look_until_fresh", "(lambda *_: None)"),
    ),
    "a runner that thaws in its preparation does not drop rows of its successor": (
        Edit(Heartbeat.check_lately_or_end, "look_until_fresh", "(lambda *_: None)"),
    ),
    "an attempt of a run of all trials records no failure of the one before it": (
        Edit(attempts.find_ended, "compress(units, for_each(has_ended, units))", "()"),
    ),
    "no trial is run after the commit of its restore, which has not released its lease": (
        Edit(claim.claim_attempt, "_refuse_if_committed(store, plan, unit)", "pass"),
    ),
    "a commit that freezes while it waits for a runner does not take it for dead": (
        Edit(attempts.wait_until_all_over, "= began - changed_at", "= monotonic() - changed_at"),
        *COMMIT_UNSEEN,
    ),
    "a runner that a commit took for dead ends, and is committed as it ended": COMMIT_UNSEEN,
    "the rows of a trial that a dead restore had restarted are dropped": (
        Edit(
            result_files._rows_at_start,
            "request.new_trial_id or request.trial_id",
            "request.trial_id",
        ),
    ),
    "a commit that was frozen does not bring back what was undone meanwhile": (
        Edit(_KeptLease.check, "look_until_fresh", "(lambda *_: None)"),
    ),
    "a commit that freezes in a look at its lease looks again before it writes": (
        Edit(look_until_fresh, "    look()\n", "    return look()\n"),
    ),
    "a commit has the first snapshot of a runner that saved it while the commit waited": (
        Edit(
            committed_attempts.settle_late_attempts,
            "    records.list_again()\n    if over is None",
            "    if over is None",
        ),
    ),
    "of two tries that commit what a restore left, the second finishes what the first began": (
        Edit(commit._begin, "if record is None or not _has_state(store, record):", "if True:"),
    ),
    "a checkpoint that the store writes late is not one of the next attempt": (
        Edit(checkpoints.last_number, " + attempt - 1", ""),
    ),
}
"""The mistakes that random worlds show too seldom to be among the plants."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_world_that_failed_once_breaks_no_invariant(name):
    script = SCRIPTS[name]
    with simulating():
        if simulate(script).failure:
            pytest.fail(tell(script), pytrace=False)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_world_still_shows_its_mistake(name):
    plant = Plant(name, f"Not: {name}.", "I", MISTAKES[name])
    with simulating(), plant.planted():
        assert simulate(SCRIPTS[name]).failure.startswith("InvariantBroken")
