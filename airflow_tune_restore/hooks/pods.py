"""Kubernetes through the provider's hook and pod manager, made fit for pods that must not be lost.

If an API server does not answer five times, the provider (10.25) takes the pod as ended. If a log cannot
be read, the task fails. A pod whose sidecar still runs never ends. The classes here ask again
(`launch.kubernetes.api`), and examine the runner's container alone (`launch.kubernetes.pod_exit`).
"""

import logging
import math
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException
from airflow.providers.cncf.kubernetes.utils.container import container_is_running
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    PodManager,
    PodPhase,
    detect_pod_terminate_early_issues,
)
from yaml import YAMLError

from airflow_tune_restore.exceptions import KubernetesConnectionError
from airflow_tune_restore.hooks.pod_logs import CATCH_UP_SECONDS, FollowedLog
from airflow_tune_restore.hooks.pod_window import until
from airflow_tune_restore.launch.kubernetes import api
from airflow_tune_restore.launch.kubernetes.api import LOG_SECONDS, POLL_SECONDS, WAIT_SECONDS
from airflow_tune_restore.launch.kubernetes.bounded_client import bound
from airflow_tune_restore.launch.kubernetes.container_log import whole_log
from airflow_tune_restore.launch.kubernetes.named_pods import NamedPods, read_pod
from airflow_tune_restore.launch.kubernetes.pod_exit import PodExit
from airflow_tune_restore.launch.kubernetes.pod_start import has_started
from airflow_tune_restore.launch.log_lines import LONGEST_LINE
from airflow_tune_restore.launch.runner_log import RunnerLog
from airflow_tune_restore.protocol.printable import printable

_DAY = 24 * 3600

logger = logging.getLogger(__name__)
api.register_wrapper(KubernetesApiException, KubernetesApiError)


class PatientKubernetesHook(KubernetesHook):
    """Reads pods, whenever the API server answers again."""

    def get_pod(self, name: str, namespace: str) -> Any:
        """Read a pod (ApiException with 404 if it does not exist)."""
        return read_pod(self.core_v1_client, name, namespace, self.renew)

    def get_conn(self) -> Any:
        """Return a bounded client (KubernetesConnectionError if the connection is not valid)."""
        from kubernetes.config import ConfigException

        try:
            return bound(super().get_conn())
        except (
            *(ConfigException, YAMLError, TypeError, AttributeError, LookupError),
            *(ValueError, OSError),
        ) as error:
            which, why = self.config_file or self.conn_id or "default", api.describe_error(error)
            raise KubernetesConnectionError(
                f"The connection to Kubernetes ({which}) cannot be used: {why}"
            ) from None

    def renew(self) -> None:
        """Load the credentials again, for all clients: those of a cloud last an hour."""
        try:
            self.core_v1_client.api_client = self.get_conn()
        except KubernetesConnectionError as error:  # their file may just be written
            logger.warning("%s", error)


class PatientPodManager(PodManager):
    """Follows the log of a runner to its end; pods are created, read and deleted by their names."""

    def __init__(self, pods: NamedPods, callbacks: Any = None) -> None:
        super().__init__(kube_client=pods.core, callbacks=callbacks)
        self._pods = pods
        self._container = pods.watch.container
        self.give_up_at: datetime | None = None
        """When a pod is given up that has not started (UTC); None: the timeouts of the operator count."""

    def create_pod(self, pod: Any) -> Any:
        """Create a pod, or return the pod that has its name already."""
        return self._pods.create(pod)

    async def await_pod_start(self, *arguments: Any, **options: Any) -> None:
        """Wait for the start of a pod, at most until `give_up_at`."""
        async with until(self.give_up_at):
            await super().await_pod_start(*arguments, **options)

    def delete_pod(self, pod: Any) -> None:
        """Delete a pod; a runner saves a snapshot first."""
        self._pods.delete(pod.metadata.name)

    def read_pod(self, pod: Any) -> Any:
        """Read a pod (ApiException with 404 if it does not exist)."""
        return self._pods.get(pod.metadata.name)

    def _read_end(self, pod: Any) -> PodExit | None:
        return self._pods.watch.look(self.read_pod(pod).to_dict(serialize=True))

    def container_is_running(self, pod: Any, container_name: str) -> bool:
        """Whether more of a container's log may come."""
        if container_name == self._container:
            return self._read_end(pod) is None
        remote = self.read_pod(pod)
        is_over = remote.status.phase in PodPhase.terminal_states
        return not is_over and bool(container_is_running(remote, container_name))

    def await_container_completion(
        self, pod: Any, container_name: str, polling_time: float = POLL_SECONDS
    ) -> None:
        """Wait for the runner's end."""
        del container_name
        while self._read_end(pod) is None:
            time.sleep(polling_time)

    def await_pod_completion(self, pod: Any, *_arguments: Any, **_options: Any) -> Any:
        """Wait for the runner's end, and return the pod; a sidecar may run for ever."""
        while True:
            remote = self.read_pod(pod)
            found = remote.to_dict(serialize=True)
            is_waiting = not has_started(found, self._container)
            if self._pods.watch.look(found) is not None or (
                is_waiting and detect_pod_terminate_early_issues(remote)
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
        """Follow the runner's log to its end, then show the logs of the other containers so far."""
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

    def fetch_container_logs(
        self, *arguments: Any, log_formatter: Any = None, **options: Any
    ) -> Any:
        """Show a container's log; a traceback that was held back, too."""
        try:
            return super().fetch_container_logs(*arguments, log_formatter=log_formatter, **options)
        finally:
            if isinstance(log_formatter, RunnerLog):
                log_formatter.end()

    def _log_message(
        self,
        message: str,
        container_name: str,
        container_name_log_prefix_enabled: bool,  # noqa: FBT001  as the provider declares it
        log_formatter: Any,
    ) -> None:
        """Show a message; the provider (10.25) would let a line open a group of the log page."""
        if isinstance(log_formatter, RunnerLog):
            log_formatter.show_all(message.split("\n"))
            return
        super()._log_message(
            "\n".join(printable(line, LONGEST_LINE) for line in message.split("\n")),
            *(container_name, container_name_log_prefix_enabled, log_formatter),
        )

    def read_pod_logs(self, pod: Any, container_name: str, **options: Any) -> Any:
        """Open a container's log as soon as it can be read; an empty log if the container ended before.

        A pod whose node cannot be reached may still run there, so it is not abandoned.
        """
        begun, ended_at, logged = time.monotonic(), None, False
        since = options.pop("since_seconds", None)
        options.pop("post_termination_timeout", None)
        while True:
            waited = math.ceil(time.monotonic() - begun)
            try:
                return self._open_log(pod, container_name, since and since + waited, **options)
            except api.api_errors() as error:
                if api.is_gone(error, pod.metadata.name):
                    raise
                never_was = api.status_of(error) == api.NO_SUCH_LOG
                if not logged and not never_was:
                    logged, why = True, api.describe_error(error)
                    self.log.warning("The log cannot be read just now: %s", why)
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
            name=name, namespace=namespace, container=container, _preload_content=False, **options
        )
        return FollowedLog(
            where=whole_log(name, namespace, container),
            seconds=None if options.get("follow") else CATCH_UP_SECONDS,
            response=response,
            pod=pod,
            pod_manager=self,
            container_name=container,
            # its last lines may be read long after the end, when an outage is over
            post_termination_timeout=_DAY,
        )
