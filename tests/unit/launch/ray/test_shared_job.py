"""A trial in the Ray job of a driver that others share: one job for all, and what each end means."""

import logging
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_tune_restore.exceptions import RunnerError
from airflow_tune_restore.launch.ray import shared_job
from airflow_tune_restore.launch.ray.shared_job import SharedDriverJob
from airflow_tune_restore.launch.ray.submission import DriverResources
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.request import ProgressTail, Result, RunnerProgress
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.restore.shared_driver import MOST_BROKEN
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import Attempt, beat, leave_outcome, start_night
from tests.support.waiting import set_time

RUNNER = RunnerSettings(trainable="a:b", address="auto", reports=True, at_once=3)
DRIVER = layout.SHARED_DRIVER
TRIAL = Attempt("r1", "a3")


@pytest.fixture
def store(tmp_path):
    rows = [make_row(f"a{number}", status="ERROR") for number in range(1, 6)]
    return open_store(str(make_experiment(tmp_path / "exp", rows)))


@pytest.fixture
def plan(store):
    return start_night(store, strategy="shared_driver")


@pytest.fixture
def jobs(monkeypatch):
    set_time(monkeypatch, "sleep", lambda seconds: None)
    return FakeJobs()


@pytest.fixture
def task(store, plan, jobs):
    """Makes what each try of a trial's task makes."""

    def new(trial_id: str = "a3", **changes: Any) -> SharedDriverJob:
        arguments = {
            "jobs": jobs,
            "store": store,
            "plan": plan,
            "trial_id": trial_id,
            "settings": RUNNER,
            "runtime_env": {},
            "env": {},
            "driver": DriverResources(),
            "poll_interval": 0.0,
            "log": logging.getLogger(__name__),
        }
        return SharedDriverJob(**{**arguments, **changes})

    return new


@pytest.fixture
def followed(task):
    """Returns the job of a task that has handed its trial over and attached."""

    def follow(trial_id: str = "a3", **changes: Any) -> SharedDriverJob:
        one = task(trial_id, **changes)
        assert one.hand_over()
        one.submit_or_attach()
        return one

    return follow


@pytest.fixture
def shown(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_however_many_trials_come_first_they_have_one_job(task, jobs, store):
    names = [f"a{number}" for number in range(1, 6)] * 4
    barrier, done = threading.Barrier(len(names)), []

    def start(name: str) -> None:
        one = task(name)
        barrier.wait()
        assert one.hand_over()
        done.append(one.submit_or_attach())

    threads = [threading.Thread(target=start, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (posted,) = jobs.posted
    assert posted["submission_id"].startswith("tune-restore-shared-1-")
    assert posted["entrypoint_memory"] == 512 * 1024**2
    assert {attached.submission_id for attached in done} == {posted["submission_id"]}
    found = Desk(store, "r1").read().to_run
    assert sorted(attempt.trial_id for attempt in found) == sorted(set(names))


def test_the_driver_is_asked_for_the_number_at_once(followed):
    request = followed().records.request(1)
    assert (request.trial_id, request.concurrent, request.is_shared) == (DRIVER, 3, False)


def test_one_task_shows_the_output_of_the_job_and_the_others_say_where(task, jobs, shown):
    shows = []
    for name in ("a1", "a2", "a3"):
        one = task(name)
        one.hand_over()
        shows.append(one.shows_output(one.submit_or_attach()))
    assert shows == [True, False, False]
    assert shown.text.count("Shared driver 1 has it.") == 2
    assert shown.text.count('strategy="per_trial"') == 3


def test_a_job_that_waits_for_resources_is_alive(followed, task, jobs):
    jobs.first_status = "PENDING"
    followed("a1")
    one = task("a2")
    assert one.hand_over()
    assert not one.submit_or_attach().is_ours
    assert len(jobs.posted) == 1


def test_it_waits_for_the_outcome_of_its_trial_and_not_for_the_job(followed, store, shown):
    one = followed()
    report = RunnerProgress(trial_id="a3", iteration=4, metrics={})
    tail = ProgressTail(first=0, reports=[report], lines=["one", "it said this"])
    store.put(layout.progress_key("r1", "a3", 1), tail.to_json())
    leave_outcome(store, TRIAL, Result.FINISHED, iteration=6)
    attached = one.submit_or_attach()
    event = one.poll_until_complete(attached)
    assert one.get_job_result(attached.attempt, {**event, "lines": 1}).iteration == 6
    assert "iteration 4" in shown.text
    assert [line in shown.messages for line in ("one", "it said this")] == [False, True]


@pytest.mark.parametrize(
    ("result", "fields"),
    [
        (Result.FAILED, {}),
        (Result.REFUSED, {}),
        (Result.PAUSED, {}),
        (Result.INTERRUPTED, {"cause": "no_room"}),
    ],
)
def test_such_an_outcome_is_judged_by_the_task(followed, store, result, fields):
    one = followed()
    leave_outcome(store, TRIAL, result, **fields)
    assert one.get_job_result(1, {}).result == result


def test_after_the_death_of_the_job_a_trial_it_had_begun_runs_alone(
    followed, task, jobs, store, shown
):
    one = followed()
    beat(store, Attempt("r1", DRIVER))
    beat(store, TRIAL)
    jobs.end("FAILED", driver_exit_code=-9)
    assert one.get_job_result(1, {}) is None
    assert "goes on in a driver of its own: its shared driver died while it ran" in shown.text
    assert not task().hand_over()
    assert len(jobs.posted) == 1


def test_after_the_death_of_the_job_a_trial_it_had_not_begun_goes_to_the_next(
    followed, task, jobs, store
):
    one = followed()
    beat(store, Attempt("r1", DRIVER))
    jobs.end("FAILED", driver_exit_code=-9)
    assert one.get_job_result(1, {}) is None
    again = task()
    assert again.hand_over()
    assert again.submit_or_attach().attempt == 2
    assert [attempt.trial_id for attempt in Desk(store, "r1").read().to_run] == ["a3"]
    assert len(jobs.posted) == 2


def test_a_trial_that_comes_when_the_driver_has_just_ended_goes_to_the_next(followed, jobs, store):
    one = followed()
    beat(store, Attempt("r1", DRIVER))
    leave_outcome(store, Attempt("r1", DRIVER), Result.FINISHED)
    jobs.end()
    assert one.get_job_result(1, {}) is None
    assert followed().submit_or_attach().attempt == 2


def test_a_trial_that_was_not_begun_by_some_broken_drivers_runs_alone(followed, task, jobs, store):
    for number in range(1, MOST_BROKEN + 1):
        one = followed()
        beat(store, Attempt("r1", DRIVER, number))
        jobs.end("FAILED", driver_exit_code=-9)
        assert one.get_job_result(number, {}) is None
    assert not task().hand_over()
    assert len(jobs.posted) == MOST_BROKEN


def test_a_job_of_the_driver_that_never_started_fails_the_tasks_that_wait(followed, jobs, store):
    one = followed()
    jobs.end("FAILED", message="Failed to set up runtime environment: A: 1")
    with pytest.raises(
        RunnerError, match=r"which trial a3 waited for, was not started: .*runtime environment"
    ):
        one.get_job_result(1, {})
    # a retry of the task submits the next
    assert followed().submit_or_attach().attempt == 2


def test_a_trial_whose_driver_was_stopped_as_a_whole_runs_alone(followed, task, jobs, store):
    one = followed()
    beat(store, Attempt("r1", DRIVER))
    leave_outcome(store, TRIAL, Result.INTERRUPTED)
    jobs.end("STOPPED")
    assert one.get_job_result(1, {}) is None
    assert not task().hand_over()


def test_a_killed_task_stops_its_trial_alone_and_has_its_outcome(followed, jobs, store):
    one = followed()
    one.stop()
    one.stop()
    (stopped,) = Desk(store, "r1").read().to_stop
    assert (stopped.trial_id, stopped.attempt) == ("a3", 1)
    assert jobs.stopped == []
    leave_outcome(store, TRIAL, Result.INTERRUPTED, iteration=3)
    assert one.get_job_result(1, {}).iteration == 3


def test_a_kill_before_the_job_is_followed_reaches_the_driver(task, jobs, store):
    one = task()
    one.hand_over()
    one.stop()
    one.stop()
    assert [attempt.trial_id for attempt in Desk(store, "r1").read().to_stop] == ["a3"]


def test_a_task_that_waited_too_long_stops_its_trial_alone(followed, task, jobs, store):
    followed()
    again = task()
    assert again.is_followed
    again.stop_newest()
    assert [attempt.trial_id for attempt in Desk(store, "r1").read().to_stop] == ["a3"]
    assert jobs.stopped == []


def test_a_later_try_waits_for_no_driver_that_does_not_run_its_trial(
    followed, task, jobs, store, monkeypatch
):
    """Its worker died. Meanwhile the driver that had begun the trial died, and another one lives."""
    followed()
    beat(store, TRIAL)
    monkeypatch.setattr(shared_job, "QUIET_SECONDS", 0.0)
    assert not task().hand_over()


def test_a_later_try_attaches_to_the_driver_that_runs_its_trial(
    followed, task, jobs, store, monkeypatch
):
    followed()
    beats = iter(range(100))

    def beat_again(_seconds: float) -> None:
        store.put(layout.heartbeat_key("r1", "a3", 1), str(next(beats)).encode())

    beat_again(0)
    set_time(monkeypatch, "sleep", beat_again)
    again = task()
    assert again.hand_over()
    assert not again.submit_or_attach().is_ours


def test_at_the_end_of_the_window_the_whole_job_is_stopped_and_the_trial_is_paused(
    followed, task, jobs, plan, store
):
    jobs.first_status = "PENDING"
    followed()
    over = replace(plan, pause_at=(datetime.now(UTC) - timedelta(minutes=2)).isoformat())
    late = task(plan=over)
    attached = late._attach_to(1)
    event = late.poll_until_complete(attached)
    assert jobs.stopped == [attached.submission_id]
    store.get(layout.stopped_key("r1", DRIVER, 1))
    assert late.get_job_result(1, event) is None
    with pytest.raises(RestorePausedError, match=r"Trial a3 of .* is not run any further"):
        late.hand_over()
    with pytest.raises(RestorePausedError, match=r"Trial a3 of .* is not run any further"):
        late.submit_or_attach()
    assert len(jobs.posted) == 1
