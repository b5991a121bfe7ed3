"""The thread that submits, follows and stops the jobs of an executor."""

import json
import logging
from types import SimpleNamespace

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.executors import job_follower, patient_ray_jobs
from airflow_tune_restore.executors.job_follower import Change, JobFollower, Submission
from airflow_tune_restore.executors.workload_package import build_revoked_package, package_name
from airflow_tune_restore.launch.ray import jobs_api
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.jobs_api import ABSENT_LISTS, JobState
from tests.support.ray.jobs_server import TOKEN, jobs_server
from tests.support.waiting import eventually

JOB = "airflow-1"


@pytest.fixture
def server():
    with jobs_server() as running:
        yield running


@pytest.fixture
def place(server, monkeypatch):
    """The cluster that a follower connects to: a test may change its token."""
    monkeypatch.setattr(patient_ray_jobs, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(job_follower, "DELETE_SECONDS", 0.1)
    monkeypatch.setattr(patient_ray_jobs, "LONGEST_PAUSE_SECONDS", 0.02)
    return SimpleNamespace(token=TOKEN, address=server.address)


@pytest.fixture
def follow(place):
    started = []

    def start(**options):
        arguments = {"poll_seconds": 0.02, "delete_jobs": True, **options}
        follower = JobFollower(
            lambda: Cluster(address=place.address, token=place.token),
            log=logging.getLogger("follower"),
            **arguments,
        )
        follower.start()
        started.append(follower)
        return follower

    yield start
    for follower in started:
        follower.close()


def submission(job_id=JOB):
    return Submission({"submission_id": job_id, "entrypoint": "x"}, b"workload")


def next_change(follower):
    return eventually(lambda: next(follower.changes(), None))


def test_a_job_is_submitted_with_its_workload_and_followed_to_its_end(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: server.jobs)
    assert server.packages == {package_name(JOB): b"workload"}
    server.jobs[JOB]["status"] = "RUNNING"
    assert next_change(follower) == Change(JOB, is_over=False)
    server.end_job(JOB)
    assert next_change(follower) == Change(JOB, is_over=True)
    eventually(lambda: server.deleted == [JOB])


def test_a_job_that_failed_is_kept_and_its_last_lines_are_shown(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: server.jobs)
    server.end_job(JOB, "FAILED", "Job entrypoint command failed\nMemoryError\n")
    assert next_change(follower).problem == (
        "Ray job airflow-1 ended as FAILED: Job entrypoint command failed | MemoryError"
    )
    assert not server.deleted


def test_the_exit_code_of_a_job_that_was_killed_is_explained(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: server.jobs)
    server.jobs[JOB] |= {"status": "FAILED", "driver_exit_code": -9, "message": "Parsed"}
    assert next_change(follower).problem == (
        "Ray job airflow-1 ended as FAILED with exit code -9 (SIGKILL: perhaps its node ran out of "
        "memory): Parsed"
    )


def test_of_lines_that_airflow_logs_in_json_the_event_and_the_exception_are_shown(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: server.jobs)
    exception = [
        {"exc_type": "ServerResponseError", "exc_value": "Invalid auth token", "frames": []}
    ]
    logged = [
        {"timestamp": "2026", "level": "warning", "event": "Starting call"},
        {"level": "critical", "event": "Unhandled exception", "exception": exception},
    ]
    server.end_job(JOB, "FAILED", "\n".join(["[1]", '{"a"', *map(json.dumps, logged)]))
    assert next_change(follower).problem == (
        'Ray job airflow-1 ended as FAILED: [1] | {"a" | Starting call | '
        "Unhandled exception: ServerResponseError: Invalid auth token"
    )


@pytest.mark.parametrize(
    ("seconds", "options"),
    [(3600.0, {}), (0.0, {"delete_jobs": False})],
    ids=["until Ray has seen its end", "on request"],
)
def test_a_job_that_succeeded_is_kept(server, follow, monkeypatch, seconds, options):
    monkeypatch.setattr(job_follower, "DELETE_SECONDS", seconds)
    follower = follow(**options)
    follower.submit(JOB, submission())
    eventually(lambda: server.jobs)
    server.end_job(JOB)
    assert next_change(follower).is_over
    looks = server.looks
    follower.follow("another", JobState.PENDING)
    eventually(lambda: server.looks > looks + 1)
    assert not server.deleted


def test_a_job_is_submitted_once_the_cluster_answers(server, follow):
    server.broken = True
    follower = follow()
    follower.submit(JOB, submission())
    server.broken = False
    eventually(lambda: JOB in server.jobs)
    assert not list(follower.changes())


def test_a_submission_that_the_cluster_cannot_handle_is_named_in_the_log(server, follow, caplog):
    server.fault = "Traceback\nValueError: unheard of\n."  # Ray (2.60) ends it with a full stop
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: "HTTP 500: ValueError: unheard of" in caplog.text)
    assert f"asked again, for Ray job {JOB}" in caplog.text
    server.fault = ""
    eventually(lambda: JOB in server.jobs)


def test_an_outage_ends_no_job(server, follow, caplog):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    server.broken = True
    eventually(lambda: "jobs that run are not affected" in caplog.text)
    server.jobs[JOB]["status"] = "RUNNING"
    server.broken = False
    assert next_change(follower) == Change(JOB, is_over=False)


def test_a_refused_job_ends_with_the_reason(server, follow):
    server.refusal = "entrypoint_memory must be an integer"
    follower = follow()
    follower.submit(JOB, submission())
    change = next_change(follower)
    assert change.is_over
    assert "entrypoint_memory must be an integer" in change.problem


def test_a_wrong_token_ends_the_job_at_once_and_does_not_end_what_runs(server, follow, place):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    server.token = "another"
    follower.submit("airflow-2", submission("airflow-2"))
    change = next_change(follower)
    assert change.job_id == "airflow-2"
    assert "token" in change.problem
    place.token = "another"  # as of now in the connection
    server.jobs[JOB]["status"] = "RUNNING"
    assert next_change(follower) == Change(JOB, is_over=False)


def test_a_token_that_was_replaced_fails_none_of_the_jobs_that_were_just_sent(
    server, follow, place
):
    follower = follow(poll_seconds=60.0)
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    place.token = server.token = "another"
    count = 2 * patient_ray_jobs.REQUESTS_AT_ONCE
    for number in range(count):
        follower.submit(f"new-{number}", submission(f"new-{number}"))
    ended = []

    def all_sent():
        ended.extend(follower.changes())
        return len(server.jobs) + len(ended) == 1 + count

    eventually(all_sent)
    assert not ended


def test_a_fault_ends_the_job_and_is_shown(follow, place, caplog):
    del place.address
    follower = follow()
    follower.submit(JOB, submission())
    assert "no attribute 'address'" in next_change(follower).problem
    eventually(lambda: "Please report it" in caplog.text)


def test_a_job_that_was_submitted_before_is_followed(server, follow):
    server.jobs[JOB] = {"submission_id": JOB, "status": "RUNNING", "message": ""}
    follower = follow()
    follower.submit(JOB, submission())
    assert next_change(follower) == Change(JOB, is_over=False)
    assert not server.posted


def test_a_revoked_job_is_stopped_and_its_workload_replaced(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    follower.revoke(JOB)
    eventually(lambda: server.stopped == [JOB])
    assert server.packages[package_name(JOB)] == build_revoked_package(JOB)
    server.end_job(JOB)
    looks = server.looks
    follower.follow("another", JobState.PENDING)
    eventually(lambda: server.looks > looks + 1)
    assert JOB not in {change.job_id for change in follower.changes()}


def test_a_job_that_is_revoked_during_an_outage_runs_nothing(server, follow):
    server.broken = True
    follower = follow()
    follower.submit(JOB, submission())
    follower.revoke(JOB)
    follower.submit("airflow-2", submission("airflow-2"))
    server.broken = False
    eventually(lambda: "airflow-2" in server.jobs)
    # a request was perhaps on its way
    eventually(lambda: JOB not in server.jobs or server.stopped == [JOB])
    revoked = build_revoked_package(JOB)
    assert server.packages.get(package_name(JOB), revoked) == revoked


def test_a_running_job_that_the_cluster_forgot_is_lost(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    server.jobs[JOB]["status"] = "RUNNING"
    assert not next_change(follower).is_over
    del server.jobs[JOB]
    assert "no longer has job airflow-1" in next_change(follower).problem


def test_a_proxy_that_knows_no_cluster_ends_no_job(server, follow, caplog):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    server.jobs[JOB]["status"] = "RUNNING"
    assert not next_change(follower).is_over
    server.unrouted = True
    eventually(lambda: "is not the dashboard" in caplog.text)
    refused = server.refused
    eventually(lambda: server.refused > refused + 4 * ABSENT_LISTS)  # two requests a look
    server.unrouted = False
    server.end_job(JOB)
    assert next_change(follower) == Change(JOB, is_over=True)


def test_a_waiting_job_that_the_cluster_forgot_is_lost_with_its_submission(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    del server.jobs[JOB]
    change = next_change(follower)
    assert not change.is_over
    assert change.lost == submission()


def test_a_task_of_a_dead_scheduler_that_ran_is_lost_with_its_job_and_one_that_waited_is_not(
    follow,
):
    follower = follow()
    follower.follow("waited", JobState.PENDING)
    follower.follow("ran", JobState.RUNNING)
    assert "no longer has job ran" in next_change(follower).problem
    assert not list(follower.changes())


def test_a_connection_that_is_deleted_meanwhile_ends_no_job(server, follow, place, caplog):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    place.token = "not\none line"  # so it cannot be used
    server.token = "another"
    eventually(lambda: "cannot be sent" in caplog.text)
    place.token = "another"
    server.jobs[JOB]["status"] = "RUNNING"
    assert next_change(follower) == Change(JOB, is_over=False)
    assert "fault" not in caplog.text


def test_many_jobs_are_looked_up_with_one_request(server, follow):
    follower = follow(poll_seconds=0.2)
    count = 5 * patient_ray_jobs.MOST_FINDS
    for number in range(count):
        follower.submit(f"airflow-{number}", submission(f"airflow-{number}"))
    eventually(lambda: len(server.jobs) == count)
    for job_id in server.jobs:
        server.end_job(job_id)
    before = server.looks
    ended = {next_change(follower).job_id for _ in range(count)}
    assert len(ended) == count
    assert server.looks - before < count


def test_jobs_are_followed_if_the_list_of_all_jobs_is_too_long(server, follow, monkeypatch):
    monkeypatch.setattr(jobs_api, "LIST_BYTES", 100)
    follower = follow()
    ids = {f"airflow-{number}" for number in range(2 * patient_ray_jobs.MOST_FINDS)}
    for job_id in ids:
        follower.submit(job_id, submission(job_id))
    eventually(lambda: len(server.jobs) == len(ids))
    for job_id in ids:
        server.end_job(job_id)
    assert {next_change(follower).job_id for _ in ids} == ids


def test_jobs_of_a_dead_scheduler_are_found_or_the_cluster_is_out_of_reach(server, follow):
    follower = follow()
    server.jobs[JOB] = {"submission_id": JOB, "status": "RUNNING", "message": ""}
    found = follower.find([JOB, "gone"], 30.0)
    assert found[JOB].status == "RUNNING"
    assert found["gone"] is None
    server.token = "another"
    with pytest.raises(InvalidInputError, match="token"):
        follower.find([JOB], 30.0)


def test_the_end_of_the_scheduler_leaves_jobs_alone(server, follow):
    follower = follow()
    follower.submit(JOB, submission())
    eventually(lambda: JOB in server.jobs)
    follower.close()
    assert not server.stopped
    assert not server.deleted
