"""How a pod ended, as Kubernetes tells it, in words that `restore.failures` tells apart.

Pods and events come as Kubernetes' own JSON.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_tune_restore.experiments.printable import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class PodEnd:
    """How a pod ended, as Kubernetes tells it.

    Args:
        exit_code: Of the runner; None if nobody knows.
        message: In words that `restore.failures` tells apart.
        is_disruption: Whether Kubernetes ended it, and not the program itself.
        last_words: What the container said last, if Kubernetes kept it.
    """

    exit_code: int | None
    message: str
    is_disruption: bool
    last_words: str = ""


def read_pod_end(pod: Mapping[str, Any], container: str) -> PodEnd | None:
    """Read how a pod ended; None if it has not."""
    status = pod.get("status") or {}
    name = (pod.get("metadata") or {}).get("name", "")
    ended = _terminated(status, container)
    if ended is None and status.get("phase") not in ("Succeeded", "Failed"):
        return None
    ended = ended or {}
    exit_code = ended.get("exitCode")
    last_words = printable(str(ended.get("message") or ""), 2000)
    if told := read_disruption(pod):
        return PodEnd(exit_code=exit_code, message=told, is_disruption=True, last_words=last_words)
    if ended.get("reason") == "OOMKilled":
        return PodEnd(
            exit_code=exit_code,
            message=f"OOMKilled: the container of pod {name} needed more than its memory limit",
            is_disruption=True,
            last_words=last_words,
        )
    reason = status.get("reason") or ended.get("reason") or status.get("phase")
    said = printable(": ".join(filter(None, [str(reason), str(status.get("message") or "")])), 1000)
    return PodEnd(
        exit_code=exit_code,
        message=f"pod {name} ended ({said})",
        is_disruption=False,
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
    if reason == "Evicted":
        return _told("was evicted", "", said)
    if reason in ("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity"):
        return _told("was lost with its node (node shutdown)", reason, said)
    if reason == "Preempting":
        return _told("was preempted", reason, said)
    return ""


def gone_pod_end(name: str, events: Iterable[Mapping[str, Any]], seen: str = "") -> PodEnd:
    """Say what became of a pod that is gone, from what was seen of it before and from its events."""
    if seen:
        return PodEnd(exit_code=None, message=seen, is_disruption=True)
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
            return PodEnd(exit_code=None, message=said, is_disruption=True)
    return PodEnd(
        exit_code=None,
        message=f"pod {name} is gone: somebody deleted it, or its node is no more",
        is_disruption=False,
    )


def is_live(pod: Mapping[str, Any], container: str) -> bool:
    """Whether a pod may be attached to: it has not ended, and nobody has asked it to."""
    return not is_terminating(pod) and read_pod_end(pod, container) is None


def is_terminating(pod: Mapping[str, Any]) -> bool:
    """Whether a pod was deleted and has its grace period left to end in."""
    return bool((pod.get("metadata") or {}).get("deletionTimestamp"))


def _terminated(status: Mapping[str, Any], container: str) -> Mapping[str, Any] | None:
    """Return how the runner's container ended; of one that Kubernetes started again, the end before."""
    statuses: Sequence[Mapping[str, Any]] = status.get("containerStatuses") or ()
    for found in statuses:
        if found.get("name") != container:
            continue
        for when in ("state", "lastState"):
            ended: Mapping[str, Any] | None = (found.get(when) or {}).get("terminated")
            if ended is not None:
                return ended
    return None


def _told(what: str, reason: str, said: str) -> str:
    given = f" ({reason})" if reason else ""
    return printable(f"The pod {what}{given}: {said}".removesuffix(": "), 1000)
