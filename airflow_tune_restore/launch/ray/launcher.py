"""Runs attempts as jobs of a Ray cluster, for a shell: follows them and shows what they print."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.launch.base import RunState
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.job import (
    ASKED_AGAIN,
    describe_end,
    stop_attempt,
    submit_job,
    wait_for_stop,
)
from airflow_tune_restore.launch.ray.job_log import LONGEST_LOG, JobLog
from airflow_tune_restore.launch.ray.jobs_api import (
    ABSENT_LISTS,
    OUTAGE_SECONDS,
    JobState,
    RayJob,
    RayJobs,
)
from airflow_tune_restore.launch.ray.package import deliver
from airflow_tune_restore.launch.ray.submission import DriverResources, build_submission
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords
from airflow_tune_restore.protocol.ray_job import IN_CLUSTER, submission_id
from airflow_tune_restore.protocol.request import RunnerExit, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.storage.fs import StoreClients

POLL_SECONDS = 2.0
LOG_PAUSE_SECONDS = 10.0
"""Between two readings of a log, per `LONGEST_LOG` characters: Ray returns a log from its beginning."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RayLauncher:
    """Submits attempts to the Jobs API of a cluster.

    The runner and the trials find their storage credentials on the cluster. The lease must be kept by
    the caller: a job that waits for resources cannot renew it. If the cluster cannot be used or refuses a
    job, methods raise InvalidInputError; if it is out of reach, RayClusterError.
    """

    cluster: Cluster
    runtime_env: Mapping[str, Any] = field(default_factory=dict)  # its local parts are uploaded
    env: Mapping[str, str] = field(default_factory=dict)  # no secrets, because Ray shows them
    driver: DriverResources = field(default_factory=DriverResources)
    poll_seconds: float = POLL_SECONDS
    stores: StoreClients = field(default_factory=StoreClients)  # where stops are recorded

    def settings(self, settings: RunnerSettings) -> RunnerSettings:
        """Return the settings of a runner that is a job of the cluster it runs on.

        The cluster is checked, and the code is uploaded: a later submission finds it there.
        """
        jobs = RayJobs(self.cluster)
        jobs.version()
        deliver(jobs, self.runtime_env)
        return replace(settings, address=IN_CLUSTER, can_grow=True)

    def start(self, request: RunnerRequest) -> "RayRun":
        """Submit the job of a claimed attempt, or attach to it if it was submitted."""
        run = self._run_of(request)
        submission = build_submission(
            run.jobs, request, runtime_env=self.runtime_env, env=self.env, driver=self.driver
        )
        submit_job(run.jobs, submission, pause_seconds=self.poll_seconds, log=logger)
        return run

    def find(self, request: RunnerRequest) -> "RayRun | None":
        """Return the run of an attempt that was submitted; None if the cluster does not have its job."""
        run = self._run_of(request)
        return run if run.jobs.find(run.submission_id) is not None else None

    def stop_command(self, request: RunnerRequest) -> str:
        """Return the command that stops the run of an attempt: it stops the job."""
        return self.cluster.stop_command(self._run_of(request).submission_id)

    def _run_of(self, request: RunnerRequest) -> "RayRun":
        return RayRun(RayJobs(self.cluster), request, self.poll_seconds, self.stores)


class RayRun:
    """One attempt as a Ray job."""

    def __init__(
        self, jobs: RayJobs, request: RunnerRequest, poll_seconds: float, stores: StoreClients
    ) -> None:
        self.jobs = jobs
        self._stores = stores
        self.submission_id = submission_id(
            request.experiment, request.restore_id, request.trial_id, request.attempt
        )
        self._request = request
        self._poll_seconds = poll_seconds
        self._job: RayJob | None = None
        self._absent = 0
        self._reached = time.monotonic()
        self._state = RunState.WAITING
        self._was_stopped = threading.Event()
        self._log = JobLog(results=0)  # the last reading
        self._offset = self._results = 0
        self._log_read_at = 0.0
        self._outage = self._log_trouble = ""  # logged last

    def poll(self) -> RunState:
        """Return the state of the job, after a short wait. An outage is waited for: `OUTAGE_SECONDS`."""
        self._was_stopped.wait(self._poll_seconds)
        try:
            self._job = self.jobs.find(self.submission_id)
        except TuneRestoreError as error:  # the address was right before: whatever it answers now
            if time.monotonic() - self._reached > OUTAGE_SECONDS:
                raise
            if str(error) != self._outage:
                logger.warning(ASKED_AGAIN, error)
            self._outage = str(error)
        else:
            self._reached, self._outage = time.monotonic(), ""
            self._absent = self._absent + 1 if self._job is None else 0
            self._state = self._read_state()
        if self._was_stopped.is_set():
            self._state = RunState.ENDED
        return self._state

    def output(self) -> Iterator[str]:
        """Yield the newest lines printed since the last call; a long log is read less often."""
        has_ended = self._state is RunState.ENDED
        pause = LOG_PAUSE_SECONDS * self._log.read / LONGEST_LOG
        if self._state is RunState.WAITING or (
            not has_ended and time.monotonic() - self._log_read_at < pause
        ):
            return
        log, trouble = JobLog(offset=self._offset, results=self._results), ""
        try:
            self.jobs.read_log(self.submission_id, log)
        except TuneRestoreError as error:
            trouble = str(error)
            if trouble != self._log_trouble:
                logger.warning("%s The log is incomplete.", error)
        self._log_trouble = trouble
        if has_ended:
            log.end()
        self._log_read_at = time.monotonic()
        self._offset = max(self._offset, log.length)
        self._results = max(self._results, log.result_count)
        if log.read:  # a log that is gone for a while has no last lines
            self._log = log
        command = self.jobs.cluster.log_command(self.submission_id)
        yield from log.newest.take(f"the whole log: {command}")

    def stop(self) -> None:
        """Let the runner save a snapshot and exit; return when the job has ended.

        A job that still waits for resources is left: its runner exits when it starts. So is a job on a
        cluster that is out of reach.
        """
        request = self._request
        attempt = AttemptId(request.restore_id, request.trial_id, request.attempt)
        store = self._stores.open(request.experiment)
        try:
            stop_attempt(store, self.jobs, attempt, self.submission_id)
            records = AttemptRecords.of(store, request)
            wait_for_stop(self.jobs, records, request.attempt, self.submission_id, logger)
        except TuneRestoreError as error:
            command = self.jobs.cluster.stop_command(self.submission_id)
            logger.error("%s The job may still run. To stop it: %s", error, command)  # noqa: TRY400  expected
        finally:
            self._was_stopped.set()

    def exit(self) -> RunnerExit:
        """Return exit code and last lines of the job."""
        exit_code = self._job.driver_exit_code if self._job is not None else None
        message = "\n".join(describe_end(self._job, self._log.last))
        return RunnerExit(exit_code=exit_code, message=message)

    def _read_state(self) -> RunState:
        if self._job is None:
            return RunState.ENDED if self._absent >= ABSENT_LISTS else self._state
        if self._job.is_over:
            return RunState.ENDED
        return RunState.WAITING if self._job.status == JobState.PENDING else RunState.RUNNING
