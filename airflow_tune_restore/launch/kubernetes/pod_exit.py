"""How a pod ended, as Kubernetes reports it, in words that `protocol.failures` distinguishes.

Pods and events are Kubernetes' own JSON. The runner's container alone counts: a sidecar may run for ever,
a finalizer may hold an ended pod, and the runner of a pod that has `Failed` may still save a snapshot.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from airflow_tune_restore.protocol.printable import printable

ENDING_SECONDS = 60.0
"""How long a pod may outlast its grace period before its node counts as lost."""

DEFAULT_GRACE_SECONDS = 30.0
_OVER = ("Succeeded", "Failed")
_NEVER_STARTED = ("StartError", "ContainerCannotRun")
_OWN_STORAGE = ("Pod ephemeral local storage", "Container ", "Usage of EmptyDir volume")
"""The beginnings of a kubelet's messages for a pod that exceeded its own limit, and not the node's
(k8s.io/kubernetes pkg/kubelet/eviction/eviction_manager.go, 1.34)."""

_NO_PACKAGE = re.compile(r"No module named '?airflow_tune_restore(\.runner)?'?\)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodExit:
    """How a pod ended, as Kubernetes reports it.

    Args:
        exit_code: That of the runner; None if unknown.
        message: The cause, in words that `protocol.failures` distinguishes.
        is_disruption: Whether Kubernetes ended the pod, and not the program itself.
        was_deleted: Whether the pod was deleted before it ended.
        is_lost: Whether the end was not reported: the pod's node is cut off.
        is_mistake: Whether the container could not be started as it was configured.
        last_words: The last lines of the container, if Kubernetes kept them.
    """

    exit_code: int | None
    message: str
    is_disruption: bool = False
    was_deleted: bool = False
    is_lost: bool = False
    is_mistake: bool = False
    last_words: str = ""

    @property
    def last_line(self) -> str:
        """The last line of the container, if Kubernetes kept it."""
        return (self.last_words.strip().splitlines() or [""])[-1]

    @property
    def lacks_package(self) -> bool:
        """Whether Python did not find this package in the image."""
        is_own = self.exit_code == 1 and not self.is_disruption
        return is_own and _NO_PACKAGE.search(self.last_line) is not None

    @classmethod
    def from_event(cls, seen: Mapping[str, Any]) -> "PodExit":
        """Read the event of a triggerer; a later release may have added fields."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in seen.items() if name in known})


@dataclass(slots=True)
class PodWatch:
    """Recognizes the end of pods from their statuses, one after another.

    If a pod's node is cut off, its end is never reported. The pod counts as lost when its grace period
    and `ENDING_SECONDS` have passed during the watch, by the clock of this process.

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
        self._forget_earlier(name, str((pod.get("metadata") or {}).get("uid") or ""))
        if disruption := read_disruption(pod):
            self._seen[name] = disruption
        end = read_pod_end(pod, self.container)
        if end is None and is_ending(pod):
            end = self._lost(pod, name)
        if end is not None:
            self._ends[name] = end
        return end

    def look_back(self, name: str) -> PodExit | None:
        """Return how a pod that is gone has ended, as far as it was watched; None if it was not."""
        end, seen = self._ends.get(name), self._seen.get(name)
        if end is None and seen is not None:
            return PodExit(exit_code=None, message=seen, is_disruption=True)
        return end

    def uid(self, name: str) -> str:
        """Return the uid of the newest watched pod of this name; "" if no pod was watched."""
        return self._uids.get(name, "")

    def _forget_earlier(self, name: str, uid: str) -> None:
        if self._uids.setdefault(name, uid) != uid:
            self._uids[name] = uid
            self._seen.pop(name, None)
            self._ends.pop(name, None)
            self._ending_since.pop(name, None)

    def remember(self, name: str, end: PodExit) -> None:
        """Take over the end that another process has seen."""
        self._ends[name] = end

    def _lost(self, pod: Mapping[str, Any], name: str) -> PodExit | None:
        """Return the exit of an ending pod that counts as lost; None while it may still end."""
        known = self._ends.get(name)
        if known is not None and known.is_lost:
            return known
        since = self._ending_since.setdefault(name, self.monotonic())
        if self.monotonic() - since <= _grace(pod) + ENDING_SECONDS:
            return None
        node = (pod.get("spec") or {}).get("nodeName") or "its node"
        lost = f"The pod was lost with its node (node lost): {node} does not report its end"
        why = f". {self._seen[name]}" if name in self._seen else ""
        return PodExit(exit_code=None, message=f"{lost}{why}", is_disruption=True, is_lost=True)


def read_pod_end(pod: Mapping[str, Any], container: str) -> PodExit | None:
    """Read how a pod ended; None if it has not, or if its container has not."""
    status = pod.get("status") or {}
    name = _name(pod)
    ended = _state(status, container, "terminated")
    if ended is None and not _is_over_without(pod, container):
        return None
    ended = ended or {}
    exit_code, reason = ended.get("exitCode"), ended.get("reason")
    last_words = printable(str(ended.get("message") or ""), 2000) or _failed_init(status)
    if reason in _NEVER_STARTED:
        message = f"The container of pod {name} cannot be started ({reason}): {last_words}"
        return PodExit(exit_code=exit_code, message=message, is_mistake=True)
    message = read_disruption(pod)
    if not message and reason == "OOMKilled":
        message = f"OOMKilled: the container of pod {name} needed more than its memory limit"
    if message:
        return PodExit(
            exit_code=exit_code, message=message, is_disruption=True, last_words=last_words
        )
    reason = status.get("reason") or reason or status.get("phase")
    words = [str(reason), str(status.get("message") or "")]
    cause = printable(": ".join(filter(None, words)), 1000)
    return PodExit(
        exit_code=exit_code,
        message=f"pod {name} ended ({cause})",
        was_deleted=bool((pod.get("metadata") or {}).get("deletionTimestamp")),
        last_words=last_words,
    )


def read_disruption(pod: Mapping[str, Any]) -> str:
    """Return how Kubernetes ended, or is about to end, a pod by itself; "" if it does not.

    Conditions and reasons are those of Kubernetes 1.26 and newer.
    """
    status = pod.get("status") or {}
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            cause = str(condition.get("reason") or "")
            what = "was evicted"
            if cause == "TerminationByKubelet" and reason != "Evicted":
                what = "was terminated by its node (node shutdown)"
            elif cause == "PreemptionByScheduler":
                what = "was preempted"
            return _pod_was(what, cause, message or str(condition.get("message") or ""))
    if reason == "Evicted" and message.startswith(_OWN_STORAGE):
        return _pod_was("used more storage than its own limit", "", message)
    if reason == "Evicted":
        return _pod_was("was evicted", "", message)
    if reason.startswith("OutOf") or reason == "UnexpectedAdmissionError":
        return _pod_was("was rejected by its node", reason, message)
    if reason in ("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity"):
        return _pod_was("was lost with its node (node shutdown)", reason, message)
    if reason == "Preempting":
        return _pod_was("was preempted", reason, message)
    return ""


def gone_pod_exit(name: str, events: Iterable[Mapping[str, Any]]) -> PodExit:
    """Return how a pod that is gone ended, from its events."""
    words = {
        "Preempted": "was preempted",
        "Preempting": "was preempted",
        "Evicted": "was evicted",
        "TaintManagerEviction": "was evicted",
        "NodeNotReady": "was lost with its node (node is not ready)",
    }
    for event in events:
        if what := words.get(str(event.get("reason") or "")):
            message = _pod_was(what, str(event["reason"]), str(event.get("message") or ""))
            return PodExit(exit_code=None, message=message, is_disruption=True)
    return PodExit(exit_code=None, message=f"pod {name} is gone: it was deleted, or its node")


def is_live(pod: Mapping[str, Any], container: str) -> bool:
    """Whether a pod may be attached to: it has not ended, and was not deleted."""
    return not is_ending(pod) and read_pod_end(pod, container) is None


def is_ending(pod: Mapping[str, Any]) -> bool:
    """Whether a pod was deleted, evicted or is overdue; its runner may be in its grace period."""
    is_deleted = bool((pod.get("metadata") or {}).get("deletionTimestamp"))
    return is_deleted or (pod.get("status") or {}).get("phase") in _OVER


def _is_over_without(pod: Mapping[str, Any], container: str) -> bool:
    """Whether a pod has ended although its container reports no end: the container never ran."""
    status = pod.get("status") or {}
    if status.get("phase") in _OVER:
        return _state(status, container, "running") is None
    # a finalizer holds a pod that never got to a node
    return is_ending(pod) and not (pod.get("spec") or {}).get("nodeName")


def _state(status: Mapping[str, Any], container: str, kind: str) -> Mapping[str, Any] | None:
    """Return a state of the runner's container; of a restarted container also its end before."""
    states: Iterator[Mapping[str, Any] | None] = (
        (found.get(when) or {}).get(kind)
        for found in status.get("containerStatuses") or ()
        if found.get("name") == container
        for when in ("state", "lastState")
    )
    return next((state for state in states if state is not None), None)


def _failed_init(status: Mapping[str, Any]) -> str:
    """Return how an init container failed, so that the runner never began; "" if none did."""
    for found in status.get("initContainerStatuses") or ():
        ended = (found.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            why = ended.get("message") or f"{ended.get('reason')}, exit code {ended['exitCode']}"
            return printable(f"init container {found.get('name')}: {why}", 2000)
    return ""


def _grace(pod: Mapping[str, Any]) -> float:
    given = (pod.get("metadata") or {}).get("deletionGracePeriodSeconds")
    if given is None:
        given = (pod.get("spec") or {}).get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE_SECONDS if given is None else float(given)


def _name(pod: Mapping[str, Any]) -> str:
    return str((pod.get("metadata") or {}).get("name", ""))


def _pod_was(what: str, reason: str, message: str) -> str:
    given = f" ({reason})" if reason else ""
    return printable(f"The pod {what}{given}: {message}".removesuffix(": "), 1000)
