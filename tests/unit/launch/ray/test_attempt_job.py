"""A trial as a Ray job: attach or submit, once; what each end means. The cluster is a fake."""

import logging
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    RayClusterError,
    RunnerDiedError,
    RunnerError,
    RunnerRefusedError,
)
from airflow_tune_restore.launch.ray.attempt_job import RayAttemptJob
from airflow_tune_restore.launch.ray.jobs_api import RayJob
from airflow_tune_restore.launch.ray.submission import DriverResources
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import ProgressTail, Result, RunnerProgress
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.ledger import read_failures
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import Attempt, leave_outcome, start_night
from tests.support.waiting import set_time

RUNNER = RunnerSettings(trainable="a:b", address="auto", reports=True)
OUTAGE = RayClusterError("Ray cluster http://head:8265: HTTP 500: No available agent.")


@pytest.fixture
def store(tmp_path):
    rows = [make_row("a2"), make_row("a3", status="ERROR", last_result_time=3.0)]
    return open_store(str(make_experiment(tmp_path / "exp", rows)))


@pytest.fixture
def strategy():
    return "per_trial"


@pytest.fixture
def plan(store, strategy):
    return start_night(store, strategy=strategy)


@pytest.fixture
def jobs(monkeypatch):
    waited: list[float] = []
    set_time(monkeypatch, "sleep", waited.append)
    fake = FakeJobs()
    fake.waited = waited
    return fake


@pytest.fixture
def task(store, plan, jobs):
    """Makes what each try of the trial's task makes."""

    def new(**changes: Any) -> RayAttemptJob:
        arguments = {
            "jobs": jobs,
            "store": store,
            "plan": plan,
            "trial_id": "a3",
            "settings": RUNNER,
            "runtime_env": {"pip": ["x"]},
            "env": {"MINE": "1"},
            "driver": DriverResources(),
            "poll_interval": 0.0,
            "log": logging.getLogger(__name__),
        }
        return RayAttemptJob(**{**arguments, **changes})

    return new


@pytest.fixture
def shown(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def beat(store, attempt: int = 1) -> None:
    store.put(layout.heartbeat_key("r1", "a3", attempt), b"{}")


def end(store, result: str, **fields: Any) -> None:
    leave_outcome(store, Attempt("r1", "a3"), result, **fields)


def test_an_attempt_is_submitted_once(task, jobs):
    attached = task().submit_or_attach()
    (posted,) = jobs.posted
    assert posted["submission_id"] == attached.submission_id
    assert posted["runtime_env"]["pip"] == ["x"]
    assert posted["runtime_env"]["env_vars"]["MINE"] == "1"
    assert attached.is_ours
    assert not task().submit_or_attach().is_ours
    assert len(jobs.posted) == 1


def test_twenty_that_come_first_start_one_job(task, jobs):
    barrier, done = threading.Barrier(20), []

    def start() -> None:
        one = task()
        barrier.wait()
        done.append(one.submit_or_attach())

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [attached.attempt for attached in done] == [1] * 20
    assert len(jobs.posted) == 1


def test_a_claim_without_a_job_is_carried_out(task, store, plan):
    claim_attempt(store, plan, "a3", RUNNER)
    assert task().submit_or_attach().attempt == 1
    assert task().records.numbers() == [1]


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", None])
def test_after_a_job_that_died_the_next_attempt_is_claimed(task, jobs, store, status):
    first = task().submit_or_attach()
    beat(store)
    jobs.output = "Traceback\nKilled\n"
    if status is None:
        jobs.jobs.clear()
    else:
        jobs.end(status, message="it was so", driver_exit_code=-9)
    words = "no longer has the job" if status is None else "Killed"
    with pytest.raises(RunnerDiedError, match=words):
        task().get_job_result(1, {"is_lost": status is None})
    recorded = task().records.exit(1)
    assert recorded.exit_code == (None if status is None else -9)
    again = task().submit_or_attach()
    assert again.attempt == 2
    assert again.submission_id != first.submission_id


@pytest.mark.parametrize("log", ["", "Runtime env is setting up.\n"])
def test_a_job_that_never_started_is_not_a_failed_attempt(task, jobs, store, log):
    task().submit_or_attach()
    jobs.output = log
    jobs.end("FAILED", message="Failed to set up runtime environment: A: 1")
    expected = (
        r"^Trial a3 of .*/exp was not started: .*FAILED. Failed to set up runtime environment"
    )
    with pytest.raises(RunnerError, match=expected) as failed:
        task().get_job_result(1, {})
    assert not isinstance(failed.value, RunnerDiedError)
    assert task().records.exit(1) is None
    assert read_failures(store, "r1", "a3") == ()
    assert task().submit_or_attach().attempt == 2


def test_a_job_that_was_lost_after_it_began_is_a_failed_attempt(task, jobs, store):
    task().submit_or_attach()
    beat(store)
    jobs.end("FAILED", message="Its node died")
    with pytest.raises(RunnerDiedError, match="Its node died"):
        task().get_job_result(1, {})
    assert task().records.exit(1).exit_code is None
    assert len(read_failures(store, "r1", "a3")) == 1


def test_a_job_that_is_being_stopped_is_waited_for(task, jobs, store, monkeypatch):
    one = task()
    one.submit_or_attach()
    beat(store)
    one.stop()
    polls = []
    find = jobs.find

    def later(name):
        polls.append(name)
        if len(polls) == 4:
            end(store, Result.INTERRUPTED)
            jobs.end("STOPPED")
        return find(name)

    monkeypatch.setattr(jobs, "find", later)
    assert task().submit_or_attach().attempt == 2
    assert len(polls) >= 4


def test_a_stopped_job_that_still_waits_for_resources_is_superseded_at_once(task, jobs, shown):
    """Ray 2.60 does not stop it: it stays PENDING for up to 15 minutes."""
    jobs.first_status = "PENDING"
    killed = task()
    first = killed.submit_or_attach()
    killed.stop()
    second = task().submit_or_attach()
    assert second.attempt == 2
    assert jobs.waited == []
    assert jobs.stopped == [first.submission_id]
    assert f"Ray job {first.submission_id} still waits for resources" in shown.text


def test_a_stopped_job_that_is_pending_and_ran_before_is_waited_for(task, jobs, store, monkeypatch):
    jobs.first_status = "PENDING"
    killed = task()
    killed.submit_or_attach()
    killed.stop()
    beat(store)
    set_time(monkeypatch, "sleep", lambda seconds: jobs.end("STOPPED"))
    assert task().submit_or_attach().attempt == 2
    assert {job.status for job in jobs.jobs.values()} == {"STOPPED", "PENDING"}


def test_a_job_that_waits_for_resources_is_attached_to(task, jobs):
    jobs.first_status = "PENDING"
    task().submit_or_attach()
    assert not task().submit_or_attach().is_ours
    assert len(jobs.posted) == 1


def test_a_task_that_attached_to_a_stopped_job_goes_on_with_the_next_attempt(task, jobs, store):
    one = task()
    one.submit_or_attach()
    one.stop()
    end(store, Result.INTERRUPTED)
    jobs.end("STOPPED")
    assert task().get_job_result(1, {}) is None


def test_a_job_that_was_stopped_elsewhere_has_its_outcome(task, jobs, store):
    task().submit_or_attach()
    end(store, Result.INTERRUPTED, iteration=4)
    jobs.end("STOPPED")
    assert task().get_job_result(1, {}).iteration == 4


def test_the_outcome_of_an_earlier_attempt_is_found(task, store, jobs, shown):
    task().submit_or_attach()
    assert task().find_final_outcome() is None
    end(store, Result.FINISHED, iteration=6)
    assert task().find_final_outcome().iteration == 6
    assert "attempt 1" in shown.text


@pytest.mark.parametrize("strategy", ["whole_experiment"])
@pytest.mark.parametrize("result", [Result.REFUSED, Result.FENCED])
def test_a_trial_of_a_refused_run_has_an_error_that_no_retry_cures(store, jobs, task, result):
    one = task()
    one.submit_or_attach()
    whole = Attempt("r1", layout.WHOLE_EXPERIMENT)
    leave_outcome(store, whole, result, error_type="InvalidInputError", error="no such module")
    jobs.end("FAILED")
    with pytest.raises(RunnerRefusedError, match="no such module"):
        one.get_job_result(1, {})


@pytest.mark.parametrize("strategy", ["whole_experiment"])
def test_a_trial_of_a_stopped_run_goes_on_in_the_next(store, jobs, task):
    one = task()
    one.submit_or_attach()
    leave_outcome(store, Attempt("r1", layout.WHOLE_EXPERIMENT), Result.INTERRUPTED)
    jobs.end("STOPPED")
    with pytest.raises(RunnerError, match="stopped before trial a3 had ended") as stopped:
        one.get_job_result(1, {})
    assert not isinstance(stopped.value, RunnerRefusedError)


def test_results_and_lines_are_shown_once_and_all(task, jobs, store, shown):
    lines = [RunnerProgress(trial_id="a3", iteration=i, metrics={}).to_line() for i in (1, 2, 3)]
    task().submit_or_attach()
    jobs.output = "\n".join(["setting up", lines[0], "training", *lines[1:], "the end"]) + "\n"
    end(store, Result.FINISHED)
    jobs.end()
    task().get_job_result(1, {"offset": jobs.output.index("training"), "seen": 2})
    assert "setting up" not in shown.text
    assert [f"iteration {i}" in shown.text for i in (1, 2, 3)] == [False, False, True]
    assert "training" in shown.text
    assert "the end" in shown.text


def test_the_last_lines_of_a_job_are_told_whether_they_were_shown_or_not(task, jobs):
    task().submit_or_attach()
    jobs.output = "setting up\n\nKilled\n"
    jobs.end("FAILED", driver_exit_code=-9)
    with pytest.raises(RunnerDiedError, match=r"setting up \| Killed"):
        task().get_job_result(1, {"offset": len(jobs.output)})


def test_a_head_that_has_just_started_is_asked_again(task, jobs, monkeypatch):
    errors, submit = [OUTAGE] * 3, jobs.submit

    def later(submission):
        if errors:
            raise errors.pop()
        return submit(submission)

    monkeypatch.setattr(jobs, "submit", later)
    task().submit_or_attach()
    assert len(jobs.posted) == 1


def test_a_cluster_that_answers_anything_is_an_outage_while_a_job_is_followed(
    task, jobs, store, monkeypatch, caplog
):
    one = task()
    attached = one.submit_or_attach()
    not_ray = InvalidInputError("http://head:8265 is not the dashboard of a Ray cluster")
    troubles, find = [OUTAGE, OUTAGE, not_ray, not_ray], jobs.find

    def later(name) -> RayJob:
        if troubles:
            raise troubles.pop()
        end(store, Result.FINISHED)
        jobs.end()
        return find(name)

    monkeypatch.setattr(jobs, "find", later)
    jobs.log_error = RayClusterError("HTTP 200 with Content-Encoding gzip")
    event = one.poll_until_complete(attached)
    assert one.get_job_result(1, event).result == Result.FINISHED
    assert not troubles
    assert caplog.text.count("if the job still runs, it is not affected") == 2


def test_a_job_is_stopped_once(task, jobs):
    one = task()
    attached = one.submit_or_attach()
    one.stop()
    one.stop()
    assert jobs.stopped == [attached.submission_id]


# the window


@pytest.fixture
def over(store, plan):
    """The plan of a restore whose window has ended two minutes ago, after an attempt was submitted."""
    end_of_window = datetime.now(UTC) - timedelta(minutes=2)
    return replace(plan, pause_at=end_of_window.isoformat())


def test_a_job_that_still_waits_at_the_end_of_the_window_is_stopped_and_the_trial_is_paused(
    task, jobs, over, store
):
    jobs.first_status = "PENDING"
    attached = task().submit_or_attach()
    late = task(plan=over)
    event = late.poll_until_complete(attached)
    assert jobs.stopped == [attached.submission_id]
    store.get(layout.stopped_key("r1", "a3", 1))
    with pytest.raises(RestorePausedError, match=r"Trial a3 of .* is not run any further"):
        late.get_job_result(1, event)
    assert read_failures(store, "r1", "a3") == ()
    with pytest.raises(RestorePausedError):
        task(plan=over).submit_or_attach()
    assert len(jobs.posted) == 1


def test_a_job_that_paused_is_not_run_again(task, jobs, store):
    attached = task().submit_or_attach()
    end(store, Result.PAUSED, iteration=5)
    jobs.end("FAILED", driver_exit_code=5)
    outcome = task().get_job_result(1, task().poll_until_complete(attached))
    assert (outcome.result, outcome.iteration) == (Result.PAUSED, 5)
    assert task().find_final_outcome() == outcome
    assert jobs.stopped == []


@pytest.mark.parametrize("strategy", ["whole_experiment"])
def test_a_trial_of_a_run_that_paused_is_paused_too(task, jobs, store):
    attached = task().submit_or_attach()
    report = RunnerProgress(trial_id="a3", iteration=4, metrics={})
    tail = ProgressTail(first=0, reports=[report])
    store.put(layout.progress_key("r1", "a3", 1), tail.to_json())
    leave_outcome(store, Attempt("r1", layout.WHOLE_EXPERIMENT), Result.PAUSED)
    jobs.end("FAILED", driver_exit_code=5)
    with pytest.raises(RestorePausedError, match=r"Trial a3 of .* was paused at iteration 4"):
        task().get_job_result(1, task().poll_until_complete(attached))
