"""Follows the pod of a runner in the triggerer."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import ContainerState, KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchTimeoutException
from airflow.triggers.base import TriggerEvent

from airflow_tune_restore.hooks.pods_async import FoldingPodManager, PatientAsyncKubernetesHook
from airflow_tune_restore.launch.kubernetes import api
from airflow_tune_restore.launch.kubernetes.pod_exit import PodWatch
from airflow_tune_restore.launch.runner_log import RunnerLog
from airflow_tune_restore.protocol import window
from airflow_tune_restore.triggers.first_event import FIRST_EVENT_SECONDS


class RunnerPodTrigger(KubernetesPodTrigger):
    """Follows a pod as `KubernetesPodTrigger` does, and shows results as they are reported.

    It waits while the API server is out of order, and remembers why Kubernetes took a pod away. If the
    triggerer is killed, the pod continues, and another triggerer follows it.

    Args:
        metric: The metric to show first.
        of_many: Whether the pod runs many trials.
        give_up_at: When the pod is given up if it has not started (ISO 8601); "" for never.
        **kwargs: Arguments of `KubernetesPodTrigger`.
    """

    def __init__(
        self,
        *,
        metric: str | None = None,
        of_many: bool = False,
        give_up_at: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.metric = metric
        self.of_many = of_many
        self.give_up_at = give_up_at
        self._watch = PodWatch(self.base_container_name)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and arguments: a wire format, only ever add."""
        _, arguments = super().serialize()
        more = {"metric": self.metric, "of_many": self.of_many, "give_up_at": self.give_up_at}
        return f"{__name__}.RunnerPodTrigger", arguments | more

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event when the pod has ended."""
        started = time.monotonic()
        async for event in super().run():
            self._fired_event = False  # a kill meanwhile still deletes the pod
            self.pod_manager.shown.end()
            await asyncio.sleep(max(0.0, FIRST_EVENT_SECONDS - (time.monotonic() - started)))
            self._fired_event = True
            end = self._watch.look_back(self.pod_name)
            seen = {"end": asdict(end) if end is not None else None, "outage": self.hook.outage}
            yield TriggerEvent({**event.payload, **seen})

    @cached_property
    def hook(self) -> "_HookOfTrigger":
        """The connection to the cluster."""
        hook = _HookOfTrigger(
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            config_dict=self.config_dict,
            cluster_context=self.cluster_context,
            connection_extras=self.connection_extras,
        )
        hook.deadline = self.trigger_kwargs.get("_execution_deadline")
        return hook

    @cached_property
    def pod_manager(self) -> FoldingPodManager:
        """Shows the log."""
        shown = RunnerLog(self.log, self.metric, of_many=self.of_many)
        manager = FoldingPodManager(self.hook, shown)
        manager.give_up_at = window.parse_end(self.give_up_at)
        return manager

    async def _get_pod(self) -> Any:  # type: ignore[override]  # the provider's is wrapped by tenacity
        pod = await self.hook.get_pod(self.pod_name, self.pod_namespace)
        self._watch.look(pod.to_dict(serialize=True))  # it may be gone at the next look
        return pod

    def define_pod_container_state(self, pod: Any) -> ContainerState:
        """Return whether the runner has ended; the provider trusts the phase, and a node that is gone."""
        end = self._watch.look(pod.to_dict(serialize=True))
        if end is None:
            return ContainerState.RUNNING
        return ContainerState.TERMINATED if end.exit_code == 0 else ContainerState.FAILED


class _NoPodError(PodLaunchTimeoutException):
    """The pod does not exist, or the API did not answer.

    The provider's trigger (10.25) logs every other error with a traceback.
    """


class _HookOfTrigger(PatientAsyncKubernetesHook):
    """Remembers that the API server did not answer, so that the worker does not wait as long again.

    Attributes:
        outage: Its last answer, if the time to ask again is over; else "".
        deadline: End of the task's time, in seconds since 1970; None without a limit.
    """

    outage = ""
    deadline: float | None = None

    async def get_pod(self, name: str, namespace: str) -> Any:
        """Read a pod."""
        try:
            async with asyncio.timeout(self._seconds_left()):
                return await super().get_pod(name, namespace)
        except Exception as error:
            if self._seconds_left() == 0:
                raise _NoPodError("The task's execution_timeout is over") from error
            if not api.is_api_error(error):
                raise
            self.outage = "" if api.is_gone(error, name) else api.describe_error(error)
            raise _NoPodError(api.describe_error(error)) from error

    def _seconds_left(self) -> float | None:
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - datetime.now(UTC).timestamp())
