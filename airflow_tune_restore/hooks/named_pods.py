"""Pods found by their names: whether they have started, and how they ended."""

from dataclasses import dataclass
from typing import Any

from airflow_tune_restore.hooks.pods import PatientKubernetesHook, PatientPodManager
from airflow_tune_restore.launch.kubernetes.api import is_gone, is_no_answer
from airflow_tune_restore.launch.kubernetes.pod_exit import PodExit, PodWatch, gone_pod_exit
from airflow_tune_restore.launch.kubernetes.pod_start import (
    has_started,
    is_pending,
    why_not_started,
)


@dataclass(frozen=True, kw_only=True)
class NamedPods:
    """The pods of a namespace, by name.

    Args:
        hook: The cluster.
        manager: Deletes pods.
        namespace: Where they are.
        watch: Knows from its status whether a pod has ended.
    """

    hook: PatientKubernetesHook
    manager: PatientPodManager
    namespace: str
    watch: PodWatch

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a pod as Kubernetes' JSON; None if there is none."""
        try:
            pod: dict[str, Any] = self.hook.get_pod(name, self.namespace).to_dict(serialize=True)
        except Exception as error:
            if is_gone(error, name):
                return None
            raise
        return pod

    def is_pending(self, name: str) -> bool:
        """Whether a pod waits for a node, for its image or for what it mounts."""
        return is_pending(self.read(name) or {})

    def look(self, name: str) -> PodExit | None:
        """Return how a pod ended, None if it has not; of one that is gone, what was seen or reported."""
        pod = self.read(name)
        if pod is not None:
            return self.watch.look(pod)
        return self.watch.look_back(name) or gone_pod_exit(name, self._events(name))

    def delete_unstarted(self, name: str) -> str | None:
        """Delete a pod that has not started; return why it has not, None if it has meanwhile.

        Nothing is deleted but the very pod that was read: it may start while an answer is waited for.
        """
        while True:
            try:
                pod = self.hook.get_pod(name, self.namespace)
            except Exception as error:
                if is_gone(error, name):
                    return None
                raise
            found = pod.to_dict(serialize=True)
            if has_started(found, self.watch.container) or self.watch.look(found) is not None:
                return None
            why = why_not_started(found, self._events(name))
            if self.manager.delete_unchanged(pod):
                return why

    def delete(self, name: str) -> None:
        """Delete a pod; one that runs saves a snapshot first."""
        from kubernetes.client import models

        metadata = models.V1ObjectMeta(name=name, namespace=self.namespace)
        self.manager.delete_pod(models.V1Pod(metadata=metadata))

    def _events(self, name: str) -> list[dict[str, Any]]:
        """Return what Kubernetes reported of a pod; nothing if that cannot be read."""
        try:
            found = self.hook.core_v1_client.list_namespaced_event(
                namespace=self.namespace, field_selector=f"involvedObject.name={name}"
            )
            events = [event.to_dict(serialize=True) for event in found.items or ()]
            uid = self.watch.uid(name)  # an earlier pod of the name may have left some
            return [
                e for e in events if not uid or (e.get("involvedObject") or {}).get("uid") == uid
            ]
        except Exception as error:
            if not is_no_answer(error):
                raise
            return []
