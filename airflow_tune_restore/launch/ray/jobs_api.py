"""The Ray Jobs API over HTTP: submit, find, list, stop and delete jobs, read logs, upload code.

Needs no Ray. Paths and fields are those of ray/dashboard/modules/job (2.60). The errors are those of
`cluster_errors`.
"""

import asyncio
import functools
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from enum import StrEnum
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar
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
from airflow_tune_restore.launch.ray.job_log import LogTaker, LogText
from airflow_tune_restore.protocol.printable import printable

REQUEST_SECONDS = 30.0
"""Deadline of a request."""

LOG_SECONDS = 300.0
"""Deadline for reading a log in a task or a shell, which has nothing else to do."""

UPLOAD_SECONDS = 300.0
SLOWEST_UPLOAD = 1024**2
"""Bytes per second: a large upload has a later deadline."""

LIST_BYTES = 32 * 1024**2
"""Size limit of the list of all jobs, some 2 KiB each."""

JOB_BYTES = 4 * 1024**2
LOG_BYTES = 1024**3
"""Size limit of a log. It is read in pieces and takes a few MiB of memory, whatever its length."""

ANSWER_BYTES = 1024**2
"""Size limit of all other answers: errors, versions, receipts."""

ABSENT_LISTS = 3
"""A job that is missing so many times in a row is lost: its head node was started anew."""

OUTAGE_SECONDS = 1800.0
"""How long a cluster may be out of reach before its jobs are given up; they may run on."""

OLDEST_RAY = (2, 40)
"""The oldest Ray that runners are tested with."""

_GCS = "gcs"
_PIECE_BYTES = 1024**2
_TAKEN = "already exists"
"""Part of the error for a submission id that is in use (JobManager.submit_job, 2.60)."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


class JobState(StrEnum):
    """Ray's states of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class RayJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the cluster describes it. A driver that connected by itself has no submission id."""

    submission_id: str | None = None
    status: str
    entrypoint: str = ""
    metadata: dict[str, str] | None = None
    message: str | None = None
    driver_exit_code: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**32)] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.status not in (JobState.PENDING, JobState.RUNNING)


class _Version(msgspec.Struct):
    ray_version: str


_JOB, _JOBS = msgspec.json.Decoder(RayJob), msgspec.json.Decoder(list[RayJob])
_VERSION = msgspec.json.Decoder(_Version)
"""Made here, by one thread: see `restore.record_json`."""


class AsyncRayJobs:
    """The API in an event loop. It keeps its connection: close it at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._client = httpx.AsyncClient(**client_options(cluster))

    async def version(self) -> str:
        """Return the cluster's Ray version, after checking address, token and version.

        Raises:
            InvalidInputError: If the cluster cannot be used.
            RayClusterError: If it is out of reach.
        """
        version = _read_version(self.cluster, await self._send("GET", "/api/version"))
        await self.list_all()  # the version needs no token, the list does
        return version

    async def find(self, submission_id: str) -> RayJob | None:
        """Return a job; None if the cluster does not have it."""
        answer = await self._send("GET", _job_path(submission_id), most_bytes=JOB_BYTES)
        if answer.status == httpx.codes.NOT_FOUND:
            return None
        return decode_answer(self.cluster, answer, _JOB)

    async def list_all(self) -> list[RayJob]:
        """Return all jobs and all drivers that connected by themselves, with one request."""
        answer = await self._send("GET", "/api/jobs/", most_bytes=LIST_BYTES)
        return decode_answer(self.cluster, answer, _JOBS)

    async def submit(self, submission: Mapping[str, Any]) -> bool:
        """Submit a job; False if the submission id is in use.

        Raises:
            InvalidInputError: If the cluster refuses the job.
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
        """Stop a job: SIGTERM, then SIGKILL after its grace period. No error if it has ended."""
        await self._send("POST", f"{_job_path(submission_id)}/stop")

    async def delete(self, submission_id: str) -> None:
        """Remove a job that has ended from the list of jobs. No error if the cluster does not have it."""
        await self._send("DELETE", _job_path(submission_id))

    async def read_log(
        self, submission_id: str, log: LogTaker, seconds: float | None = None
    ) -> None:
        """Read what a job has printed, until the log has enough.

        Nothing is read if its node is gone, or if the cluster does not have the job.
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
        """Whether the cluster has a package; if so, it keeps it for some more minutes."""
        answer = await self._send("GET", f"/api/packages/{_GCS}/{name}")
        return answer.status != httpx.codes.NOT_FOUND and bool(check_success(self.cluster, answer))

    async def upload_package(self, name: str, body: bytes) -> None:
        """Upload a package."""
        answer = await self._send(
            "PUT",
            f"/api/packages/{_GCS}/{name}",
            seconds=max(UPLOAD_SECONDS, len(body) / SLOWEST_UPLOAD),
            content=_pieces(body),
            headers={"Content-Length": str(len(body))},
        )
        check_success(self.cluster, answer)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _send(
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


def _blocking(
    method: Callable[Concatenate[AsyncRayJobs, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate["RayJobs", _P], _T]:
    def call(self: "RayJobs", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(lambda jobs: method(jobs, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class RayJobs:
    """The API for code that may block. The methods are those of `AsyncRayJobs`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    version = _blocking(AsyncRayJobs.version)
    find = _blocking(AsyncRayJobs.find)
    list_all = _blocking(AsyncRayJobs.list_all)
    submit = _blocking(AsyncRayJobs.submit)
    stop = _blocking(AsyncRayJobs.stop)
    delete = _blocking(AsyncRayJobs.delete)
    has_package = _blocking(AsyncRayJobs.has_package)
    upload_package = _blocking(AsyncRayJobs.upload_package)

    def read_log(self, submission_id: str, log: LogTaker, seconds: float | None = None) -> None:
        """Read what a job has printed, within `LOG_SECONDS` if no other deadline is given."""
        deadline = LOG_SECONDS if seconds is None else seconds
        self._run(lambda jobs: jobs.read_log(submission_id, log, deadline))

    def _run(self, request: Callable[[AsyncRayJobs], Coroutine[Any, Any, _T]]) -> _T:
        """Run one request in a thread of its own.

        Only an event loop has deadlines for whole requests, and a thread can run one loop at a time.
        Airflow calls `on_kill` from a signal handler, which may interrupt another request.
        """
        answered: Future[_T] = Future()

        async def run_once() -> None:
            try:
                jobs = AsyncRayJobs(self.cluster)
                try:
                    answer = await request(jobs)
                finally:
                    await jobs.close()
            except BaseException as error:  # noqa: BLE001  raised in the calling thread
                answered.set_exception(error)
            else:
                answered.set_result(answer)

        # a daemon: at its end the loop may still wait for the name of a host
        thread = threading.Thread(
            target=lambda: asyncio.run(run_once()), name="ray-jobs", daemon=True
        )
        thread.start()
        return answered.result()


def _read_version(cluster: Cluster, answer: Answer) -> str:
    version = printable(decode_answer(cluster, answer, _VERSION).ray_version, 40)
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
