"""The Ray job of one attempt: submit it, stop it, describe how it ended."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import RayClusterError
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.launch.ray.jobs_api import JobState, RayJob
from airflow_tune_restore.launch.ray.submission import STOP_WAIT_SECONDS
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.runner_death import LAST_LINES

if TYPE_CHECKING:
    from airflow_tune_restore.launch.log_lines import Log
    from airflow_tune_restore.launch.ray.jobs_api import RayJobs
    from airflow_tune_restore.storage.base import ObjectStore

SUBMIT_SECONDS = 60.0
"""How long a job is submitted again and again, under the same id, to a head that does not accept it."""

STOP_SLACK_SECONDS = 30.0
"""Time that Ray gets, after the grace period of a stopped job, to kill it and to report its end."""

ASKED_AGAIN = "%s It is asked again; if the job still runs, it is not affected."
"""Warning about an outage, logged once until its text changes."""

FORGOTTEN = "The cluster no longer has the job: its head node died and was started anew."


def submit_job(
    jobs: "RayJobs", submission: Mapping[str, Any], *, pause_seconds: float, log: "Log"
) -> bool:
    """Submit a job; False if the cluster has it already.

    A head that has just started answers before it accepts jobs, so an outage is waited for.

    Raises:
        InvalidInputError: If the cluster refuses it.
        RayClusterError: If the cluster did not accept it for `SUBMIT_SECONDS`.
    """
    deadline = time.monotonic() + SUBMIT_SECONDS
    while True:
        try:
            return jobs.submit(submission)
        except RayClusterError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s The job is submitted again.", error)
            time.sleep(pause_seconds)


def stop_attempt(
    store: "ObjectStore",
    jobs: "RayJobs",
    attempt: AttemptId,
    submission_id: str,
) -> None:
    """Stop the job of an attempt, with all trials that it runs.

    The stop is recorded first: a task that runs again must not attach while the job saves its snapshot.

    Raises:
        TuneRestoreError: If the store or the cluster is out of reach.
    """
    store.put(layout.stopped_key(*attempt), b"{}")
    jobs.stop(submission_id)


def wait_for_stop(
    jobs: "RayJobs", records: AttemptRecords, attempt: int, submission_id: str, log: "Log"
) -> None:
    """Wait until a stopped job has saved its snapshot and ended; Ray kills it if it takes too long.

    A job that still waits for resources is left alone: Ray neither stops nor deletes it
    (JobManager.stop_job and delete_job, 2.60). If it starts after all, its runner exits.
    """
    log.info("Ray job %s was stopped; waiting until its snapshot is saved.", submission_id)
    deadline = time.monotonic() + STOP_WAIT_SECONDS + STOP_SLACK_SECONDS
    while time.monotonic() < deadline:
        job = jobs.find(submission_id)
        if job is None or job.is_over:
            return
        if job.status == JobState.PENDING and not records.has_begun(attempt):
            log.info(
                "Ray job %s still waits for resources. Ray cannot stop it yet; it exits when it starts.",
                submission_id,
            )
            return
        time.sleep(1.0)


def describe_end(job: RayJob | None, last_lines: Iterable[str]) -> list[str]:
    """Return the last lines of a job's log, with Ray's message where they do not explain the end.

    `job` is None if the cluster no longer has it.
    """
    shown = [line for line in last_lines if line][-LAST_LINES:]
    if job is None:
        shown = [FORGOTTEN, *shown]
    elif not shown or job.driver_exit_code is None or job.status == JobState.STOPPED:
        shown = [*shown, f"Ray reports {job.status}. {job.message or ''}"]
    return [printable(describe_line(line, None), 1000) for line in shown]
