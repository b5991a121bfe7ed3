"""The Ray Jobs API over HTTP: submit, look, stop, read logs, upload code. No Ray is needed for it.

Its paths and fields are those of ray/dashboard/modules/job (read in 2.60). What a user can mend (address,
token, certificate, version) is an InvalidInputError; what may pass is a RayClusterError.
"""

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError
from airflow_tune_restore.experiments.printable import printable

TIMEOUT_SECONDS = 30.0
UPLOAD_TIMEOUT_SECONDS = 300.0
OLDEST_RAY = (2, 40)
"""The oldest Ray the runner is tested with; it starts no jobs on older clusters."""

DASHBOARD_PORT = 8265
_GCS = "gcs"
_TAKEN = "already exists"
"""What the server says of a submission id that is in use (JobManager.submit_job, 2.60)."""


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


class RayJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster says of one job; one that was not submitted has no submission id."""

    submission_id: str | None = None
    status: str = ""
    entrypoint: str = ""
    metadata: dict[str, str] | None = None
    message: str | None = None
    driver_exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status not in (JobState.PENDING, JobState.RUNNING)


class _Logs(msgspec.Struct):
    logs: str | None = ""


class _Version(msgspec.Struct):
    ray_version: str


class RayJobs:
    """The API, for code that may block."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def version(self) -> str:
        """Return the cluster's Ray version; checks address, token and version on the way.

        Raises:
            InvalidInputError: If this is no cluster that we can use.
            RayClusterError: If it does not answer.
        """
        return _read_version(self.cluster, self._send("GET", "/api/version"), self._send)

    def find(self, submission_id: str) -> RayJob | None:
        """Return a job; None if the cluster knows of none."""
        return _read_job(self.cluster, self._send("GET", _job_path(submission_id)))

    def list_live(self) -> list[RayJob]:
        """Return all jobs that wait or run, those among them that connected by themselves."""
        answer = _good(self.cluster, self._send("GET", "/api/jobs/"))
        jobs: list[RayJob] = _decode(self.cluster, answer, list[RayJob])
        return [job for job in jobs if not job.is_over]

    def submit(self, submission: Mapping[str, Any]) -> bool:
        """Start a job; False if there is one of this submission id already.

        Raises:
            InvalidInputError: If the cluster refuses it.
        """
        answer = self._send("POST", "/api/jobs/", json=dict(submission))
        if answer.is_success:
            return True
        if _TAKEN in answer.text:
            return False
        words = _last_line(answer)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise InvalidInputError(f"{self.cluster.address} refuses the job: {words}")
        raise _failed(self.cluster, answer)

    def stop(self, submission_id: str) -> None:
        """Ask a job to end: SIGTERM, and SIGKILL some time later. No matter if it has ended."""
        self._send("POST", f"{_job_path(submission_id)}/stop")

    def logs(self, submission_id: str) -> str:
        """Return all that a job has printed; "" if nothing is known of it."""
        return _read_logs(self.cluster, self._send("GET", f"{_job_path(submission_id)}/logs"))

    def has_package(self, name: str) -> bool:
        """Whether the cluster holds a package; if so, it keeps it for some more minutes."""
        answer = self._send("GET", f"/api/packages/{_GCS}/{name}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        return bool(_good(self.cluster, answer))

    def upload_package(self, name: str, body: bytes) -> None:
        """Give the cluster a package."""
        path = f"/api/packages/{_GCS}/{name}"
        _good(self.cluster, self._send("PUT", path, content=body, timeout=UPLOAD_TIMEOUT_SECONDS))

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            with httpx.Client(**_options(self.cluster)) as client:
                answer = client.request(method, path, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise explain(self.cluster, error) from error
        return _let_in(self.cluster, answer)


class AsyncRayJobs:
    """What a triggerer asks of the API. Keeps its connection; close it at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._client = httpx.AsyncClient(**_options(cluster))

    async def list_jobs(self) -> dict[str, RayJob]:
        """Return all jobs that were submitted, by submission id: one request, however many."""
        answer = _good(self.cluster, await self._send("GET", "/api/jobs/"))
        jobs: list[RayJob] = _decode(self.cluster, answer, list[RayJob])
        return {job.submission_id: job for job in jobs if job.submission_id is not None}

    async def logs(self, submission_id: str) -> str:
        """Return all that a job has printed."""
        return _read_logs(self.cluster, await self._send("GET", f"{_job_path(submission_id)}/logs"))

    async def stop(self, submission_id: str) -> None:
        """Ask a job to end."""
        await self._send("POST", f"{_job_path(submission_id)}/stop")

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _send(self, method: str, path: str) -> httpx.Response:
        try:
            answer = await self._client.request(method, path)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise explain(self.cluster, error) from error
        return _let_in(self.cluster, answer)


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
        raise InvalidInputError(f"{printable(given)} is no address: {error}.") from error
    if not host or parts.username or parts.password:
        raise InvalidInputError(
            f"A Ray address is http://HOST:PORT, without user or password; not {parts.scheme}://…"
        )
    default = DASHBOARD_PORT if parts.scheme == "http" else None
    shown = f"[{host}]" if ":" in host else host
    port = port or default
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def explain(cluster: Cluster, error: Exception) -> InvalidInputError | RayClusterError:
    """Say in our words why a request had no answer."""
    words, where = str(error), cluster.address
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return InvalidInputError(
            f"The TLS certificate of {where} is not trusted. Name its authority in the connection "
            f"(ca_file), or turn verification off. {printable(words, 200)}"
        )
    if "WRONG_VERSION_NUMBER" in words or "record layer failure" in words:
        return InvalidInputError(f"{where} speaks no TLS: write http:// in place of https://.")
    if isinstance(error, httpx.RemoteProtocolError | httpx.InvalidURL | ssl.SSLError):
        return InvalidInputError(
            f"{where} does not speak HTTP as we do ({printable(words, 200)}). The Ray Jobs API is at "
            f"the dashboard's port, {DASHBOARD_PORT} by default, not at the GCS's or the client's."
        )
    kind = "timed out" if isinstance(error, httpx.TimeoutException) else "cannot be reached"
    return RayClusterError(where, f"it {kind}: {printable(words, 200) or type(error).__name__}")


def _options(cluster: Cluster) -> dict[str, Any]:
    verify: bool | ssl.SSLContext = cluster.verify
    if cluster.ca_file and cluster.verify:
        try:
            verify = ssl.create_default_context(cafile=cluster.ca_file)
        except OSError as error:
            raise InvalidInputError(
                f"The certificates in {cluster.ca_file} cannot be read: {error}."
            ) from error
    elif not cluster.address.startswith("https:"):
        verify = False  # to read all certificates of this machine takes 30 ms
    headers = {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
    return {
        "base_url": cluster.address,
        "headers": headers,
        "verify": verify,
        "timeout": TIMEOUT_SECONDS,
        "trust_env": cluster.address.startswith("https:"),  # proxies of the worker
    }


def _let_in(cluster: Cluster, answer: httpx.Response) -> httpx.Response:
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise InvalidInputError(
            f"{cluster.address} asks for a token, and "
            + (
                "does not take ours."
                if cluster.token
                else "the connection has none (its password)."
            )
        )
    if answer.status_code == httpx.codes.FORBIDDEN:
        raise InvalidInputError(
            f"{cluster.address} refuses the token of the connection (its password)."
        )
    if answer.is_redirect:
        target = printable(answer.headers.get("location", "elsewhere"), 200)
        raise InvalidInputError(
            f"{cluster.address} sends us to {target}; give the connection the last address. A token is "
            "never sent on."
        )
    return answer


def _good(cluster: Cluster, answer: httpx.Response) -> httpx.Response:
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise _no_ray(cluster, "there is no Jobs API")
    if not answer.is_success:
        raise _failed(cluster, answer)
    return answer


def _failed(cluster: Cluster, answer: httpx.Response) -> RayClusterError:
    return RayClusterError(
        cluster.address, f"it answers {answer.status_code}: {_last_line(answer) or 'nothing more'}"
    )


def _no_ray(cluster: Cluster, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{cluster.address} answers, but not as the dashboard of a Ray cluster does "
        f"({printable(reason, 200)}). Is the address right?"
    )


def _last_line(answer: httpx.Response) -> str:
    lines = [line for line in answer.text.splitlines() if line.strip()]
    return printable(lines[-1]) if lines else ""  # of a traceback, mostly


def _read_version(cluster: Cluster, answer: httpx.Response, send: Any) -> str:
    told: _Version = _decode(cluster, _good(cluster, answer), _Version)
    version = told.ray_version
    number = re.match(r"(\d+)\.(\d+)", version)
    if number is None or (int(number[1]), int(number[2])) < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise InvalidInputError(
            f"{cluster.address} runs Ray {printable(version, 40)}; {oldest} or newer is needed."
        )
    _good(cluster, send("GET", "/api/jobs/"))  # the version is told to anybody, jobs are not
    return version


def _read_job(cluster: Cluster, answer: httpx.Response) -> RayJob | None:
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    job: RayJob = _decode(cluster, _good(cluster, answer), RayJob)
    return job


def _decode(cluster: Cluster, answer: httpx.Response, kind: Any) -> Any:
    """Read an answer; jobs may have said anything, also what msgspec refuses (lone surrogates)."""
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        try:
            return msgspec.convert(json.loads(answer.content), kind)
        except (ValueError, RecursionError):
            raise _no_ray(cluster, str(error)) from error


def _read_logs(cluster: Cluster, answer: httpx.Response) -> str:
    """Return the text; a log that is out of reach (its node is gone) is no reason to fail."""
    if not answer.is_success:
        return ""
    told: _Logs = _decode(cluster, answer, _Logs)
    return told.logs or ""


def _job_path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"
