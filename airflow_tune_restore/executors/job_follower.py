"""Submits the jobs of an executor, follows and stops them, in a thread of its own.

Airflow's scheduler calls its executors in its loop, and counts as dead if one of them takes too long. So
nothing here waits for the cluster but one thread with an event loop. The scheduler hands jobs over and
takes their changes.

An outage loses nothing: a job is submitted again and again, under the same id, until it is revoked
(Airflow does so after `[scheduler] task_queued_timeout`), and a job that cannot be found for a while is
asked for again.
"""

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.executors.job_output import describe_failure
from airflow_tune_restore.executors.patient_ray_jobs import PatientRayJobs
from airflow_tune_restore.executors.workload_package import build_revoked_package, package_name
from airflow_tune_restore.launch.ray.jobs_api import ABSENT_LISTS, AsyncRayJobs, JobState, RayJob

if TYPE_CHECKING:
    from airflow_tune_restore.launch.log_lines import Log
    from airflow_tune_restore.launch.ray.cluster import Cluster

DELETE_SECONDS = 10.0
"""From the end of a job until it is deleted. Ray looks at it every second until it has seen the end.

It writes a job that was deleted before that anew, as FAILED (JobManager._monitor_job_internal, 2.60).
"""

CLOSE_SECONDS = 2.0
"""How long the end of the scheduler waits for requests to be given up."""

_FAULT = "A fault of airflow_tune_restore, which goes on to follow Ray jobs. Please report it.\n"


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to submit.

    Args:
        body: Of the request.
        package: The content of the package that carries its workload (`workload_package`).
    """

    body: Mapping[str, Any]
    package: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """A job runs, has ended, or was lost.

    Args:
        problem: Why it failed; "" if it did not.
        lost: What to submit again: the cluster has forgotten a job that waited, or another scheduler has
            followed it to its end, and has deleted it.
    """

    job_id: str
    is_over: bool
    problem: str = ""
    lost: Submission | None = None


@dataclass(slots=True)
class _Job:
    submission: Submission | None = None  # None if another scheduler submitted it, or if it runs
    status: str = JobState.PENDING
    absent: int = 0  # looks in a row that did not find it


class JobFollower:
    """Follows the jobs of one executor.

    Args:
        connect: Returns the cluster. It is called again when the cluster refuses the token.
        poll_seconds: Time between two looks at all jobs.
        delete_jobs: Whether a job that succeeded is removed from the cluster's list.
    """

    def __init__(
        self,
        connect: Callable[[], "Cluster"],
        *,
        poll_seconds: float,
        delete_jobs: bool,
        log: "Log",
    ) -> None:
        self._jobs = PatientRayJobs(connect, log)
        self._poll_seconds = poll_seconds
        self._delete_jobs = delete_jobs
        self._log = log
        self._changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self._followed: dict[str, _Job] = {}
        self._submitting: dict[str, asyncio.Task[None]] = {}
        self._revoked: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="ray-executor", daemon=True)

    # Called by the scheduler

    def start(self) -> None:
        """Start the thread. It logs which Ray the cluster runs, or that it does not answer."""
        self._thread.start()
        self._do(self._greet())

    def submit(self, job_id: str, submission: Submission) -> None:
        """Submit a job and follow it."""

        def begin() -> None:
            self._submitting[job_id] = self._keep(self._submit(job_id, submission))

        self._loop.call_soon_threadsafe(begin)

    def follow(self, job_id: str, status: JobState) -> None:
        """Follow a job that another scheduler submitted, and that had this status."""
        self._loop.call_soon_threadsafe(self._followed.setdefault, job_id, _Job(status=status))

    def revoke(self, job_id: str) -> None:
        """Stop a job, or do not submit it. From then on its changes are not reported.

        Ray cannot stop a job that waits for resources (JobManager.stop_job, 2.60). So its package is
        replaced: if it starts after all, it exits without running its workload.
        """
        self._do(self._revoke(job_id))

    def find(self, job_ids: Iterable[str], seconds: float) -> dict[str, RayJob | None]:
        """Return the jobs by id; None for one that the cluster does not have. It waits so many seconds.

        Raises:
            TuneRestoreError: If the cluster cannot be asked.
            TimeoutError: If it does not answer in time.
        """
        asked = asyncio.run_coroutine_threadsafe(self._jobs.find_all(list(job_ids)), self._loop)
        try:
            found = asked.result(seconds)
        finally:
            asked.cancel()
        for job in found.values():
            if isinstance(job, TuneRestoreError):
                raise job
        return {name: job for name, job in found.items() if not isinstance(job, TuneRestoreError)}

    def changes(self) -> Iterator[Change]:
        """Yield the changes since the last call."""
        while not self._changes.empty():
            yield self._changes.get()

    def close(self) -> None:
        """End the thread. The jobs go on."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_SECONDS)

    # In the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._keep(self._poll())
        self._loop.run_forever()
        self._loop.run_until_complete(self._end_all())
        self._loop.close()

    async def _end_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._jobs.close()

    def _do(self, coroutine: Any) -> None:
        self._loop.call_soon_threadsafe(self._keep, coroutine)

    def _keep(self, coroutine: Any) -> "asyncio.Task[None]":
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds no strong reference
        task.add_done_callback(self._drop)
        return task

    def _drop(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            shown = "".join(traceback.format_exception(error))
            self._log.error("%s%s", _FAULT, shown)

    async def _greet(self) -> None:
        try:
            api = self._jobs.now()
            version = await api.version()
        except TuneRestoreError as error:
            self._jobs.warn(error)
        else:
            self._log.info("Tasks run as jobs of %s, Ray %s.", api.cluster.address, version)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            # a fault in one look is logged, and does not end the looks
            await asyncio.wait({self._keep(self._look())})

    async def _look(self) -> None:
        found = await self._jobs.look(list(self._followed))
        for job_id, job in found.items():
            if not isinstance(job, TuneRestoreError) and job_id in self._followed:
                self._record(job_id, job)

    def _record(self, job_id: str, job: RayJob | None) -> None:
        known = self._followed[job_id]
        if job is None:
            known.absent += 1
            if known.absent >= ABSENT_LISTS:
                self._lose(job_id, known)
            return
        known.absent = 0
        if job.is_over:
            succeeded = job.status == JobState.SUCCEEDED
            self._end(job_id, "" if succeeded else describe_failure(job_id, job))
            if succeeded and self._delete_jobs:
                self._keep(self._delete(job_id))
        elif job.status != known.status:
            known.status, known.submission = job.status, None
            self._changes.put(Change(job_id, is_over=False))

    def _lose(self, job_id: str, known: _Job) -> None:
        """Handle a job that the cluster has forgotten."""
        if known.status != JobState.PENDING:
            problem = (
                f"The Ray cluster no longer has job {job_id}: its head node died, or somebody deleted "
                "the job."
            )
            self._end(job_id, problem)
            return
        del self._followed[job_id]
        if known.submission is not None:
            self._changes.put(Change(job_id, is_over=False, lost=known.submission))
        else:
            self._log.warning(
                "Ray job %s was lost before it ran. Airflow queues its task again after [scheduler] "
                "task_queued_timeout.",
                job_id,
            )

    def _end(self, job_id: str, problem: str) -> None:
        self._followed.pop(job_id, None)
        self._changes.put(Change(job_id, is_over=True, problem=problem))

    async def _submit(self, job_id: str, submission: Submission) -> None:
        async def send(api: AsyncRayJobs) -> bool:
            await api.upload_package(package_name(job_id), submission.package)
            return await api.submit(submission.body)

        try:
            sent = await self._jobs.ask_until_answered(
                job_id, send, is_off=lambda: job_id in self._revoked
            )
            if sent is not None:
                self._followed[job_id] = _Job(submission)
        except InvalidInputError as error:
            self._end(job_id, str(error))
        except Exception as error:
            self._end(job_id, f"Ray job {job_id} was not submitted: {error!r}. The log has more.")
            raise
        finally:
            del self._submitting[job_id]

    async def _revoke(self, job_id: str) -> None:
        self._revoked.add(job_id)
        try:
            if job_id in self._submitting:
                await self._submitting[job_id]
            if self._followed.pop(job_id, None) is None:
                return

            async def stop(api: AsyncRayJobs) -> None:
                await api.upload_package(package_name(job_id), build_revoked_package(job_id))
                await api.stop(job_id)

            await self._jobs.ask_until_answered(job_id, stop, is_off=lambda: False)
        except InvalidInputError as error:
            self._log.warning("Ray job %s cannot be stopped: %s", job_id, error)
        finally:
            self._revoked.discard(job_id)

    async def _delete(self, job_id: str) -> None:
        await asyncio.sleep(DELETE_SECONDS)
        try:
            await self._jobs.ask_once(lambda api: api.delete(job_id))
        except TuneRestoreError as error:
            self._log.warning("Ray job %s stays in the list of jobs: %s", job_id, error)
