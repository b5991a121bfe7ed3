"""The output of a job: while it runs, for the page of its task's log, and the end of one that failed."""

import json

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.jobs_api import RayJob, RayJobs
from airflow_tune_restore.protocol.printable import printable

SHOWN_LENGTH = 8 * 1024**2
"""Characters of a log that are shown while its job runs. Airflow asks for all every few seconds."""

SHOW_SECONDS = 10.0
"""Deadline of the cluster, for a person who waits for the page."""

_LAST_LINES = 5
"""Of the message of a job that failed: Ray puts the end of its log there."""

_LINE_LENGTH = 300

_KILLED = (-9, 128 + 9)
"""Exit codes of a process that got SIGKILL, and of a shell whose command did."""


class JobOutput:
    """Keeps the beginning of a log, which stays the same: Airflow counts the lines that a page has."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0

    @property
    def is_enough(self) -> bool:
        """Whether there is as much as is shown."""
        return self._length >= SHOWN_LENGTH

    def take(self, text: str) -> None:
        """Add the next part of the log."""
        self._parts.append(text)
        self._length += len(text)

    def lines(self) -> list[str]:
        """Return the whole lines: the job may still write to the last one."""
        whole, _, _ = "".join(self._parts).rpartition("\n")
        return whole.split("\n") if whole else []


def read_output(cluster: Cluster, job_id: str) -> tuple[list[str], list[str]]:
    """Return the source of a job's log and its lines, as `BaseExecutor.get_task_log` does."""
    output = JobOutput()
    source = f"Ray job {job_id}: {cluster.job_url(job_id)}"
    try:
        RayJobs(cluster).read_log(job_id, output, SHOW_SECONDS)
    except TuneRestoreError as error:
        return [f"{source}. Its log cannot be read now: {error}"], []
    if output.is_enough:
        source += f". This is the beginning of a long log; all of it: {cluster.log_command(job_id)}"
    return [source], output.lines()


def describe_failure(job_id: str, job: RayJob) -> str:
    """Return why a job failed, with the last lines of its log."""
    lines = filter(None, map(str.strip, (job.message or "").splitlines()))
    shown = " | ".join(printable(_event(line), _LINE_LENGTH) for line in [*lines][-_LAST_LINES:])
    code = job.driver_exit_code
    ended = "" if code is None else f" with exit code {code}"
    if code in _KILLED:
        ended += " (SIGKILL: perhaps its node ran out of memory)"
    return (
        f"Ray job {job_id} ended as {printable(job.status, 40)}{ended}: "
        f"{shown or 'Ray gives no reason'}"
    )


def _event(line: str) -> str:
    """Return what a line of Airflow's log in JSON tells, with its exception; any other line as it is."""
    try:
        record = json.loads(line)
        parts = [str(record["event"])]
        parts += [f"{one['exc_type']}: {one['exc_value']}" for one in record.get("exception", ())]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return line
    return ": ".join(parts)
