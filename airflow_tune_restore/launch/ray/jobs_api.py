"""The Ray Jobs API over HTTP: submit, look, stop, read logs, upload code. No Ray is needed for it.

Its paths and fields are those of ray/dashboard/modules/job (read in 2.60). What a user can mend (address,
token, certificate, version) is an InvalidInputError; what may pass is a RayClusterError.
"""

import asyncio
import re
import shlex
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError
from airflow_tune_restore.launch.ray.http_answer import (
    PLAIN,
    Answer,
    BrokenAnswerError,
    ask,
    decode,
)
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

DASHBOARD_PORT = 8265
_GCS = "gcs"
_PIECE_BYTES = 1024**2
_CUT_SHORT = ("closed connection", "disconnected", "too long")
"""What h11 says of an answer that ends too early, or whose head does not end."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where a cluster's dashboard listens, and how to be let in.

    Args:
        address: `http://host:8265` or `https://…`, without a trailing slash.
        token: Ray's authentication token; None where it is off.
        verify: Whether TLS certificates are checked.
        ca_file: Certificates to trust beside the usual ones.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    verify: bool = True
    ca_file: str | None = None

    def job_url(self, submission_id: str) -> str:
        """Return the page of a job in the Ray dashboard."""
        return f"{self.address}/#/jobs/{quote(submission_id, safe='')}"

    def log_command(self, submission_id: str) -> str:
        """Return the command that shows all that a job has printed."""
        return f"ray job logs --address {shlex.quote(self.address)} {shlex.quote(submission_id)}"


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
        self._client = httpx.AsyncClient(**_options(cluster))

    async def version(self) -> str:
        """Return the cluster's Ray version; checks address, token and version on the way.

        Raises:
            InvalidInputError: If this is no cluster that we can use.
            RayClusterError: If it does not answer.
        """
        answer = _check_success(self.cluster, await self._send("GET", "/api/version"))
        version = _read_version(self.cluster, answer)
        await self.list_all()  # the version is told to anybody, jobs are not
        return version

    async def find(self, submission_id: str) -> RayJob | None:
        """Return a job; None if the cluster knows of none."""
        answer = await self._send("GET", _job_path(submission_id), most_bytes=JOB_BYTES)
        if answer.status == httpx.codes.NOT_FOUND:
            return None
        job: RayJob = _decode(self.cluster, _check_success(self.cluster, answer), RayJob)
        return job

    async def list_all(self) -> list[RayJob]:
        """Return all jobs, those among them that connected by themselves: one request, however many."""
        answer = await self._send("GET", "/api/jobs/", most_bytes=LIST_BYTES)
        jobs: list[RayJob] = _decode(
            self.cluster, _check_success(self.cluster, answer), list[RayJob]
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
                f"Ray cluster {self.cluster.address} refused the job{_describe_body(answer)}"
            )
        raise _failed(self.cluster, answer)

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
            raise _not_a_dashboard(self.cluster, str(error)) from error
        if answer.is_success and not (text.is_whole or log.is_enough):
            raise _not_a_dashboard(self.cluster, "the end of a log is missing")

    async def has_package(self, name: str) -> bool:
        """Whether the cluster holds a package; if so, it keeps it for some more minutes."""
        answer = await self._send("GET", f"/api/packages/{_GCS}/{name}")
        if answer.status == httpx.codes.NOT_FOUND:
            return False
        return bool(_check_success(self.cluster, answer))

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
        _check_success(self.cluster, answer)

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
        return _check_auth(self.cluster, answer)


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


def parse_cluster_address(text: str) -> str:
    """Return `http(s)://host:port` of what a user wrote as the dashboard's address.

    Raises:
        InvalidInputError: If it cannot be one.
    """
    given = text.strip()
    parts = urlsplit(given if "://" in given else f"http://{given}")
    if parts.scheme not in ("http", "https"):
        raise InvalidInputError(
            f"{printable(given)} is no address of the Ray Jobs API: that speaks HTTP, at "
            f"http://HEAD:{DASHBOARD_PORT} unless the cluster was told otherwise."
        )
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(
            f"{printable(given)} is no address: {str(error).rstrip('.')}."
        ) from error
    if not host or parts.username or parts.password:
        raise InvalidInputError(
            f"A Ray address is http://HOST:PORT, without user or password; not {parts.scheme}://…"
        )
    default = DASHBOARD_PORT if parts.scheme == "http" else None
    shown = f"[{host}]" if ":" in host else host
    port = port or default
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def translate_transport_error(
    cluster: Cluster, error: Exception
) -> InvalidInputError | RayClusterError:
    """Return the error to raise for a request that had no usable answer."""
    words, where = str(error), cluster.address
    shown = printable(words, 200)
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return InvalidInputError(
            f"{where}: the TLS certificate is not trusted. Add its authority to the connection "
            f"(`ca_file`) or to SSL_CERT_FILE, or turn verification off. {shown}"
        )
    if "WRONG_VERSION_NUMBER" in words or "record layer failure" in words:
        return InvalidInputError(f"{where} does not use TLS: write http:// instead of https://.")
    if isinstance(error, BrokenAnswerError):
        return _outage(cluster, words)
    if isinstance(error, httpx.RemoteProtocolError) and any(cut in words for cut in _CUT_SHORT):
        return _outage(cluster, f"the answer was cut off: {shown}")
    if isinstance(error, httpx.RemoteProtocolError | httpx.InvalidURL | ssl.SSLError):
        return InvalidInputError(
            f"{where} did not return a valid HTTP response ({shown}). Use the port of the Ray "
            f"dashboard, {DASHBOARD_PORT} by default, not the port of the GCS or of the Ray client."
        )
    return _outage(cluster, f"not reachable: {shown or type(error).__name__}")


def _outage(cluster: Cluster, reason: str) -> RayClusterError:
    return RayClusterError(f"Ray cluster {cluster.address}: {reason.rstrip('.')}.")


def _options(cluster: Cluster) -> dict[str, Any]:
    verify: bool | ssl.SSLContext = cluster.verify
    if cluster.ca_file and cluster.verify:
        try:
            verify = ssl.create_default_context(cafile=cluster.ca_file)
        except OSError as error:
            raise InvalidInputError(
                f"The certificates in {cluster.ca_file} cannot be read: {str(error).rstrip('.')}."
            ) from error
    elif not cluster.address.startswith("https:"):
        verify = False  # to read all certificates of this machine takes 30 ms
    token = {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
    return {
        "base_url": cluster.address,
        "headers": {**PLAIN, **token},
        "verify": verify,
        "timeout": None,  # each request has a deadline
        "trust_env": cluster.address.startswith("https:"),  # proxies of the worker
    }


def _check_auth(cluster: Cluster, answer: Answer) -> Answer:
    if answer.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        given = "rejected the token" if cluster.token else "requires a token, and none was given"
        raise InvalidInputError(
            f"{cluster.address} {given}. Set the password of the Airflow connection, or RAY_AUTH_TOKEN "
            "in a shell."
        )
    if answer.location:
        raise InvalidInputError(
            f"{cluster.address} redirects to {printable(answer.location, 200)}. Give the last address "
            "instead: a token is never sent to another address."
        )
    return answer


def _check_success(cluster: Cluster, answer: Answer) -> Answer:
    if answer.status == httpx.codes.NOT_FOUND:
        raise _not_a_dashboard(cluster, "HTTP 404: it has no Jobs API")
    if not answer.is_success:
        raise _failed(cluster, answer)
    return answer


def _failed(cluster: Cluster, answer: Answer) -> RayClusterError:
    return _outage(cluster, f"HTTP {answer.status}{_describe_body(answer)}")


def _not_a_dashboard(cluster: Cluster, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{cluster.address} is not the dashboard of a Ray cluster ({printable(reason, 200)}). Check the "
        "address."
    )


def _describe_body(answer: Answer) -> str:
    line = _last_line(answer)
    return f": {line}" if line else " (empty body)"


def _last_line(answer: Answer) -> str:
    lines = [line for line in answer.text.splitlines() if line.strip()]
    return printable(lines[-1]) if lines else ""  # of a traceback, mostly


def _read_version(cluster: Cluster, answer: Answer) -> str:
    told: _Version = _decode(cluster, answer, _Version)
    version = printable(told.ray_version, 40)
    number = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    if number is None or (int(number[1]), int(number[2])) < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise InvalidInputError(
            f"{cluster.address} runs Ray {version}; {oldest} or newer is needed."
        )
    return version


def _decode(cluster: Cluster, answer: Answer, kind: Any) -> Any:
    try:
        return decode(answer.body, kind)
    except BrokenAnswerError as error:
        raise translate_transport_error(cluster, error) from error
    except (ValueError, RecursionError) as error:
        raise _not_a_dashboard(cluster, str(error)) from error


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), _PIECE_BYTES):
        yield body[begin : begin + _PIECE_BYTES]


def _job_path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"
