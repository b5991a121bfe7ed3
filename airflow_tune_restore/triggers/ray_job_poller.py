"""Polls a Ray cluster for all triggers that wait for jobs there: one request per poll, however many wait.

Requests take turns: one lists all jobs, the next one fetches the log that has waited longest.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.job_log import LONGEST_LOG, JobLog
from airflow_tune_restore.launch.ray.jobs_api import (
    ABSENT_LISTS,
    OUTAGE_SECONDS,
    AsyncRayJobs,
    JobState,
    RayJob,
)
from airflow_tune_restore.triggers.shared_poller import SharedPoller, Watch


@dataclass(eq=False, kw_only=True)
class JobWatch(Watch):
    """A job that one trigger waits for."""

    submission_id: str
    interval: float  # seconds between two requests to the cluster
    wants_log: bool
    job: RayJob | None = None  # as last listed
    is_lost: bool = False  # the cluster no longer has it
    log: JobLog | None = None  # the new part; the trigger sets it to None once it is shown
    log_length: int = 0  # characters of the log that were taken, whole lines
    log_read: int = 0  # characters of the log that were read
    log_trouble: str = ""  # why the log cannot be read; "" if it can
    log_turn: float = 0.0  # when the log was last fetched (monotonic)
    trouble: str = ""  # why the jobs cannot be listed; "" if they can
    out_of_reach: bool = False  # that lasted for too long
    _absent: int = 0

    @property
    def log_is_long(self) -> bool:
        """Whether the rest of its log is not read before the job has ended."""
        return self.log_read >= LONGEST_LOG

    @property
    def is_over(self) -> bool:
        """Whether the wait is over."""
        return self.is_lost or self.out_of_reach or (self.job is not None and self.job.is_over)

    def record_listed(self, job: RayJob | None) -> None:
        """Record the job as listed; None if it was not in the list."""
        self._absent = 0 if job is not None else self._absent + 1
        self.is_lost = self._absent >= ABSENT_LISTS
        if self.trouble or job != self.job or self.is_lost:
            self.changed.set()
        self.trouble = ""
        self.job = job if job is not None else self.job

    def record_outage(self, trouble: str, seconds: float) -> None:
        """Record that the jobs could not be listed for so many seconds."""
        self.out_of_reach = seconds > OUTAGE_SECONDS
        if trouble != self.trouble or self.out_of_reach:
            self.changed.set()
        self.trouble = trouble


class JobPoller(SharedPoller[JobWatch]):
    """Polls one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._jobs = AsyncRayJobs(cluster)
        self._reached = time.monotonic()
        super().__init__(cluster.address)

    async def _poll(self) -> None:
        try:
            for turn in itertools.count():
                begun = time.monotonic()
                log_of = self._next_log() if turn % 2 else None
                if log_of is not None:
                    await self._fetch_log(log_of)
                else:
                    await self._list()
                interval = min((watch.interval for watch in self._watches), default=1.0)
                await asyncio.sleep(max(0.0, interval - (time.monotonic() - begun)))
        finally:
            await self._jobs.close()

    async def _list(self) -> None:
        try:
            jobs = {job.submission_id: job for job in await self._jobs.list_all()}
        except TuneRestoreError as error:
            for watch in list(self._watches):
                watch.record_outage(str(error), time.monotonic() - self._reached)
            return
        self._reached = time.monotonic()
        for watch in list(self._watches):
            watch.record_listed(jobs.get(watch.submission_id))

    def _next_log(self) -> JobWatch | None:
        """Return the running job whose log was fetched longest ago; None if no log is wanted."""
        running = [
            watch
            for watch in self._watches
            if watch.wants_log
            and watch.log is None
            and not watch.log_is_long
            and watch.job is not None
            and watch.job.status == JobState.RUNNING
        ]
        return min(running, key=lambda watch: watch.log_turn, default=None)

    async def _fetch_log(self, watch: JobWatch) -> None:
        watch.log_turn = time.monotonic()
        log = JobLog(offset=watch.log_length, results=None, most=LONGEST_LOG)
        trouble = ""
        try:
            await self._jobs.read_log(watch.submission_id, log)
        except TuneRestoreError as error:
            trouble = str(error)  # this log's; the lists show whether the cluster can be reached
        except Exception as error:  # noqa: BLE001  it ends the trigger of this job alone
            watch.broken, watch.wants_log = error, False
            watch.changed.set()
            return
        if log.length > watch.log_length or log.read >= LONGEST_LOG:
            watch.log = log
        watch.log_length = max(watch.log_length, log.length)
        watch.log_read = max(watch.log_read, log.read)
        if watch.log is not None or trouble != watch.log_trouble:
            watch.changed.set()
        watch.log_trouble = trouble
