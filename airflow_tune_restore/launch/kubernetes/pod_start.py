"""Why a pod does not start, in the words of the registry, the scheduler or the kubelet.

Pods and events are Kubernetes' own JSON.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from airflow_tune_restore.protocol.printable import printable

_IMAGE = frozenset(
    "ErrImagePull ImagePullBackOff InvalidImageName ErrImageNeverPull ImageInspectError "
    "RegistryUnavailable SignatureValidationFailed".split()
)
_USUAL = frozenset({"ContainerCreating", "PodInitializing"})
_PULL = "Failed to pull image"


def is_pending(pod: Mapping[str, Any]) -> bool:
    """Whether a pod waits for a node, for its images or for its volumes."""
    return (pod.get("status") or {}).get("phase") == "Pending"


def has_started(pod: Mapping[str, Any], container: str) -> bool:
    """Whether a container of a pod runs or has run; the pod is `Pending` while any of them waits."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    states = [found.get("state") or {} for found in statuses if found.get("name") == container]
    return any(state.get("running") or state.get("terminated") for state in states)


def has_no_image(pod: Mapping[str, Any]) -> bool:
    """Whether a container waits for an image that cannot be pulled."""
    return any(waiting.get("reason") in _IMAGE for _, _, waiting in _waiting(pod))


def why_not_started(pod: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> str:
    """Return why a pod has not started, as a sentence without its full stop; "" if unknown."""
    warnings = [e for e in events if e.get("type") == "Warning" and e.get("reason") != "BackOff"]
    for name, image, waiting in _waiting(pod):
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if reason in _IMAGE:
            cause = _registry_reason(message, warnings)
            return printable(f"Image {image} cannot be pulled ({reason}): {cause}", 1000)
        if reason not in _USUAL:
            return printable(f"Container {name} cannot be made ({reason}): {message}", 1000)
    if warnings:
        newest = warnings[-1]
        return printable(f"{newest.get('message') or ''} ({newest.get('reason')})", 1000)
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return printable(f"{condition.get('message') or ''} ({condition.get('reason')})", 1000)
    return ""


def _waiting(pod: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield name, image and waiting state of the waiting containers, in the order of their start."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    for containers in ("initContainers", "containers"):
        images = {given.get("name"): given.get("image") for given in spec.get(containers) or ()}
        for found in status.get(f"{containers.removesuffix('s')}Statuses") or ():
            waiting = (found.get("state") or {}).get("waiting")
            if waiting is not None:
                name = str(found.get("name"))
                yield name, str(images.get(name) or found.get("image") or "?"), waiting


def _registry_reason(message: str, warnings: list[Mapping[str, Any]]) -> str:
    """Return the registry's message; before Kubernetes 1.32 the status has it once, later only events."""
    if not message or (message.startswith("Back-off pulling") and ": " not in message):
        texts = [str(warning.get("message") or "") for warning in warnings]
        return next((text for text in reversed(texts) if text.startswith(_PULL)), message)
    return message
