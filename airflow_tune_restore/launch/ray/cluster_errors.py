"""Errors for the answers of a Ray cluster.

A mistake that a user can correct (address, token, certificate, version) is an InvalidInputError. An
outage that may pass is a RayClusterError.
"""

import re
import ssl
from typing import TYPE_CHECKING, TypeVar

import httpx

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError
from airflow_tune_restore.launch.ray.cluster import DASHBOARD_PORT, Cluster
from airflow_tune_restore.launch.ray.http_answer import Answer, BrokenAnswerError, decode
from airflow_tune_restore.protocol.printable import printable

if TYPE_CHECKING:
    import msgspec

_T = TypeVar("_T")

_CUT_SHORT = ("closed connection", "disconnected", "too long")
"""Parts of h11's messages for an answer that ends too early, or whose head does not end."""

_PAGE_LENGTH = 4000
"""Characters of an HTML page that are searched for its title."""

_TITLE = re.compile(r"<title[^<>]*>\s*([^<>]+)", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_WORD = re.compile(r"\w")


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
    if isinstance(error, httpx.LocalProtocolError):  # its text may quote the token
        return InvalidInputError(f"{where}: the request is not valid HTTP and was not sent.")
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


def check_auth(cluster: Cluster, answer: Answer) -> Answer:
    """Return the answer.

    Raises:
        InvalidInputError: If the token is missing or wrong, or if the answer redirects.
    """
    if answer.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        given = "rejected the token" if cluster.token else "requires a token, and none was given"
        raise InvalidInputError(
            f"{cluster.address} {given}. Set the password of the Airflow connection, token in "
            "[ray_executor], or RAY_AUTH_TOKEN in a shell."
        )
    if answer.location:
        raise InvalidInputError(
            f"{cluster.address} redirects to {printable(answer.location, 200)}. Give the last address "
            "instead: a token is never sent to another address."
        )
    return answer


def check_success(cluster: Cluster, answer: Answer) -> Answer:
    """Return the answer.

    Raises:
        InvalidInputError: If the path does not exist.
        RayClusterError: If the request failed.
    """
    if answer.status == httpx.codes.NOT_FOUND:
        raise not_a_dashboard(cluster, "HTTP 404: it has no Jobs API")
    if not answer.is_success:
        raise failed(cluster, answer)
    return answer


def failed(cluster: Cluster, answer: Answer) -> RayClusterError:
    """Return the error for an answer that is not a success."""
    return _outage(cluster, f"HTTP {answer.status}{describe_body(answer)}")


def not_a_dashboard(cluster: Cluster, reason: str) -> InvalidInputError:
    """Return the error for an answer that does not come from a Ray dashboard."""
    return InvalidInputError(
        f"{cluster.address} is not the dashboard of a Ray cluster ({printable(reason, 200)}). Check the "
        "address."
    )


def describe_body(answer: Answer) -> str:
    """Return the title of an HTML page, or the last line with words of another body, after a colon.

    The last line of a traceback is the error. Ray puts a full stop behind one, on a line of its own.
    """
    text = answer.text.strip()
    if text.startswith("<"):
        page = text[:_PAGE_LENGTH]
        title = _TITLE.search(page)
        lines = [title[1]] if title else _TAG.sub("\n", page).split("\n")
        shown = next(filter(None, map(str.strip, lines)), "an HTML page")
    else:
        shown = next((line for line in reversed(text.splitlines()) if _WORD.search(line)), text)
    return f": {printable(shown)}" if shown else " (empty body)"


def decode_answer(cluster: Cluster, answer: Answer, decoder: "msgspec.json.Decoder[_T]") -> _T:
    """Return the JSON of an answer.

    Raises:
        InvalidInputError: If the path does not exist, or the JSON is not of the decoder's type.
        RayClusterError: If the request failed, or the answer is too large.
    """
    try:
        return decode(check_success(cluster, answer).body, decoder)
    except BrokenAnswerError as error:
        raise translate_transport_error(cluster, error) from error
    except (ValueError, RecursionError) as error:
        raise not_a_dashboard(cluster, str(error)) from error
