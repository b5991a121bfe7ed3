"""The meaning of an API server's answers for a pod that may be running, and asking again after an outage.

Only a 404 for that very pod, or the pod's own status, is information about the pod. Every other answer is
an outage: a server that has just started answers 401 and 403 before it has loaded its roles, and a proxy
in front of it may answer anything.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import ClientError
from urllib3.exceptions import HTTPError

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol.printable import printable

OUTAGE_SECONDS = 600.0
"""How long an API server may be out of order before we give up; the pod continues."""

REFUSAL_SECONDS = 60.0
"""How long it may refuse to create or delete a pod. It loads its roles within seconds."""

POLL_SECONDS = 2.0
"""Time between two reads of a pod's status."""

WAIT_SECONDS = 5.0
"""Time before a request that was not answered is sent again."""

LOG_SECONDS = 30.0
"""How long the log of an ended container is requested while it cannot be read."""

UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
CONFLICT = 409

NO_SUCH_LOG = 400
"""The answer if a container has not started, or has left no log."""

MISTAKES = {400: "BadRequest", 413: "RequestEntityTooLarge", 422: "Invalid"}
"""Answers to an invalid pod, by status and reason: asking again does not help."""

_REFUSALS = frozenset({UNAUTHORIZED, FORBIDDEN, NOT_FOUND})
_NEVER_REACHED = 503
_UNREACHABLE = (HTTPError, ClientError, TimeoutError, ConnectionError)
_wrappers: set[type[Exception]] = set()
_DENIED = re.compile(r'admission webhook "[^"]*" denied the request')
_NOT_READY = "not yet ready to handle request"
"""The end of admission's 403 while its own caches are still empty."""

_HINT = "If that lasts: the role it needs is in docs/kubernetes/rbac.yaml"

logger = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class UnreadableAnswerError(TuneRestoreError):
    """An answer of an API server has the wrong content: a proxy in front of it may have answered."""


def register_wrapper(*kinds: type[Exception]) -> None:
    """Count exceptions of another package as API errors: it wraps those of the client in them."""
    _wrappers.update(kinds)


def api_errors() -> tuple[type[Exception], ...]:
    """Return the errors that are an answer of an API server, or the lack of one."""
    from kubernetes.client.exceptions import ApiException
    from kubernetes_asyncio.client.exceptions import ApiException as AsyncApiException

    return (ApiException, AsyncApiException, *_UNREACHABLE, *_wrappers, UnreadableAnswerError)


def is_api_error(error: BaseException | None) -> bool:
    """Whether an error is one of `api_errors`."""
    return isinstance(error, api_errors())


def is_gone(error: BaseException | None, name: str) -> bool:
    """Whether an answer means that no pod has this name; a 404 may be about something else."""
    answer = _read_status(error)
    details = answer.get("details")
    if status_of(error) != NOT_FOUND or not isinstance(details, dict):
        return False
    return details.get("kind") == "pods" and details.get("name") == name


def is_outage(error: BaseException | None, name: str) -> bool:
    """Whether an API error leaves open what became of the pod of this name."""
    return is_api_error(error) and not is_gone(error, name)


def is_taken(error: BaseException | None) -> bool:
    """Whether a pod was not created because its name is taken."""
    return status_of(error) == CONFLICT and _read_status(error).get("reason") == "AlreadyExists"


def is_mistake(error: BaseException | None) -> bool:
    """Whether a pod was not created because it is invalid."""
    reason = MISTAKES.get(status_of(error) or 0)
    return reason is not None and _read_status(error).get("reason") == reason


def is_refusal(error: BaseException | None, name: str) -> bool:
    """Whether an API server has examined a new pod and refused it.

    Admission (a quota, a policy, a missing service account) names the pod, or the webhook that denied it;
    a role that does not allow creating pods, or is not loaded yet, names neither.
    """
    answer = _read_status(error)
    about = answer["details"] if isinstance(answer.get("details"), dict) else {}
    message = str(answer.get("message") or "")
    if message.endswith(_NOT_READY):
        return False
    if _DENIED.match(message):
        return True
    if status_of(error) == FORBIDDEN:
        return about.get("name") == name
    if status_of(error) == NOT_FOUND:
        return about.get("kind") == "namespaces"
    return is_taken(error) or is_mistake(error)


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status of an answer of the API server; None for any other error."""
    from kubernetes.client.exceptions import ApiException
    from kubernetes_asyncio.client.exceptions import ApiException as AsyncApiException

    if not isinstance(error, ApiException | AsyncApiException):
        return None
    return int(error.status) if error.status else _NEVER_REACHED


def describe_error(error: BaseException) -> str:
    """Return an error in one line; of an answer of the API server its message, without headers."""
    status = status_of(error)
    if status is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return printable(" ".join(lines), 1000) or type(error).__name__
    message = printable(str(_read_status(error).get("message") or ""), 1000)
    reason = printable(str(getattr(error, "reason", "")))
    return f"{status} {reason}: {message}".strip(": ")


def check_answer(pod: Any, name: str) -> Any:
    """Return the pod in an answer (UnreadableAnswerError if it is not the pod of this name)."""
    metadata = getattr(pod, "metadata", None)
    if metadata is None or metadata.name != name or pod.spec is None or pod.status is None:
        raise UnreadableAnswerError(f"The Kubernetes API did not answer with pod {name}")
    return pod


def check_deletion(answer: Any, name: str) -> None:
    """Check the answer to a deletion (UnreadableAnswerError if it is neither the pod nor a status)."""
    is_status = getattr(answer, "kind", None) == "Status"
    if not is_status and getattr(getattr(answer, "metadata", None), "name", None) != name:
        raise UnreadableAnswerError(f"The Kubernetes API did not answer that pod {name} is deleted")


class Patience:
    """How long to repeat a request to an API server, and the warning to log meanwhile.

    Args:
        is_final: Whether an answer settles the question, so that asking again does not help.
        refusal_seconds: How long to ask again after 401, 403 or 404; by default `seconds`.
        renew: Gets new credentials; called after 401.
        what: The state of affairs, for the log.
    """

    def __init__(
        self,
        is_final: Callable[[BaseException], bool],
        *,
        seconds: float = OUTAGE_SECONDS,
        refusal_seconds: float | None = None,
        renew: Callable[[], None] | None = None,
        what: str = "the pod continues",
    ) -> None:
        self._is_final = is_final
        self._seconds = seconds
        self._refusal_seconds = seconds if refusal_seconds is None else refusal_seconds
        self._renew = renew
        self._what = what
        self._since = time.monotonic()
        self._logged = ""

    def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Ask until there is an answer, or raise a final error, or the last one when the time is over."""
        while True:
            try:
                return question()
            except Exception as error:
                if self._is_over(error):
                    raise
                time.sleep(WAIT_SECONDS)

    async def ask_async(self, question: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Do the same in an event loop."""
        while True:
            try:
                return await question()
            except Exception as error:
                if self._is_over(error):
                    raise
                await asyncio.sleep(WAIT_SECONDS)

    def _is_over(self, error: Exception) -> bool:
        if not is_api_error(error) or self._is_final(error):
            return True
        seconds = self._refusal_seconds if status_of(error) in _REFUSALS else self._seconds
        if time.monotonic() - self._since > seconds:
            return True
        outage = describe_outage(error)
        if outage != self._logged:  # once, and again when it changes
            self._logged = outage
            logger.warning("%s; %s. Asking again.", outage, self._what)
        if status_of(error) == UNAUTHORIZED and self._renew is not None:
            self._renew()
        return False


def describe_outage(error: BaseException) -> str:
    """Return an API error as a clause."""
    status = status_of(error)
    if isinstance(error, UnreadableAnswerError):
        return str(error)
    if status is None:
        return f"The Kubernetes API cannot be reached ({type(error).__name__})"
    hint = f" ({_HINT})" if status == FORBIDDEN else ""
    return f"The Kubernetes API answers {describe_error(error)}{hint}"


def _read_status(error: BaseException | None) -> dict[str, Any]:
    """Return the `Status` object in an answer; an empty one if there is none."""
    try:
        body = json.loads(getattr(error, "body", None) or "")
    except (ValueError, TypeError, RecursionError):
        return {}
    return body if isinstance(body, dict) and body.get("kind") == "Status" else {}
