"""The pods of attempts, found by their names: alive or not, and how they ended."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import InvalidInputError, KeyNotFoundError, PodLostError
from airflow_tune_restore.experiments.layout import request_key
from airflow_tune_restore.hooks.pods import PatientKubernetesHook, PatientPodManager, status_of
from airflow_tune_restore.launch.kubernetes import pod_name
from airflow_tune_restore.launch.pod_end import (
    PodEnd,
    gone_pod_end,
    is_live,
    is_terminating,
    read_pod_end,
)
from airflow_tune_restore.restore.attempts import (
    list_attempts,
    newest_started,
    read_outcome,
    read_recorded_end,
    record_end,
)
from airflow_tune_restore.restore.failures import Cause, classify_end
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.records import read_record
from airflow_tune_restore.restore.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

POLL_SECONDS = 2.0
NOT_FOUND = 404


@dataclass(frozen=True, kw_only=True)
class AttemptPods:
    """Looks after pods that nobody follows just now.

    Args:
        hook: The cluster.
        manager: Deletes pods.
        namespace: Where they are.
        container: Name of the runner's container.
        patience_seconds: How long a pod that is to end is waited for.
        deletes_ended: Whether the user wants ended pods deleted.
        log: The task's.
        sleep: Waits some seconds.
    """

    hook: PatientKubernetesHook
    manager: PatientPodManager
    namespace: str
    container: str
    patience_seconds: float
    deletes_ended: bool
    log: "Logger"
    sleep: Callable[[float], None] = time.sleep

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a pod as Kubernetes' JSON; None if there is none."""
        try:
            pod: dict[str, Any] = self.hook.get_pod(name, self.namespace).to_dict(serialize=True)
        except Exception as error:
            if status_of(error) == NOT_FOUND:
                return None
            raise
        return pod

    def is_pending(self, request: RunnerRequest) -> bool:
        """Whether the attempt's pod waits for a node or for its image."""
        pod = self.read(name_of(request)) or {}
        return (pod.get("status") or {}).get("phase") == "Pending"

    def look(self, name: str, seen: str = "") -> PodEnd | None:
        """Return how a pod ended, None if it has not; of one that is gone, what was seen or reported."""
        pod = self.read(name)
        if pod is not None:
            return read_pod_end(pod, self.container)
        return gone_pod_end(name, self._events(name), seen)

    def delete(self, name: str) -> None:
        """Delete a pod; one that runs saves a snapshot first."""
        from kubernetes.client import models

        metadata = models.V1ObjectMeta(name=name, namespace=self.namespace)
        self.manager.delete_pod(models.V1Pod(metadata=metadata))

    def find_attempt(
        self, store: ObjectStore, plan: RestorePlan, trial_id: str
    ) -> RunnerRequest | None:
        """Return the newest attempt if its pod is alive; None if the next one is to be claimed.

        A pod that is about to end is waited for, so that it can save its snapshot in peace. How one
        ended that nobody followed is written down.
        """
        newest = max(list_attempts(store, plan.restore_id, trial_id), default=0)
        if not newest:
            return None
        try:
            request = read_request(store, plan, trial_id, newest)
        except KeyNotFoundError:
            return None  # a disk has the directory before the request: somebody claims it just now
        name = name_of(request)
        pod = self._settled(name)
        if pod is not None and is_live(pod, self.container):
            self.log.info("Attaching to pod %s, attempt %d.", name, newest)
            return request
        self._record_unseen(store, request, has_pod=pod is not None)
        if pod is not None and self.deletes_ended:
            self.delete(name)
        return None

    def judge(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        request: RunnerRequest,
        end: PodEnd | None,
    ) -> RunnerOutcome | PodLostError:
        """Return how an attempt ended: as its runner says, or as Kubernetes does if that took it away.

        The latter is written down, for the ledger and for later tries.
        """
        where = (request.restore_id, request.trial_id, request.attempt)
        outcome = read_outcome(store, *where)
        if outcome is not None and outcome.result != Result.INTERRUPTED:
            return outcome
        end = end or self.look(name_of(request))
        if end is None:
            end = PodEnd(exit_code=None, message="it still runs", is_disruption=False)
        if outcome is not None and not end.is_disruption:
            return outcome
        record_end(store, request, end.exit_code, end.message)
        failure = classify_end(end.exit_code, end.message)
        if failure is None and outcome is not None:
            return outcome
        cause = failure.cause if failure is not None else Cause.UNKNOWN
        code = f", exit code {end.exit_code}" if end.exit_code is not None else ""
        said = f". It last said: {end.last_words}" if end.last_words and outcome is None else ""
        reason = f"{end.message}{code}{said}"
        return PodLostError(plan.experiment, request.trial_id, reason, cause.value)

    def _record_unseen(self, store: ObjectStore, request: RunnerRequest, *, has_pod: bool) -> None:
        where = (request.restore_id, request.trial_id)
        outcome = read_outcome(store, *where, request.attempt)
        if read_recorded_end(store, *where, request.attempt) is not None:
            return
        if outcome is None:
            can_tell = has_pod or newest_started(store, *where) == request.attempt
        else:
            can_tell = outcome.result == Result.INTERRUPTED
        end = self.look(name_of(request)) if can_tell else None
        if end is not None and (outcome is None or end.is_disruption):
            self.log.warning("Attempt %d ended unseen: %s", request.attempt, end.message)
            record_end(store, request, end.exit_code, end.message)

    def _settled(self, name: str) -> dict[str, Any] | None:
        """Return a pod once it is no more about to end."""
        pod, waited = self.read(name), 0.0
        while pod is not None and is_terminating(pod) and waited < self.patience_seconds:
            self.log.info("Waiting for pod %s to end; it saves a snapshot.", name)
            self.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
            pod = self.read(name)
        return pod

    def _events(self, name: str) -> list[dict[str, Any]]:
        """Return what Kubernetes reported of a pod; nothing if we may not read events."""
        try:
            found = self.hook.core_v1_client.list_namespaced_event(
                namespace=self.namespace, field_selector=f"involvedObject.name={name}"
            )
        except Exception as error:
            if status_of(error) is None:
                raise
            return []
        return [event.to_dict(serialize=True) for event in found.items]


def name_of(request: RunnerRequest) -> str:
    """Return the name of an attempt's pod."""
    return pod_name(request.experiment, request.restore_id, request.trial_id, request.attempt)


def read_request(
    store: ObjectStore, plan: RestorePlan, trial_id: str, attempt: int
) -> RunnerRequest:
    """Read what was claimed."""
    key = request_key(plan.restore_id, trial_id, attempt)
    return read_record(store, key, RunnerRequest.from_json)


def find_request(store: ObjectStore, plan: RestorePlan, trial_id: str, name: str) -> RunnerRequest:
    """Return the attempt whose pod has this name (InvalidInputError if none has)."""
    for attempt in reversed(list_attempts(store, plan.restore_id, trial_id)):
        if pod_name(plan.experiment, plan.restore_id, trial_id, attempt) == name:
            return read_request(store, plan, trial_id, attempt)
    raise InvalidInputError(f"Pod {name} runs no attempt of restore {plan.restore_id}.")
