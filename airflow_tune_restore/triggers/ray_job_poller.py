"""One look at a cluster for all triggers that wait for jobs there: one request a poll, however many wait.

Requests take turns: one lists all jobs, the next one fetches the log of the job that has waited for it
longest. So a cluster has one request from this triggerer each `poll_interval`, for one job or a thousand.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

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


@dataclass(eq=False)
class JobWatch:
    """What one trigger waits for; the poller fills it in.

    Args:
        submission_id: The job.
        interval: Seconds between two requests that this trigger is content with.
        wants_log: Whether the job's log is to be fetched.
        job: The job as last listed.
        is_lost: Whether the cluster has forgotten it.
        log: What is new of its log; whoever shows it forgets it.
        log_length: Characters of the log that were taken, whole lines.
        log_read: Characters of the log that were read.
        log_trouble: Why the log cannot be read; "" if it can.
        trouble: Why the cluster cannot be asked; "" if it can.
        out_of_reach: Whether that has gone on for too long.
        broken: What ended the poller, if it was no error of ours.
    """

    submission_id: str
    interval: float
    wants_log: bool
    job: RayJob | None = None
    is_lost: bool = False
    log: JobLog | None = None
    log_length: int = 0
    log_read: int = 0
    log_trouble: str = ""
    trouble: str = ""
    out_of_reach: bool = False
    broken: Exception | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _absent: int = 0
    log_turn: float = 0.0

    @property
    def log_is_long(self) -> bool:
        """Whether no more of its log is read before its end."""
        return self.log_read >= LONGEST_LOG

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.is_lost or self.out_of_reach or (self.job is not None and self.job.is_over)

    def listed(self, job: RayJob | None) -> None:
        """Take what a list says of the job."""
        self._absent = 0 if job is not None else self._absent + 1
        self.is_lost = self._absent >= ABSENT_LISTS
        if self.trouble or job != self.job or self.is_lost:
            self.changed.set()
        self.trouble = ""
        self.job = job if job is not None else self.job

    def unlisted(self, trouble: str, seconds: float) -> None:
        """Take that no list could be had for so long."""
        self.out_of_reach = seconds > OUTAGE_SECONDS
        if trouble != self.trouble or self.out_of_reach:
            self.changed.set()
        self.trouble = trouble


class JobPoller:
    """Asks one cluster for all watches of this process; lives as long as there is one."""

    _all: ClassVar[dict[tuple[int, Cluster], "JobPoller"]] = {}

    def __init__(self, cluster: Cluster) -> None:
        self._jobs = AsyncRayJobs(cluster)
        self._watches: set[JobWatch] = set()
        self._reached = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=f"Ray jobs at {cluster.address}")

    @classmethod
    @asynccontextmanager
    async def watch(
        cls, cluster: Cluster, submission_id: str, *, interval: float, wants_log: bool
    ) -> AsyncIterator[JobWatch]:
        """Have a job looked at until the block ends."""
        key = (id(asyncio.get_running_loop()), cluster)
        poller = cls._all.get(key)
        if poller is None or poller._task.done():
            poller = cls._all[key] = cls(cluster)
        watch = JobWatch(submission_id, interval, wants_log)
        poller._watches.add(watch)
        try:
            yield watch
        finally:
            poller._watches.discard(watch)
            if not poller._watches and cls._all.get(key) is poller:
                del cls._all[key]
                poller._task.cancel()

    async def _run(self) -> None:
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
        except Exception as error:
            for watch in list(self._watches):  # or they would wait for ever
                watch.broken = error
                watch.changed.set()
            raise
        finally:
            await self._jobs.close()

    async def _list(self) -> None:
        try:
            jobs = {job.submission_id: job for job in await self._jobs.list_all()}
        except TuneRestoreError as error:
            for watch in list(self._watches):
                watch.unlisted(str(error), time.monotonic() - self._reached)
            return
        self._reached = time.monotonic()
        for watch in list(self._watches):
            watch.listed(jobs.get(watch.submission_id))

    def _next_log(self) -> JobWatch | None:
        """Return the running job whose log was fetched longest ago; None if nobody wants one."""
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
            trouble = str(error)  # of this one log; lists tell whether the cluster can be asked
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
