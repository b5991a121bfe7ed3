"""Kubernetes through the provider's own hooks and pod managers, made fit for pods that must not be lost.

The provider (10.25) takes an API server that does not answer for the pod's end after five tries, a log
that cannot be read for a failure, and a pod whose sidecar runs on for one that has not ended. Ours ask
again (`launch.kubernetes.api`), and look at the runner's container alone (`launch.kubernetes.pod_exit`).
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook, KubernetesHook
from airflow.providers.cncf.kubernetes.utils.container import container_is_running
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    AsyncPodManager,
    PodManager,
    PodPhase,
    detect_pod_terminate_early_issues,
)
from urllib3.util import Retry
from yaml import YAMLError

from airflow_tune_restore.exceptions import KubernetesConnectionError
from airflow_tune_restore.hooks.pod_logs import (
    CATCH_UP_SECONDS,
    FollowedLog,
    PodLog,
    stamped,
    whole_log,
)
from airflow_tune_restore.launch.kubernetes.api import (
    CONFLICT,
    REFUSAL_SECONDS,
    WAIT_SECONDS,
    Patience,
    check_answer,
    check_deletion,
    describe_error,
    describe_outage,
    is_gone,
    is_no_answer,
    is_refusal,
    is_taken,
    status_of,
)
from airflow_tune_restore.launch.kubernetes.bounded_client import (
    REQUEST_SECONDS,
    bound,
    bound_async,
    is_success,
    pieces,
    read_async,
)
from airflow_tune_restore.launch.kubernetes.pod_exit import PodExit, PodWatch
from airflow_tune_restore.launch.kubernetes.pod_start import has_started

POLL_SECONDS = 2.0
LOG_SECONDS = 30.0
"""How long the log of a container that has ended is asked for, where it cannot be read."""

NO_SUCH_LOG = 400
"""The answer where a container has not started, or has left nothing behind."""

_DAY = 24 * 3600

logger = logging.getLogger(__name__)


class PatientKubernetesHook(KubernetesHook):
    """Reads pods, whenever the API server answers again."""

    def get_pod(self, name: str, namespace: str) -> Any:
        """Read a pod (ApiException with 404 if there is none)."""
        patience = Patience(lambda error: is_gone(error, name), renew=self.renew)
        return patience.ask(
            lambda: check_answer(self.core_v1_client.read_namespaced_pod(name, namespace), name)
        )

    def get_conn(self) -> Any:
        """Return a client.

        A `Retry-After` is not obeyed inside of a request: a proxy may send any. Ours ask again soon.

        Raises:
            KubernetesConnectionError: If the connection cannot be used, or is just being written.
        """
        from kubernetes.config import ConfigException

        try:
            found = super().get_conn()
        except (ConfigException, YAMLError, TypeError, AttributeError, OSError) as error:
            which = self.config_file or self.conn_id or "default"
            raise KubernetesConnectionError(
                f"The connection to Kubernetes ({which}) cannot be used: {describe_error(error)}"
            ) from None
        retries = Retry(0, respect_retry_after_header=False)
        found.rest_client.pool_manager.connection_pool_kw["retries"] = retries
        return bound(found)

    def renew(self) -> None:
        """Load the credentials anew, for all clients that were made: those of a cloud last an hour."""
        try:
            self.core_v1_client.api_client = self.get_conn()
        except KubernetesConnectionError as error:  # somebody is just writing them
            logger.warning("%s", error)


class PatientPodManager(PodManager):
    """Creates, reads and deletes pods, and follows the log of a runner to its end.

    Args:
        hook: The cluster.
        watch: Knows from its status whether a pod has ended.
        container: Name of the runner's container.
        callbacks: The provider's.
    """

    def __init__(
        self, hook: PatientKubernetesHook, watch: PodWatch, container: str, callbacks: Any = None
    ) -> None:
        super().__init__(kube_client=hook.core_v1_client, callbacks=callbacks)
        self._hook = hook
        self._pod_watch = watch
        self._container = container

    def create_pod(self, pod: Any) -> Any:
        """Create a pod, or return the one that is there under its name: somebody was first.

        Raises:
            ApiException: If it is refused, or if the API server is out of order for too long.
        """
        name, namespace = pod.metadata.name, pod.metadata.namespace
        body = self._client.api_client.sanitize_for_serialization(pod)
        patience = Patience(
            lambda error: is_refusal(error, name),
            refusal_seconds=REFUSAL_SECONDS,
            renew=self._hook.renew,
            what=f"pod {name} is not created yet",
        )
        try:
            created = patience.ask(
                lambda: check_answer(
                    self._client.create_namespaced_pod(body=body, namespace=namespace), name
                )
            )
        except Exception as error:
            if not is_taken(error):
                raise
            created = None
        if created is None:
            return self.read_pod(pod)
        self._look(created)
        return created

    def delete_unchanged(self, pod: Any) -> bool:
        """Delete a pod if it is still as it was read; return whether it was deleted.

        Raises:
            ApiException: If the API server is out of order for too long.
        """
        from kubernetes.client import models

        name, namespace = pod.metadata.name, pod.metadata.namespace
        as_read = models.V1Preconditions(
            uid=pod.metadata.uid, resource_version=pod.metadata.resource_version
        )
        body = models.V1DeleteOptions(preconditions=as_read)
        patience = _patience_to_delete(
            name,
            self._hook.renew,
            lambda error: is_gone(error, name) or status_of(error) == CONFLICT,
        )
        try:
            patience.ask(
                lambda: check_deletion(
                    self._client.delete_namespaced_pod(name, namespace, body=body), name
                )
            )
        except Exception as error:
            if not is_gone(error, name) and status_of(error) != CONFLICT:
                raise
            return is_gone(error, name)
        return True

    def delete_pod(self, pod: Any) -> None:
        """Delete a pod; one that runs saves a snapshot first. A pod that stays is named in the log."""
        name, namespace = pod.metadata.name, pod.metadata.namespace
        patience = _patience_to_delete(name, self._hook.renew, lambda error: is_gone(error, name))
        try:
            patience.ask(
                lambda: check_deletion(self._client.delete_namespaced_pod(name, namespace), name)
            )
        except Exception as error:
            if is_gone(error, name):
                return
            if not is_no_answer(error):
                raise
            self.log.warning(
                "Pod %s could not be deleted: %s. Delete it: kubectl -n %s delete pod %s",
                *(name, describe_error(error), namespace, name),
            )

    def read_pod(self, pod: Any) -> Any:
        """Read a pod (ApiException with 404 if there is none)."""
        remote = self._hook.get_pod(pod.metadata.name, pod.metadata.namespace)
        self._look(remote)  # it may be gone when we look again
        return remote

    def _look(self, remote: Any) -> PodExit | None:
        return self._pod_watch.look(remote.to_dict(serialize=True))

    def _read_end(self, pod: Any) -> PodExit | None:
        return self._look(self._hook.get_pod(pod.metadata.name, pod.metadata.namespace))

    def has_ended(self, pod: Any) -> bool:
        """Whether the runner of a pod has ended, or is lost."""
        return self._read_end(pod) is not None

    def container_is_running(self, pod: Any, container_name: str) -> bool:
        """Whether more of a container's log may come."""
        if container_name == self._container:
            return not self.has_ended(pod)
        remote = self.read_pod(pod)
        is_over = remote.status.phase in PodPhase.terminal_states
        return not is_over and bool(container_is_running(remote, container_name))

    def await_container_completion(
        self, pod: Any, container_name: str, polling_time: float = POLL_SECONDS
    ) -> None:
        """Wait for the runner's end."""
        del container_name
        while not self.has_ended(pod):
            time.sleep(polling_time)

    def await_pod_completion(self, pod: Any, *_arguments: Any, **_options: Any) -> Any:
        """Wait for the runner's end, and return the pod; its phase may wait for a sidecar for ever."""
        while True:
            remote = self._hook.get_pod(pod.metadata.name, pod.metadata.namespace)
            found = remote.to_dict(serialize=True)
            if self._pod_watch.look(found) is not None:
                return remote
            if not has_started(found, self._container) and detect_pod_terminate_early_issues(
                remote
            ):
                return remote
            time.sleep(POLL_SECONDS)

    def fetch_requested_container_logs(  # type: ignore[override]  # its last two are passed on
        self,
        pod: Any,
        containers: Iterable[str] | str | Literal[True],
        follow_logs: bool = False,  # noqa: FBT001, FBT002  as the provider declares it
        **options: Any,
    ) -> list[Any]:
        """Follow the runner's log to its end, then show what there is of the other containers'."""
        names = self._reconcile_requested_log_containers(
            containers, self.get_container_names(pod), pod.metadata.name
        )
        since = self.container_log_times
        where = (pod.metadata.namespace, pod.metadata.name)
        return [
            self.fetch_container_logs(
                pod=pod,
                container_name=name,
                follow=follow_logs and name == self._container,
                since_time=since.get((*where, name)),
                **options,
            )
            for name in sorted(names, key=lambda name: name != self._container)
        ]

    def read_pod_logs(self, pod: Any, container_name: str, **options: Any) -> Any:
        """Open a container's log as soon as it can be read; an empty one if the container ended before.

        A pod whose node cannot be reached may still run there: it is not left.
        """
        begun, ended_at, logged = time.monotonic(), None, False
        since = options.pop("since_seconds", None)
        options.pop("post_termination_timeout", None)
        while True:
            waited = math.ceil(time.monotonic() - begun)
            try:
                return self._open_log(pod, container_name, since and since + waited, **options)
            except Exception as error:
                if is_gone(error, pod.metadata.name) or not is_no_answer(error):
                    raise
                never_was = status_of(error) == NO_SUCH_LOG
                if not logged and not never_was:
                    self.log.warning("The log cannot be read just now: %s", describe_error(error))
                    logged = True
            end = self._read_end(pod)
            if end is not None or not options.get("follow"):
                ended_at = ended_at or time.monotonic()
                is_lost = end is not None and end.is_lost
                if never_was or is_lost or time.monotonic() - ended_at > LOG_SECONDS:
                    return []
            time.sleep(WAIT_SECONDS)

    def _open_log(self, pod: Any, container: str, since: int | None, **options: Any) -> Any:
        if since is not None:
            options["since_seconds"] = since
        name, namespace = pod.metadata.name, pod.metadata.namespace
        response = self._client.read_namespaced_pod_log(
            name=name,
            namespace=namespace,
            container=container,
            _preload_content=False,
            **options,
        )
        return FollowedLog(
            where=whole_log(name, namespace, container),
            seconds=None if options.get("follow") else CATCH_UP_SECONDS,
            response=response,
            pod=pod,
            pod_manager=self,
            container_name=container,
            # the last of it may be asked for long after the end, when an outage is over
            post_termination_timeout=_DAY,
        )


class PatientAsyncKubernetesHook(AsyncKubernetesHook):
    """The same for the triggerer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._log_is_readable = True

    @contextlib.asynccontextmanager
    async def get_conn(self) -> AsyncIterator[Any]:
        """Open a client."""
        async with super().get_conn() as found:
            yield bound_async(found)

    async def get_pod(self, name: str, namespace: str) -> Any:
        """Read a pod (ApiException with 404 if there is none)."""
        from kubernetes_asyncio.client import CoreV1Api

        async def ask() -> Any:
            async with self.get_conn() as connection:
                return check_answer(
                    await CoreV1Api(connection).read_namespaced_pod(name, namespace), name
                )

        patience = Patience(lambda error: is_gone(error, name), renew=self.renew)
        return await patience.ask_async(ask)

    async def delete_pod(
        self, name: str, namespace: str, grace_period_seconds: int | None = None
    ) -> None:
        """Delete a pod, if there is one."""
        from kubernetes_asyncio.client import CoreV1Api, V1DeleteOptions

        async def ask() -> None:
            async with self.get_conn() as connection:
                options = V1DeleteOptions(grace_period_seconds=grace_period_seconds)
                api = CoreV1Api(connection)
                check_deletion(await api.delete_namespaced_pod(name, namespace, body=options), name)

        patience = _patience_to_delete(name, self.renew, lambda error: is_gone(error, name))
        try:
            await patience.ask_async(ask)
        except Exception as error:
            if not is_gone(error, name):
                raise

    async def read_log(
        self, name: str, namespace: str, container: str, since_seconds: int | None, log: PodLog
    ) -> None:
        """Read a container's log; nothing of one that cannot be read now: it is read later.

        The provider (10.25) takes the text of a refusal for the log, and reads all of it at once.
        """
        from kubernetes_asyncio.client import CoreV1Api

        options: dict[str, Any] = {} if since_seconds is None else {"since_seconds": since_seconds}
        try:
            async with asyncio.timeout(REQUEST_SECONDS), self.get_conn() as connection:
                response: Any = await CoreV1Api(connection).read_namespaced_pod_log(
                    name,
                    namespace,
                    container=container,
                    timestamps=True,
                    _preload_content=False,
                    **options,
                )
                if not is_success(response.status):
                    raise _refused(response, await read_async(response))
                async for piece in pieces(response):
                    log.take(piece)
                log.end()
        except Exception as error:
            if not is_no_answer(error):
                raise
            if self._log_is_readable:
                logger.warning("The log cannot be read just now. %s.", describe_outage(error))
            self._log_is_readable = False
            return
        self._log_is_readable = True

    def renew(self) -> None:
        """Load the credentials anew before the next request."""
        self._config_loaded = False
        self.client_configuration = None


class DescribingPodManager(AsyncPodManager):
    """Shows a runner's lines as people read them.

    Args:
        async_hook: Whom to ask.
        describe: Makes a line of the log out of one of the runner's.
    """

    def __init__(
        self, async_hook: PatientAsyncKubernetesHook, describe: Callable[[str], str]
    ) -> None:
        super().__init__(async_hook=async_hook)
        self._log_hook = async_hook
        self._describe = describe

    async def fetch_container_logs_before_current_sec(
        self, pod: Any, container_name: str, since_time: Any = None
    ) -> Any:
        """Show what is new, but for the second that is not over; return from when on it is new.

        The provider's goes on from when it asked (10.25): lines of that second's beginning are shown by
        nobody, nor are those that it could not read just then.
        """
        now = datetime.now(UTC)
        name, namespace = pod.metadata.name, pod.metadata.namespace
        since = math.ceil((now - since_time).total_seconds()) if since_time else None
        log = PodLog(since_time, now)
        await self._log_hook.read_log(name, namespace, container_name, since, log)
        if log.is_empty:
            return since_time
        new = stamped(log.newest.take(whole_log(name, namespace, container_name)))
        await asyncio.to_thread(self._emit_container_logs, new, now, container_name)
        return now.replace(microsecond=0)

    def _emit_container_logs(self, logs: list[str], now: Any, container_name: str) -> None:
        shown = []
        for line in logs:
            at, _, said = line.partition(" ")
            shown.append(f"{at} {self._describe(said)}")
        super()._emit_container_logs(shown, now, container_name)


def _patience_to_delete(
    name: str, renew: Callable[[], None], is_final: Callable[[BaseException], bool]
) -> Patience:
    return Patience(
        is_final, seconds=REFUSAL_SECONDS, renew=renew, what=f"pod {name} is not deleted yet"
    )


def _refused(response: Any, body: bytes) -> Exception:
    from kubernetes_asyncio.client import ApiException

    error = ApiException(status=response.status, reason=response.reason)
    error.body = body
    return error
