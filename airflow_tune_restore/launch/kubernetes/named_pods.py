"""Pods found by their names: creating and deleting them, whether they have started, and how they ended.

All requests are repeated while the API server is out of order (`api.Patience`).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_tune_restore.launch.kubernetes import api, pod_start
from airflow_tune_restore.launch.kubernetes.api import REFUSAL_SECONDS, Patience, is_gone
from airflow_tune_restore.launch.kubernetes.pod_exit import PodExit, PodWatch, gone_pod_exit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NamedPods:
    """The pods of a namespace, by name.

    Args:
        core: A `CoreV1Api` of `kubernetes`.
        watch: Recognizes the end of a pod from its statuses.
        renew: Gives `core` new credentials.
    """

    core: Any
    namespace: str
    watch: PodWatch
    renew: Callable[[], None]

    def get(self, name: str) -> Any:
        """Read a pod (ApiException: 404 if it does not exist, any other after a long outage)."""
        pod = read_pod(self.core, name, self.namespace, self.renew)
        self.watch.look(pod.to_dict(serialize=True))  # it may be gone at the next read
        return pod

    def find(self, name: str) -> Any | None:
        """Read a pod; None if it does not exist."""
        try:
            return self.get(name)
        except Exception as error:
            if is_gone(error, name):
                return None
            raise

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a pod as Kubernetes' JSON; None if it does not exist."""
        pod = self.find(name)
        found: dict[str, Any] | None = pod and pod.to_dict(serialize=True)
        return found

    def is_pending(self, name: str) -> bool:
        """Whether a pod waits for a node, for its image or for its volumes."""
        return pod_start.is_pending(self.read(name) or {})

    def look(self, name: str) -> PodExit | None:
        """Return how a pod ended; None if it has not. Of a pod that is gone: as was seen or reported."""
        return self.exit_of(name, self.read(name))

    def exit_of(self, name: str, pod: dict[str, Any] | None) -> PodExit | None:
        """Do the same for a pod that was just read; None if it is gone."""
        if pod is not None:
            return self.watch.look(pod)
        return self.watch.look_back(name) or gone_pod_exit(name, self._events(name))

    def why_not_started(self, pod: dict[str, Any]) -> str:
        """Return why a pod has not started, as a sentence without its full stop; "" if unknown."""
        return pod_start.why_not_started(pod, self._events(str(pod["metadata"]["name"])))

    def create(self, pod: Any) -> Any:
        """Create a pod, or return that of its name (ApiException if refused, or after a long outage)."""
        name = pod.metadata.name
        body = self.core.api_client.sanitize_for_serialization(pod)
        patience = Patience(
            lambda error: api.is_refusal(error, name),
            refusal_seconds=REFUSAL_SECONDS,
            renew=self.renew,
            what=f"pod {name} is not created yet",
        )
        try:
            created = patience.ask(
                lambda: api.check_answer(
                    self.core.create_namespaced_pod(self.namespace, body), name
                )
            )
        except Exception as error:
            if not api.is_taken(error):
                raise
            created = None
        if created is None:
            return self.get(name)
        self.watch.look(created.to_dict(serialize=True))
        return created

    def delete(self, name: str) -> bool:
        """Delete a pod if there is one; after a long outage, log how to delete it and return False."""
        try:
            self._delete(name, patience_to_delete(name, self.renew))
        except api.api_errors() as error:
            if is_gone(error, name):
                return True
            logger.warning(
                "Pod %s could not be deleted: %s. Delete it: kubectl -n %s delete pod %s",
                *(name, api.describe_error(error), self.namespace, name),
            )
            return False
        return True

    def delete_unstarted(self, name: str) -> str | None:
        """Delete a pod that has not started; return why it has not, None if it has meanwhile.

        Only the pod exactly as it was read is deleted: it may start between reading and deleting.
        """
        while (pod := self.find(name)) is not None:
            found = pod.to_dict(serialize=True)
            if pod_start.has_started(found, self.watch.container) or self.watch.look(found):
                return None
            why = self.why_not_started(found)
            if self.delete_unchanged(pod):
                return why
        return None

    def delete_unchanged(self, pod: Any) -> bool:
        """Delete a pod if it is still as it was read; return whether it was deleted."""
        from kubernetes.client import models

        name, metadata = pod.metadata.name, pod.metadata
        as_read = models.V1Preconditions(
            uid=metadata.uid, resource_version=metadata.resource_version
        )
        patience = patience_to_delete(name, self.renew, lambda e: api.status_of(e) == api.CONFLICT)
        try:
            self._delete(name, patience, models.V1DeleteOptions(preconditions=as_read))
        except Exception as error:
            if not is_gone(error, name) and api.status_of(error) != api.CONFLICT:
                raise
            return is_gone(error, name)
        return True

    def _delete(self, name: str, patience: Patience, body: Any = None) -> None:
        def ask() -> None:
            answer = self.core.delete_namespaced_pod(name, self.namespace, body=body)
            api.check_deletion(answer, name)

        patience.ask(ask)

    def _events(self, name: str) -> list[dict[str, Any]]:
        """Return Kubernetes' events of a pod; none if they cannot be read."""
        try:
            found = self.core.list_namespaced_event(
                namespace=self.namespace, field_selector=f"involvedObject.name={name}"
            )
        except api.api_errors():
            return []
        events = [event.to_dict(serialize=True) for event in found.items or ()]
        uid = self.watch.uid(name)  # an earlier pod of the name may have left some
        return [e for e in events if not uid or (e.get("involvedObject") or {}).get("uid") == uid]


def read_pod(core: Any, name: str, namespace: str, renew: Callable[[], None]) -> Any:
    """Read a pod; the errors are those of `NamedPods.get`."""
    patience = Patience(lambda error: is_gone(error, name), renew=renew)
    return patience.ask(lambda: api.check_answer(core.read_namespaced_pod(name, namespace), name))


def patience_to_delete(
    name: str,
    renew: Callable[[], None],
    is_final: Callable[[BaseException], bool] = lambda _error: False,
) -> Patience:
    """Return how long a deletion is repeated; that the pod is gone is always final."""
    return Patience(
        lambda error: is_gone(error, name) or is_final(error),
        seconds=REFUSAL_SECONDS,
        renew=renew,
        what=f"pod {name} is not deleted yet",
    )
