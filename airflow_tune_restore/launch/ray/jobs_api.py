"""The Ray Jobs API over HTTP: submit, look, stop, read logs, upload code. No Ray is needed for it.

Its paths and fields are those of ray/dashboard/modules/job (read in 2.60). What a user can mend (address,
token, certificate, version) is an InvalidInputError; what may pass is a RayClusterError.
"""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.ray.cluster import Cluster, client_options
from airflow_tune_restore.launch.ray.cluster_errors import (
    check_auth,
    check_success,
    decode_answer,
    describe_body,
    failed,
    not_a_dashboard,
    translate_transport_error,
)
from airflow_tune_restore.launch.ray.http_answer import Answer, BrokenAnswerError, ask
from airflow_tune_restore.launch.ray.job_log import JobLog, LogText
from airflow_tune_restore.protocol.printable import printable

REQUEST_SECONDS = 30.0
"""How long a request may take in all."""

LOG_SECONDS = 300.0
"""The same where a task reads a whole log at a job's end."""

UPLOAD_SECONDS = 300.0
SLOWEST_UPLOAD = 1024**2
"""Bytes a second that an upload makes at least; a long one gets more time."""

LIST_BYTES = 32 * 1024**2
"""Of all jobs a head remembers, some 2 KiB each."""

JOB_BYTES = 4 * 1024**2
LOG_BYTES = 1024**3
"""A log is read in pieces and takes a few MiB, whatever its length."""

ANSWER_BYTES = 1024**2
"""Of everything else: errors, versions, receipts."""

ABSENT_LISTS = 3
"""A job that so many lists in a row do not contain is lost: its head node was started anew."""

OUTAGE_SECONDS = 1800.0
"""How long a cluster may be out of reach before its jobs are given up; they may run on."""

OLDEST_RAY = (2, 40)
"""The oldest Ray the runner is tested with; it starts no jobs on older clusters."""

_GCS = "gcs"
_PIECE_BYTES = 1024**2
_TAKEN = "already exists"
"""What the server says of a submission id that is in use (JobManager.submit_job, 2.60)."""


_Told = TypeVar("_Told")


class JobState(StrEnum):
    """Ray's states of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class RayJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster says of one job; one that was not submitted has no submission id."""

    submission_id: str | None = None
    status: str
    entrypoint: str = ""
    metadata: dict[str, str] | None = None
    message: str | None = None
    driver_exit_code: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**32)] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status not in (JobState.PENDING, JobState.RUNNING)


class _Version(msgspec.Struct):
    ray_version: str


class AsyncRayJobs:
    """The API. Keeps its connection; close it at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._client = httpx.AsyncClient(**client_options(cluster))

    async def version(self) -> str:
        """Return the cluster's Ray version; checks address, token and version on the way.

        Raises:
            InvalidInputError: If this is no cluster that we can use.
            RayClusterError: If it does not answer.
        """
        answer = check_success(self.cluster, await self._send("GET", "/api/version"))
        version = _read_version(self.cluster, answer)
        await self.list_all()  # the version is told to anybody, jobs are not
        return version

    async def find(self, submission_id: str) -> RayJob | None:
        """Return a job; None if the cluster knows of none."""
        answer = await self._send("GET", _job_path(submission_id), most_bytes=JOB_BYTES)
        if answer.status == httpx.codes.NOT_FOUND:
            return None
        job: RayJob = decode_answer(self.cluster, check_success(self.cluster, answer), RayJob)
        return job

    async def list_all(self) -> list[RayJob]:
        """Return all jobs, those among them that connected by themselves: one request, however many."""
        answer = await self._send("GET", "/api/jobs/", most_bytes=LIST_BYTES)
        jobs: list[RayJob] = decode_answer(
            self.cluster, check_success(self.cluster, answer), list[RayJob]
        )
        return jobs

    async def submit(self, submission: Mapping[str, Any]) -> bool:
        """Start a job; False if there is one of this submission id already.

        Raises:
            InvalidInputError: If the cluster refuses it.
        """
        answer = await self._send("POST", "/api/jobs/", json=dict(submission))
        if answer.is_success:
            return True
        if _TAKEN in answer.text:
            return False
        if answer.status == httpx.codes.BAD_REQUEST:
            raise InvalidInputError(
                f"Ray cluster {self.cluster.address} refused the job{describe_body(answer)}"
            )
        raise failed(self.cluster, answer)

    async def stop(self, submission_id: str) -> None:
        """Ask a job to end: SIGTERM, and SIGKILL some time later. No matter if it has ended."""
        await self._send("POST", f"{_job_path(submission_id)}/stop")

    async def read_log(self, submission_id: str, log: JobLog, seconds: float | None = None) -> None:
        """Read what a job has printed, until the log has enough.

        Nothing is read of one that is out of reach (its node is gone), or that nobody knows of.
        """
        text = LogText()

        def take(piece: bytes) -> bool:
            log.take(text.read(piece))
            return log.is_enough

        path = f"{_job_path(submission_id)}/logs"
        try:
            answer = await self._send("GET", path, most_bytes=LOG_BYTES, seconds=seconds, take=take)
        except ValueError as error:
            raise not_a_dashboard(self.cluster, str(error)) from error
        if answer.is_success and not (text.is_whole or log.is_enough):
            raise not_a_dashboard(self.cluster, "the end of a log is missing")

    async def has_package(self, name: str) -> bool:
        """Whether the cluster holds a package; if so, it keeps it for some more minutes."""
        answer = await self._send("GET", f"/api/packages/{_GCS}/{name}")
        if answer.status == httpx.codes.NOT_FOUND:
            return False
        return bool(check_success(self.cluster, answer))

    async def upload_package(self, name: str, body: bytes) -> None:
        """Give the cluster a package."""
        path = f"/api/packages/{_GCS}/{name}"
        answer = await self._send(
            "PUT",
            path,
            seconds=max(UPLOAD_SECONDS, len(body) / SLOWEST_UPLOAD),
            content=_pieces(body),
            headers={"Content-Length": str(len(body))},
        )
        check_success(self.cluster, answer)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _send(  # noqa: PLR0913  a request and its bounds
        self,
        method: str,
        path: str,
        *,
        seconds: float | None = None,
        most_bytes: int = ANSWER_BYTES,
        take: Callable[[bytes], bool] | None = None,
        **arguments: Any,
    ) -> Answer:
        try:
            answer = await ask(
                self._client,
                self._client.build_request(method, path, **arguments),
                seconds=REQUEST_SECONDS if seconds is None else seconds,
                most_bytes=most_bytes,
                take=take,
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError, BrokenAnswerError) as error:
            raise translate_transport_error(self.cluster, error) from error
        return check_auth(self.cluster, answer)


class RayJobs:
    """The API for code that may block; each method as in `AsyncRayJobs`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def version(self) -> str:
        """Return the cluster's Ray version."""
        return self._ask(lambda jobs: jobs.version())

    def find(self, submission_id: str) -> RayJob | None:
        """Return a job; None if the cluster knows of none."""
        return self._ask(lambda jobs: jobs.find(submission_id))

    def list_all(self) -> list[RayJob]:
        """Return all jobs."""
        return self._ask(lambda jobs: jobs.list_all())

    def submit(self, submission: Mapping[str, Any]) -> bool:
        """Start a job; False if there is one of this submission id already."""
        return self._ask(lambda jobs: jobs.submit(submission))

    def stop(self, submission_id: str) -> None:
        """Ask a job to end."""
        self._ask(lambda jobs: jobs.stop(submission_id))

    def read_log(self, submission_id: str, log: JobLog) -> None:
        """Read what a job has printed; nobody else waits meanwhile, so it may take its time."""
        self._ask(lambda jobs: jobs.read_log(submission_id, log, LOG_SECONDS))

    def has_package(self, name: str) -> bool:
        """Whether the cluster holds a package."""
        return self._ask(lambda jobs: jobs.has_package(name))

    def upload_package(self, name: str, body: bytes) -> None:
        """Give the cluster a package."""
        self._ask(lambda jobs: jobs.upload_package(name, body))

    def _ask(self, question: Callable[[AsyncRayJobs], Coroutine[Any, Any, _Told]]) -> _Told:
        """Ask in a thread of its own.

        Only an event loop has deadlines for whole requests, and there is one at a time in a thread:
        Airflow calls `on_kill` from a signal handler, in the middle of whatever is asked.
        """
        told: Future[_Told] = Future()

        async def ask_once() -> None:
            try:
                jobs = AsyncRayJobs(self.cluster)
                try:
                    answer = await question(jobs)
                finally:
                    await jobs.close()
            except BaseException as error:  # noqa: BLE001  raised where the question was asked
                told.set_exception(error)
            else:
                told.set_result(answer)

        # what the loop still waits for when it ends, as the name of a host, nobody else does
        asking = threading.Thread(
            target=lambda: asyncio.run(ask_once()), name="ray-jobs", daemon=True
        )
        asking.start()
        return told.result()


def _read_version(cluster: Cluster, answer: Answer) -> str:
    told: _Version = decode_answer(cluster, answer, _Version)
    version = printable(told.ray_version, 40)
    number = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    if number is None or (int(number[1]), int(number[2])) < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise InvalidInputError(
            f"{cluster.address} runs Ray {version}; {oldest} or newer is needed."
        )
    return version


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), _PIECE_BYTES):
        yield body[begin : begin + _PIECE_BYTES]


def _job_path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"
