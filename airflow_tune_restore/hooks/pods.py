"""Kubernetes through the provider's own hooks and pod managers, with more patience.

They give up after five tries, about 15 s (`[workers] api_retries`), which an upgrade of a control plane
outlasts; and giving up, the operator deletes the pod it cannot see, and the work in it. Ours wait.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook, KubernetesHook
from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    AsyncPodManager,
    PodManager,
    parse_log_line,
)
from airflow.sdk.exceptions import AirflowException
from urllib3.exceptions import HTTPError

OUTAGE_SECONDS = 600.0
"""How long an API server may be out of order before whoever follows a pod gives up; the pod goes on."""

WAIT_SECONDS = 5.0

_OUT_OF_ORDER = frozenset({429, 500, 502, 503, 504})
"""Throttled, broken, restarting. 409 is none of them: somebody was first."""

_UNREACHABLE = (HTTPError, ClientError, TimeoutError, KubernetesApiException, KubernetesApiError)

logger = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


def is_outage(error: BaseException | None) -> bool:
    """Whether an API server that fails like this may be asked again."""
    status = status_of(error)
    return status in _OUT_OF_ORDER if status is not None else isinstance(error, _UNREACHABLE)


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status of an answer of the API server; None for any other error."""
    from kubernetes.client.exceptions import ApiException
    from kubernetes_asyncio.client.exceptions import ApiException as AsyncApiException

    if not isinstance(error, ApiException | AsyncApiException):
        return None
    return int(error.status) if error.status else 503  # it was never reached


def provider_errors() -> tuple[type[Exception], ...]:
    """Return what the provider's operator raises: its own errors, and those of the client it uses."""
    from kubernetes.client.exceptions import ApiException

    return (AirflowException, ApiException, HTTPError)


def describe_error(error: BaseException) -> str:
    """Return an error in one line; an answer of the API server with what it says, and no headers."""
    status = status_of(error)
    if status is None:
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    try:
        said = json.loads(getattr(error, "body", None) or "")["message"]
    except (ValueError, TypeError, KeyError):
        said = ""
    return f"{status} {getattr(error, 'reason', '')}: {said}".strip(": ")


def patiently(ask: Callable[[], _Answer]) -> _Answer:
    """Ask again while the API server is out of order, for `OUTAGE_SECONDS`."""
    since = time.monotonic()
    while True:
        try:
            return ask()
        except Exception as error:
            if not is_outage(error) or time.monotonic() - since > OUTAGE_SECONDS:
                raise
            _tell(error)
            time.sleep(WAIT_SECONDS)


async def patiently_async(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Do the same in an event loop."""
    since = time.monotonic()
    while True:
        try:
            return await ask()
        except Exception as error:
            if not is_outage(error) or time.monotonic() - since > OUTAGE_SECONDS:
                raise
            _tell(error)
            await asyncio.sleep(WAIT_SECONDS)


def _tell(error: BaseException) -> None:
    status = status_of(error)
    said = (
        f"answers {status}" if status is not None else f"cannot be reached ({type(error).__name__})"
    )
    logger.warning("The Kubernetes API %s; the pod goes on. Asking again.", said)


class PatientKubernetesHook(KubernetesHook):
    """Reads pods, whenever the API server answers again."""

    def get_pod(self, name: str, namespace: str) -> Any:
        """Read a pod (ApiException with 404 if there is none)."""
        return patiently(lambda: super(PatientKubernetesHook, self).get_pod(name, namespace))


class PatientPodManager(PodManager):
    """Creates, reads and deletes pods, and follows their logs, whenever the API server answers again."""

    def run_pod_async(self, pod: Any, **kwargs: Any) -> Any:
        """Create a pod; one that is there already under its name was made by an answer that was lost."""
        try:
            return super().run_pod_async(pod, **kwargs)
        except Exception as error:
            if status_of(error) == 409 and "AlreadyExists" in str(getattr(error, "body", "")):  # noqa: PLR2004
                return self.read_pod(pod)
            raise

    def create_pod(self, pod: Any) -> Any:
        """Create a pod."""
        return patiently(lambda: super(PatientPodManager, self).create_pod(pod))

    def delete_pod(self, pod: Any) -> None:
        """Delete a pod."""
        patiently(lambda: super(PatientPodManager, self).delete_pod(pod))

    def read_pod(self, pod: Any) -> Any:
        """Read a pod (ApiException with 404 if there is none)."""
        return patiently(lambda: super(PatientPodManager, self).read_pod(pod))

    def read_pod_logs(self, pod: Any, container_name: str, **kwargs: Any) -> Any:
        """Open a container's log."""
        return patiently(
            lambda: super(PatientPodManager, self).read_pod_logs(pod, container_name, **kwargs)
        )


class PatientAsyncKubernetesHook(AsyncKubernetesHook):
    """The same for the triggerer."""

    async def get_pod(self, name: str, namespace: str) -> Any:
        """Read a pod (ApiException with 404 if there is none)."""
        return await patiently_async(
            lambda: super(PatientAsyncKubernetesHook, self).get_pod(name, namespace)
        )

    async def read_logs(
        self,
        name: str,
        namespace: str,
        container_name: str | None = None,
        since_seconds: int | None = None,
    ) -> list[str]:
        """Read a container's log; a log that cannot be read now is read later."""
        try:
            lines: list[str] = await super().read_logs(
                name, namespace, container_name, since_seconds
            )
        except Exception as error:
            if not is_outage(error):
                raise
            _tell(error)
            return []
        return lines


class DescribingPodManager(AsyncPodManager):
    """Shows a runner's lines as people read them.

    Args:
        async_hook: Whom to ask.
        describe: Makes a line of the log out of one of the runner's.
    """

    def __init__(self, async_hook: AsyncKubernetesHook, describe: Callable[[str], str]) -> None:
        super().__init__(async_hook=async_hook)
        self._describe = describe

    async def fetch_container_logs_before_current_sec(
        self, pod: Any, container_name: str, since_time: Any = None
    ) -> Any:
        """Show what is new, but for the second that is not over; return from when on it is new.

        The provider's goes on from when it asked (10.25): lines of that second's beginning are shown by
        nobody, nor are those that it could not read just then.
        """
        now = datetime.now(UTC)
        lines = await self._hook.read_logs(
            name=pod.metadata.name,
            namespace=pod.metadata.namespace,
            container_name=container_name,
            since_seconds=math.ceil((now - since_time).total_seconds()) if since_time else None,
        )
        if not lines:
            return since_time
        new = [line for line in lines if since_time is None or not _is_older(line, since_time)]
        await asyncio.to_thread(self._emit_container_logs, new, now, container_name)
        return now.replace(microsecond=0)

    def _emit_container_logs(self, logs: list[str], now: Any, container_name: str) -> None:
        shown = []
        for line in logs:
            at, _, said = line.partition(" ")
            shown.append(f"{at} {self._describe(said)}")
        super()._emit_container_logs(shown, now, container_name)


def _is_older(line: str, since: Any) -> bool:
    """Whether a line was shown before: Kubernetes takes whole seconds, and rounds up."""
    at, _ = parse_log_line(line)
    return at is not None and at < since
