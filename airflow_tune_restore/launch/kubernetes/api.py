"""What an answer of a Kubernetes API server means for a pod that may be running, and asking again.

Only a 404 for that very pod, or the pod's own status, says anything about a pod. Every other answer is an
outage: a server that has just started answers 401 and 403 before it has loaded its roles, and a proxy in
front of it may answer anything.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException
from airflow.sdk.exceptions import AirflowException
from urllib3.exceptions import HTTPError

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol.printable import printable

OUTAGE_SECONDS = 600.0
"""How long an API server may be out of order before a task gives up; the pod goes on."""

REFUSAL_SECONDS = 60.0
"""How long it may refuse to create or delete a pod. It loads its roles in a few; no pod is in danger."""

WAIT_SECONDS = 5.0
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
CONFLICT = 409

MISTAKES = {400: "BadRequest", 413: "RequestEntityTooLarge", 422: "Invalid"}
"""Answers to a pod that is wrong, and stays wrong, by status and reason."""

_REFUSALS = frozenset({UNAUTHORIZED, FORBIDDEN, NOT_FOUND})
_NEVER_REACHED = 503
_UNREACHABLE = (HTTPError, ClientError, TimeoutError, ConnectionError)
_PROVIDERS = (KubernetesApiException, KubernetesApiError)
_DENIED = re.compile(r'admission webhook "[^"]*" denied the request')
_NOT_READY = "not yet ready to handle request"
"""The end of what admission says by 403 while its own caches are still empty."""

_HINT = "If that lasts: the role it needs is in docs/kubernetes/rbac.yaml"

logger = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class UnreadableAnswerError(TuneRestoreError):
    """An answer of an API server is not what was asked for: something in front of it has answered."""


def is_no_answer(error: BaseException | None) -> bool:
    """Whether an error is an answer of an API server, or the lack of one, and not one of our own."""
    return status_of(error) is not None or isinstance(
        error, (*_UNREACHABLE, *_PROVIDERS, UnreadableAnswerError)
    )


def is_gone(error: BaseException | None, name: str) -> bool:
    """Whether an answer means that there is no pod of this name; a 404 may be about anything."""
    answer = _read_status(error)
    details = answer.get("details")
    if status_of(error) != NOT_FOUND or not isinstance(details, dict):
        return False
    return details.get("kind") == "pods" and details.get("name") == name


def is_outage(error: BaseException | None, name: str) -> bool:
    """Whether an error says nothing about the pod of this name."""
    return is_no_answer(error) and not is_gone(error, name)


def is_taken(error: BaseException | None) -> bool:
    """Whether a pod was not created because its name is taken."""
    return status_of(error) == CONFLICT and _read_status(error).get("reason") == "AlreadyExists"


def is_mistake(error: BaseException | None) -> bool:
    """Whether a pod was not created because it is wrong, and will be wrong again."""
    reason = MISTAKES.get(status_of(error) or 0)
    return reason is not None and _read_status(error).get("reason") == reason


def is_refusal(error: BaseException | None, name: str) -> bool:
    """Whether an API server has looked at a new pod, and refused it.

    Admission (a quota, a policy, a missing service account) names the pod, or the webhook that denied it;
    a role that does not allow to create pods, or is not loaded yet, names neither.
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


def provider_errors() -> tuple[type[Exception], ...]:
    """Return what the provider's operator raises: its own errors, and those of the client it uses."""
    from kubernetes.client.exceptions import ApiException

    return (AirflowException, ApiException, UnreadableAnswerError, *_UNREACHABLE)


def describe_error(error: BaseException) -> str:
    """Return an error in one line; an answer of the API server with what it says, and no headers."""
    status = status_of(error)
    if status is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return printable(" ".join(lines), 1000) or type(error).__name__
    said = printable(str(_read_status(error).get("message") or ""), 1000)
    reason = printable(str(getattr(error, "reason", "")))
    return f"{status} {reason}: {said}".strip(": ")


def check_answer(pod: Any, name: str) -> Any:
    """Return a pod that an API server answered with.

    Raises:
        UnreadableAnswerError: If it is not the one that was asked for.
    """
    metadata = getattr(pod, "metadata", None)
    if metadata is None or metadata.name != name or pod.spec is None or pod.status is None:
        raise UnreadableAnswerError(f"The Kubernetes API did not answer with pod {name}")
    return pod


def check_deletion(answer: Any, name: str) -> None:
    """Check what an API server answered to a deletion: the pod, or that it is done.

    Raises:
        UnreadableAnswerError: If it is something else.
    """
    metadata = getattr(answer, "metadata", None)
    if getattr(answer, "kind", None) == "Status":
        return
    if metadata is None or metadata.name != name:
        raise UnreadableAnswerError(f"The Kubernetes API did not answer that pod {name} is deleted")


class Patience:
    """How long to ask an API server again, and what to write into the log meanwhile.

    Args:
        is_final: Whether an answer settles the question, so that there is no use in asking again.
        seconds: How long to ask.
        refusal_seconds: How long to ask again after 401, 403 or 404; None for no less.
        renew: Gets new credentials; called where those in use are not known.
        what: What is asked, for the log.
    """

    def __init__(
        self,
        is_final: Callable[[BaseException], bool],
        *,
        seconds: float = OUTAGE_SECONDS,
        refusal_seconds: float | None = None,
        renew: Callable[[], None] | None = None,
        what: str = "the pod goes on",
    ) -> None:
        self._is_final = is_final
        self._seconds = seconds
        self._refusal_seconds = seconds if refusal_seconds is None else refusal_seconds
        self._renew = renew
        self._what = what
        self._since = time.monotonic()
        self._logged = ""

    def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Ask until there is an answer.

        Raises:
            Exception: What `question` raised: an answer that is final, or the last one that was not.
        """
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
        if not is_no_answer(error) or self._is_final(error):
            return True
        seconds = self._refusal_seconds if status_of(error) in _REFUSALS else self._seconds
        if time.monotonic() - self._since > seconds:
            return True
        said = describe_outage(error)
        if said != self._logged:  # once, and again when it changes
            self._logged = said
            logger.warning("%s; %s. Asking again.", said, self._what)
        if status_of(error) == UNAUTHORIZED and self._renew is not None:
            self._renew()
        return False


def describe_outage(error: BaseException) -> str:
    """Return in words that an API server does not answer as it should."""
    status = status_of(error)
    if isinstance(error, UnreadableAnswerError):
        return str(error)
    if status is None:
        return f"The Kubernetes API cannot be reached ({type(error).__name__})"
    hint = f" ({_HINT})" if status in (UNAUTHORIZED, FORBIDDEN) else ""
    return f"The Kubernetes API answers {describe_error(error)}{hint}"


def _read_status(error: BaseException | None) -> dict[str, Any]:
    """Return the `Status` object in an answer; an empty one if there is none."""
    try:
        body = json.loads(getattr(error, "body", None) or "")
    except (ValueError, TypeError, RecursionError):
        return {}
    return body if isinstance(body, dict) and body.get("kind") == "Status" else {}
