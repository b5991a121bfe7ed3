"""How a pod ended, as Kubernetes tells it, in words that `protocol.failures` tells apart.

Pods and events come as Kubernetes' own JSON. The runner's container alone counts: a sidecar may run on
for ever, a finalizer may hold what is over, and a pod that has `Failed` may still save a snapshot.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from airflow_tune_restore.protocol.printable import printable

ENDING_SECONDS = 60.0
"""How long a pod may outlast its grace period before its node is taken for lost."""

DEFAULT_GRACE_SECONDS = 30.0
_OVER = ("Succeeded", "Failed")
_NEVER_STARTED = ("StartError", "ContainerCannotRun")
_OWN_STORAGE = ("Pod ephemeral local storage", "Container ", "Usage of EmptyDir volume")
"""How a kubelet begins to say that a pod exceeded a limit of its own, and not the node
(k8s.io/kubernetes pkg/kubelet/eviction/eviction_manager.go, 1.34)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodExit:
    """How a pod ended, as Kubernetes tells it.

    Args:
        exit_code: Of the runner; None if nobody knows.
        message: In words that `protocol.failures` tells apart.
        is_disruption: Whether Kubernetes ended it, and not the program itself.
        was_deleted: Whether somebody, or something, had asked it to end.
        is_lost: Whether nobody reported it: its node is cut off.
        is_mistake: Whether the container could not be started as it was configured.
        last_words: What the container said last, if Kubernetes kept it.
    """

    exit_code: int | None
    message: str
    is_disruption: bool
    was_deleted: bool = False
    is_lost: bool = False
    is_mistake: bool = False
    last_words: str = ""

    @classmethod
    def from_event(cls, seen: Mapping[str, Any]) -> "PodExit":
        """Read what a triggerer has seen; one of a later release may have seen more."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in seen.items() if name in known})


@dataclass(slots=True)
class PodWatch:
    """Knows from a pod's statuses, one after another, whether it has ended.

    A pod whose node is cut off is about to end for ever: nobody reports its end. It is taken for lost
    once its grace period and `ENDING_SECONDS` have passed while we watched, by our own clock.

    Args:
        container: Name of the runner's container.
        monotonic: The clock.
    """

    container: str
    monotonic: Callable[[], float] = time.monotonic
    _uids: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)
    _ends: dict[str, PodExit] = field(default_factory=dict)
    _ending_since: dict[str, float] = field(default_factory=dict)

    def look(self, pod: Mapping[str, Any]) -> PodExit | None:
        """Return how a pod ended, None if it has not."""
        name = _name(pod)
        self._take_note_of(name, str((pod.get("metadata") or {}).get("uid") or ""))
        if told := read_disruption(pod):
            self._seen[name] = told
        end = read_pod_end(pod, self.container)
        if end is None and is_ending(pod):
            end = self._lost(pod, name)
        if end is not None:
            self._ends[name] = end
        return end

    def look_back(self, name: str) -> PodExit | None:
        """Return how a pod that is gone has ended, as far as was seen; None if nothing was."""
        end, seen = self._ends.get(name), self._seen.get(name)
        if end is None and seen is not None:
            return PodExit(exit_code=None, message=seen, is_disruption=True)
        return end

    def uid(self, name: str) -> str:
        """Return the uid of the pod that last had this name, as far as was seen; "" if none did."""
        return self._uids.get(name, "")

    def _take_note_of(self, name: str, uid: str) -> None:
        """Forget a pod of this name that was there before."""
        if self._uids.setdefault(name, uid) != uid:
            self._uids[name] = uid
            self._seen.pop(name, None)
            self._ends.pop(name, None)
            self._ending_since.pop(name, None)

    def remember(self, name: str, end: PodExit) -> None:
        """Take over what another process has seen of a pod."""
        self._ends[name] = end

    def _lost(self, pod: Mapping[str, Any], name: str) -> PodExit | None:
        """Return that a pod is lost which is about to end; None while it may still end."""
        known = self._ends.get(name)
        if known is not None and known.is_lost:
            return known
        since = self._ending_since.setdefault(name, self.monotonic())
        if self.monotonic() - since <= _grace(pod) + ENDING_SECONDS:
            return None
        node = (pod.get("spec") or {}).get("nodeName") or "its node"
        told = f"The pod was lost with its node (node lost): {node} does not report its end"
        why = f". {self._seen[name]}" if name in self._seen else ""
        return PodExit(exit_code=None, message=f"{told}{why}", is_disruption=True, is_lost=True)


def read_pod_end(pod: Mapping[str, Any], container: str) -> PodExit | None:
    """Read how a pod ended; None if it has not, or if its container has not."""
    status = pod.get("status") or {}
    name = _name(pod)
    ended = _state(status, container, "terminated")
    if ended is None and not _is_over_without(pod, container):
        return None
    ended = ended or {}
    exit_code = ended.get("exitCode")
    last_words = printable(str(ended.get("message") or ""), 2000) or _failed_init(status)
    if ended.get("reason") in _NEVER_STARTED:
        return PodExit(
            exit_code=exit_code,
            message=f"The container of pod {name} cannot be started ({ended['reason']}): {last_words}",
            is_disruption=False,
            is_mistake=True,
        )
    if told := read_disruption(pod):
        return PodExit(exit_code=exit_code, message=told, is_disruption=True, last_words=last_words)
    if ended.get("reason") == "OOMKilled":
        return PodExit(
            exit_code=exit_code,
            message=f"OOMKilled: the container of pod {name} needed more than its memory limit",
            is_disruption=True,
            last_words=last_words,
        )
    reason = status.get("reason") or ended.get("reason") or status.get("phase")
    said = printable(": ".join(filter(None, [str(reason), str(status.get("message") or "")])), 1000)
    return PodExit(
        exit_code=exit_code,
        message=f"pod {name} ended ({said})",
        is_disruption=False,
        was_deleted=bool((pod.get("metadata") or {}).get("deletionTimestamp")),
        last_words=last_words,
    )


def read_disruption(pod: Mapping[str, Any]) -> str:
    """Say how Kubernetes ended, or is about to end, a pod by itself; "" if it does not.

    Words as of Kubernetes 1.26 and newer: `DisruptionTarget` conditions, reasons of the kubelet.
    """
    status = pod.get("status") or {}
    reason, said = str(status.get("reason") or ""), str(status.get("message") or "")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            cause = str(condition.get("reason") or "")
            said = said or str(condition.get("message") or "")
            if cause == "TerminationByKubelet" and reason != "Evicted":
                return _told("was terminated by its node (node shutdown)", cause, said)
            if cause == "PreemptionByScheduler":
                return _told("was preempted", cause, said)
            return _told("was evicted", cause, said)
    if reason == "Evicted" and said.startswith(_OWN_STORAGE):
        return _told("used more storage than its own limit", "", said)
    if reason == "Evicted":
        return _told("was evicted", "", said)
    if reason.startswith("OutOf") or reason == "UnexpectedAdmissionError":
        return _told("was rejected by its node", reason, said)
    if reason in ("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity"):
        return _told("was lost with its node (node shutdown)", reason, said)
    if reason == "Preempting":
        return _told("was preempted", reason, said)
    return ""


def gone_pod_exit(name: str, events: Iterable[Mapping[str, Any]]) -> PodExit:
    """Return what became of a pod that is gone, from its events."""
    words = {
        "Preempted": "was preempted",
        "Preempting": "was preempted",
        "Evicted": "was evicted",
        "TaintManagerEviction": "was evicted",
        "NodeNotReady": "was lost with its node (node is not ready)",
    }
    for event in events:
        if told := words.get(str(event.get("reason") or "")):
            said = _told(told, str(event["reason"]), str(event.get("message") or ""))
            return PodExit(exit_code=None, message=said, is_disruption=True)
    return PodExit(
        exit_code=None,
        message=f"pod {name} is gone: somebody deleted it, or its node",
        is_disruption=False,
    )


def is_live(pod: Mapping[str, Any], container: str) -> bool:
    """Whether a pod may be attached to: it has not ended, and nobody has asked it to."""
    return not is_ending(pod) and read_pod_end(pod, container) is None


def is_ending(pod: Mapping[str, Any]) -> bool:
    """Whether a pod was deleted, evicted or is overdue, and may have its grace period left to end in."""
    is_deleted = bool((pod.get("metadata") or {}).get("deletionTimestamp"))
    return is_deleted or (pod.get("status") or {}).get("phase") in _OVER


def _is_over_without(pod: Mapping[str, Any], container: str) -> bool:
    """Whether a pod is over although its container has no end: it has none, or will never have one."""
    status = pod.get("status") or {}
    if status.get("phase") in _OVER:
        return _state(status, container, "running") is None
    # a finalizer holds what never got to a node, and never will
    return is_ending(pod) and not (pod.get("spec") or {}).get("nodeName")


def _state(status: Mapping[str, Any], container: str, kind: str) -> Mapping[str, Any] | None:
    """Return a state of the runner's container; of one that Kubernetes started again, the end before."""
    statuses: Sequence[Mapping[str, Any]] = status.get("containerStatuses") or ()
    for found in statuses:
        if found.get("name") != container:
            continue
        for when in ("state", "lastState"):
            state: Mapping[str, Any] | None = (found.get(when) or {}).get(kind)
            if state is not None:
                return state
    return None


def _failed_init(status: Mapping[str, Any]) -> str:
    """Return how an init container failed, so that the runner never began; "" if none did."""
    for found in status.get("initContainerStatuses") or ():
        ended = (found.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            said = ended.get("message") or f"{ended.get('reason')}, exit code {ended['exitCode']}"
            return printable(f"init container {found.get('name')}: {said}", 2000)
    return ""


def _grace(pod: Mapping[str, Any]) -> float:
    """Return the seconds that a pod has left to end in, once it was asked to."""
    given = (pod.get("metadata") or {}).get("deletionGracePeriodSeconds")
    if given is None:
        given = (pod.get("spec") or {}).get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE_SECONDS if given is None else float(given)


def _name(pod: Mapping[str, Any]) -> str:
    return str((pod.get("metadata") or {}).get("name", ""))


def _told(what: str, reason: str, said: str) -> str:
    given = f" ({reason})" if reason else ""
    return printable(f"The pod {what}{given}: {said}".removesuffix(": "), 1000)
