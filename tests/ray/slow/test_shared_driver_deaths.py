"""A driver that trials share dies, freezes, or comes to the end of its window."""

import contextlib
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import (
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    EXIT_PAUSED,
)
from airflow_tune_restore.restore.commit import commit_restore
from tests.support.experiments.failed import save_rarely
from tests.support.ray.quiet import wait_until_quiet, without_beats
from tests.support.ray.real_restore import RESTORE_ID
from tests.support.ray.sharing import Sharing, multiply
from tests.support.waiting import eventually

EVERY = [1, 2, 3, 4, 5, 6]


def test_a_stopped_driver_saves_what_it_runs_and_leaves_the_rest_to_the_next(copied, gate):
    directory = copied("errored")
    multiply(directory, 5)
    sharing = Sharing(directory, "errored", env=gate.env)
    sharing.hand_over(*sharing.trial_ids)
    request, driver = sharing.start(concurrent=3)
    eventually(lambda: len(sharing.reached(4)) == 2)  # as many as the Ray has CPUs
    os.kill(driver.pid, signal.SIGTERM)
    ran = sharing.finish(request, driver)

    # the signal may end the process twice, but only after its outcome was recorded
    assert ran.code in (EXIT_INTERRUPTED, -signal.SIGTERM), ran.output
    assert (ran.outcome.result, ran.outcome.error_type) == ("interrupted", "Interrupted")
    begun = [t for t in sharing.trial_ids if sharing.has_begun(t)]
    assert len(begun) == 3
    for trial_id in begun:
        outcome = sharing.outcome(trial_id)
        assert (outcome.result, outcome.error_type) == ("interrupted", "Interrupted")
        assert outcome.error == "stopped; a snapshot was saved"
        sharing.trial = sharing.plan.trial(trial_id)
        trial, _ = sharing.snapshot()
        assert trial["status"] not in ("TERMINATED", "ERROR")
        assert outcome.iteration == (4 if trial_id in sharing.reached(4) else 3)
    rest = set(sharing.trial_ids) - set(begun)
    assert {attempt.trial_id for attempt in sharing.desk.read().to_run} == rest
    assert not any(sharing.exists(layout.snapshot_key(RESTORE_ID, t, 1)) for t in rest)
    assert _members(driver.pid) == []

    gate.open()
    ran = sharing.run()
    assert (ran.request.attempt, ran.code) == (2, EXIT_FINISHED), ran.output
    assert {t for t in sharing.trial_ids if sharing.outcome(t).result == "finished"} == rest
    assert sharing.desk.read().to_run == []


def test_of_a_killed_driver_the_begun_trials_run_alone_and_the_next_driver_runs_the_rest(
    copied, gate
):
    directory = copied("errored")
    multiply(directory, 4)
    sharing = Sharing(directory, "errored", env=gate.env)
    sharing.hand_over(*sharing.trial_ids)
    _, driver = sharing.start(concurrent=2)
    eventually(lambda: len(sharing.reached(4)) == 2)
    for pid in (driver.pid, *_members(driver.pid)):  # its Ray must not outlive it by a moment
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert driver.wait() < 0
    begun = [t for t in sharing.trial_ids if sharing.has_begun(t)]
    assert len(begun) == 2
    assert all(sharing.exists(layout.snapshot_key(RESTORE_ID, t, 1)) for t in begun)
    rest = set(sharing.trial_ids) - set(begun)
    assert not any(sharing.exists(layout.heartbeat_key(RESTORE_ID, t, 1)) for t in rest)
    assert [sharing.outcome(t) for t in sharing.trial_ids] == [None] * 4

    gate.open()
    ran = sharing.run()
    assert (ran.request.attempt, ran.code) == (2, EXIT_FINISHED), ran.output
    assert {t for t in sharing.trial_ids if sharing.outcome(t) is not None} == rest
    assert {sharing.outcome(t).result for t in rest} == {"finished"}

    ran = sharing.run_alone(begun[0])
    assert (ran.request.attempt, ran.code) == (2, EXIT_FINISHED), ran.output
    assert sharing.iterations(sharing.plan.trial(begun[0]).trial_dir) == EVERY
    commit_restore(sharing.store, RESTORE_ID)


def test_no_trial_has_failed_when_the_private_ray_of_its_driver_dies(copied, gate):
    directory = copied("errored")
    multiply(directory, 4)
    sharing = Sharing(directory, "errored", env=gate.env)
    sharing.hand_over(*sharing.trial_ids)
    _, driver = sharing.start(concurrent=2)
    eventually(lambda: len(sharing.reached(4)) == 2)
    (raylet,) = (pid for pid in _members(driver.pid) if _name(pid) == "raylet")
    os.kill(raylet, signal.SIGKILL)
    driver.wait()  # Ray may end the process itself, with exit code 1
    begun = [t for t in sharing.trial_ids if sharing.has_begun(t)]
    assert len(begun) == 2
    for outcome in filter(None, map(sharing.outcome, begun)):
        assert (outcome.result, outcome.cause) == ("interrupted", ""), outcome
        assert "the private Ray of this run has died" in outcome.error
    gate.open()
    ran = sharing.run_alone(begun[0])
    assert (ran.request.attempt, ran.code) == (2, EXIT_FINISHED), ran.output
    assert sharing.iterations(sharing.plan.trial(begun[0]).trial_dir) == EVERY


def _name(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def test_a_driver_that_thaws_when_one_of_its_trials_runs_elsewhere_writes_nothing_more(
    copied, gate
):
    directory = copied("errored")
    multiply(directory, 3)
    save_rarely(directory)
    sharing = Sharing(directory, "errored", env=gate.env)
    sharing.hand_over(*sharing.trial_ids)
    request, frozen = sharing.start(concurrent=2)
    eventually(lambda: len(sharing.reached(4)) == 2)
    wait_until_quiet(directory)  # but for its beats, it only waits
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        wait_until_quiet(directory)
        trial_id = sharing.reached(4)[0]
        gate.open()
        ran = sharing.run_alone(trial_id)
        assert ran.code == EXIT_FINISHED, ran.output
        before = without_beats(directory)
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    ran = sharing.finish(request, frozen)
    # Ray may end the process first, if its actors were lost meanwhile
    assert ran.code not in (EXIT_FINISHED, EXIT_INTERRUPTED), ran.output
    assert without_beats(directory) == before


def test_at_the_end_of_the_window_each_trial_is_paused_and_the_rest_waits(copied, gate):
    directory = copied("errored")
    multiply(directory, 4)
    sharing = Sharing(directory, "errored", env=gate.env)
    sharing.hand_over(*sharing.trial_ids)
    request, driver = sharing.start(
        concurrent=2, pause_at=(datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    )
    ran = sharing.finish(request, driver)
    assert (ran.code, ran.outcome.result) == (EXIT_PAUSED, "paused"), ran.output
    begun = [t for t in sharing.trial_ids if sharing.has_begun(t)]
    assert len(begun) == 2
    for trial_id in begun:
        outcome = sharing.outcome(trial_id)
        assert (outcome.result, outcome.error_type) == ("paused", "Paused")
        sharing.trial = sharing.plan.trial(trial_id)
        reached = outcome.iteration
        if reached > 3:  # else the machine was too slow for that
            assert sharing.snapshot()[0]["status"] == "PAUSED"
            assert sharing.iterations() == EVERY[:reached]
    assert len(sharing.desk.read().to_run) == 2
