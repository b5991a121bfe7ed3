"""A Ray cluster: the address of its dashboard, its token, and the settings of a connection to it."""

import shlex
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.ray.http_answer import PLAIN
from airflow_tune_restore.protocol.printable import printable

DASHBOARD_PORT = 8265


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Address and authentication of a cluster's dashboard. Spaces and line ends around a token go.

    Raises:
        InvalidInputError: If an HTTP header cannot hold the token.
    """

    address: str  # `http://host:8265` or `https://…`, without a trailing slash
    token: str | None = field(default=None, repr=False)  # None if authentication is off
    verify: bool = True  # check TLS certificates, with `ca_file` if it is given
    ca_file: str | None = None

    def __post_init__(self) -> None:
        token = (self.token or "").strip()
        if not (token.isascii() and token.isprintable()):
            raise InvalidInputError(
                f"The token for {self.address} cannot be sent: it is not one line of printable ASCII. "
                "Correct RAY_AUTH_TOKEN, the password of the Airflow connection, or token in "
                "[ray_executor]."
            )
        object.__setattr__(self, "token", token or None)

    def job_url(self, submission_id: str) -> str:
        """Return the page of a job in the Ray dashboard."""
        return f"{self.address}/#/jobs/{quote(submission_id, safe='')}"

    def log_command(self, submission_id: str) -> str:
        """Return the shell command that shows the whole log of a job."""
        return f"ray job logs --address {shlex.quote(self.address)} {shlex.quote(submission_id)}"

    def stop_command(self, submission_id: str) -> str:
        """Return the shell command that stops a job."""
        return f"ray job stop --address {shlex.quote(self.address)} {shlex.quote(submission_id)}"


def parse_cluster_address(text: str) -> str:
    """Return `http(s)://host:port` for the dashboard address that a user gave.

    Raises:
        InvalidInputError: If it is not an address.
    """
    given = text.strip()
    if not given:
        raise InvalidInputError(
            "The address of the Ray cluster is empty. Give the address of its dashboard: "
            f"http://HEAD:{DASHBOARD_PORT} by default."
        )
    parts = urlsplit(given if "://" in given else f"http://{given}")
    if parts.scheme not in ("http", "https"):
        raise InvalidInputError(
            f"{printable(given)} is not an address of the Ray Jobs API. It uses HTTP: "
            f"http://HEAD:{DASHBOARD_PORT} by default."
        )
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(
            f"{printable(given)} is not an address: {str(error).rstrip('.')}."
        ) from error
    if not host or parts.username or parts.password:
        raise InvalidInputError(
            f"A Ray address is http://HOST:PORT, without user or password; not {parts.scheme}://…"
        )
    port = port or (DASHBOARD_PORT if parts.scheme == "http" else None)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def client_options(cluster: Cluster) -> dict[str, Any]:
    """Return the arguments of `httpx.AsyncClient` for a cluster.

    Raises:
        InvalidInputError: If the certificates cannot be read.
    """
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
