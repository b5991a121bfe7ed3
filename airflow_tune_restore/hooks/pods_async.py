"""Kubernetes through the provider's hook and pod manager for the triggerer (see `hooks.pods`)."""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager

from airflow_tune_restore.hooks.pod_logs import stamped
from airflow_tune_restore.hooks.pod_window import until
from airflow_tune_restore.launch.kubernetes import api, bounded_client
from airflow_tune_restore.launch.kubernetes.bounded_client import REQUEST_SECONDS
from airflow_tune_restore.launch.kubernetes.container_log import ContainerLog, time_of, whole_log
from airflow_tune_restore.launch.kubernetes.named_pods import patience_to_delete
from airflow_tune_restore.launch.runner_log import RunnerLog

logger = logging.getLogger(__name__)


class PatientAsyncKubernetesHook(AsyncKubernetesHook):
    """Reads and deletes pods, and reads logs, whenever the API server answers again."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._log_is_readable = True

    @contextlib.asynccontextmanager
    async def get_conn(self) -> AsyncIterator[Any]:
        """Open a client."""
        async with super().get_conn() as found:
            yield bounded_client.bound_async(found)

    async def get_conn_extras(self) -> dict[str, Any]:
        """Read the connection, to the end: a question that is cancelled ends a triggerer before 3.2.2."""
        found: dict[str, Any] = await asyncio.shield(super().get_conn_extras())
        return found

    async def get_pod(self, name: str, namespace: str) -> Any:
        """Read a pod (ApiException with 404 if it does not exist)."""
        from kubernetes_asyncio.client import CoreV1Api

        async def ask() -> Any:
            async with self.get_conn() as connection:
                pod = await CoreV1Api(connection).read_namespaced_pod(name, namespace)
                return api.check_answer(pod, name)

        patience = api.Patience(lambda error: api.is_gone(error, name), renew=self.renew)
        return await patience.ask_async(ask)

    async def delete_pod(
        self, name: str, namespace: str, grace_period_seconds: int | None = None
    ) -> None:
        """Delete a pod, if there is one."""
        from kubernetes_asyncio.client import CoreV1Api, V1DeleteOptions

        async def ask() -> None:
            async with self.get_conn() as connection:
                body = V1DeleteOptions(grace_period_seconds=grace_period_seconds)
                core = CoreV1Api(connection)
                api.check_deletion(
                    await core.delete_namespaced_pod(name, namespace, body=body), name
                )

        try:
            await patience_to_delete(name, self.renew).ask_async(ask)
        except Exception as error:
            if not api.is_gone(error, name):
                raise

    async def read_log(
        self, name: str, namespace: str, container: str, since: int | None, log: ContainerLog
    ) -> None:
        """Read a container's log; nothing if it cannot be read now: it is read later.

        The provider (10.25) returns the text of a refusal as the log, and reads all of it at once.
        """
        from kubernetes_asyncio.client import CoreV1Api

        options: dict[str, Any] = {} if since is None else {"since_seconds": since}
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
                if not bounded_client.is_success(response.status):
                    raise _refused(response, await bounded_client.read_async(response))
                async for piece in bounded_client.pieces(response):
                    log.take(piece)
                log.end()
        except api.api_errors() as error:
            if self._log_is_readable:
                logger.warning("The log cannot be read just now. %s.", api.describe_outage(error))
            self._log_is_readable = False
        else:
            self._log_is_readable = True

    def renew(self) -> None:
        """Load the credentials again before the next request."""
        self._config_loaded = False
        self.client_configuration = None


class FoldingPodManager(AsyncPodManager):
    """Shows the lines of a runner in a log of its own, which folds tracebacks."""

    def __init__(self, async_hook: PatientAsyncKubernetesHook, shown: RunnerLog) -> None:
        super().__init__(async_hook=async_hook)
        self._log_hook = async_hook
        self.shown = shown
        self.give_up_at: datetime | None = None
        """When a pod is given up that has not started (UTC); None: the timeouts of the operator count."""

    async def await_pod_start(self, *arguments: Any, **options: Any) -> None:
        """Wait for the start of a pod, at most until `give_up_at`."""
        async with until(self.give_up_at):
            await super().await_pod_start(*arguments, **options)

    async def fetch_container_logs_before_current_sec(
        self, pod: Any, container_name: str, since_time: Any = None
    ) -> Any:
        """Show the new lines up to the current second; return the time from which on lines are new.

        The provider (10.25) returns the time of its request: it loses the lines of the beginning of that
        second, and the lines that it could not read in that moment.
        """
        now = datetime.now(UTC)
        name, namespace = pod.metadata.name, pod.metadata.namespace
        since = math.ceil((now - since_time).total_seconds()) if since_time else None
        this_second = now.replace(microsecond=0)
        log = ContainerLog(
            lambda at: (
                at.replace(microsecond=0) != this_second and (not since_time or at >= since_time)
            )
        )
        await self._log_hook.read_log(name, namespace, container_name, since, log)
        if log.is_empty:
            return since_time
        new = stamped(log.newest.take(whole_log(name, namespace, container_name)))
        await asyncio.to_thread(self._emit_container_logs, new, now, container_name)
        return this_second

    def _emit_container_logs(self, logs: list[str], now: Any, container_name: str) -> None:
        del now, container_name  # the lines of this second were left out before
        self.shown.show_all(
            line.partition(" ")[2] if time_of(line) is not None else line for line in logs
        )


def _refused(response: Any, body: bytes) -> Exception:
    from kubernetes_asyncio.client import ApiException

    error = ApiException(status=response.status, reason=response.reason)
    error.body = body
    return error
