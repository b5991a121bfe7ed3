"""Follows the pod of a runner in the triggerer."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent

from airflow_tune_restore.hooks.pods import DescribingPodManager, PatientAsyncKubernetesHook
from airflow_tune_restore.launch.pod_end import read_disruption
from airflow_tune_restore.restore.lines import describe_line

FIRST_EVENT_SECONDS = 10.0
"""An event that comes sooner fails tasks at random in Airflow 3.3.2: they are still queued
(apache/airflow #66374, #67287)."""


class RunnerPodTrigger(KubernetesPodTrigger):
    """Follows a pod as `KubernetesPodTrigger` does, and shows results as they are reported.

    It outlasts an API server that is out of order, and remembers what Kubernetes said of a pod that it
    then took away. A triggerer that is killed leaves the pod alone: another one starts here anew.

    Args:
        metric: The metric to show first.
        of_many: Whether many trials report there.
        **kwargs: Arguments of `KubernetesPodTrigger`.
    """

    def __init__(self, *, metric: str | None = None, of_many: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metric = metric
        self.of_many = of_many
        self._seen = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and arguments: a wire format, only ever add."""
        _, arguments = super().serialize()
        return (
            f"{__name__}.RunnerPodTrigger",
            {**arguments, "metric": self.metric, "of_many": self.of_many},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield how it ended."""
        started = time.monotonic()
        async for event in super().run():
            await asyncio.sleep(max(0.0, FIRST_EVENT_SECONDS - (time.monotonic() - started)))
            yield TriggerEvent({**event.payload, "seen": self._seen})

    @cached_property
    def hook(self) -> PatientAsyncKubernetesHook:
        """The connection to the cluster."""
        return PatientAsyncKubernetesHook(
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            config_dict=self.config_dict,
            cluster_context=self.cluster_context,
            connection_extras=self.connection_extras,
        )

    @cached_property
    def pod_manager(self) -> DescribingPodManager:
        """Whoever shows the log."""
        return DescribingPodManager(
            self.hook, lambda line: describe_line(line, self.metric, of_many=self.of_many)
        )

    async def _get_pod(self) -> Any:  # type: ignore[override]  # the provider's is wrapped by tenacity
        pod = await super()._get_pod()
        self._seen = read_disruption(pod.to_dict(serialize=True)) or self._seen
        return pod
