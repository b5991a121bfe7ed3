"""What an API server does to a pod before it stores it: defaults, the schema, its own rules.

The rules are those of k8s.io/kubernetes `pkg/apis/core/validation` that a pod of this package may break.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any

import kubernetes_validate

SCHEMA = "1.34"
"""Kubernetes release whose schema pods are checked against."""

MAX_INT32 = 2**31 - 1
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_STANDARD = ("cpu", "memory", "ephemeral-storage")
_UNITS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** (n + 1) for n, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024) ** (n + 1) for n, unit in enumerate("KMGTPE")},
}
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d*)?|\.\d+)([numkMGTPE]?|[KMGTPE]i|[eE][+-]?\d+)")


class Refusal(Exception):  # noqa: N818
    """An answer other than 2xx.

    Args:
        status: The HTTP status.
        reason: Kubernetes' word for it.
        message: In words.
        about: Name of the pod that it is about; "" if it is about none.
        kind: What it is about.
    """

    def __init__(
        self, status: int, reason: str, message: str, about: str = "", kind: str = "pods"
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.details = {"kind": kind, **({"name": about} if about else {})}


def quantity(text: Any) -> Decimal:
    """Read a quantity (ValueError if it is none)."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, unit = Decimal(match[1]), match[2]
    if unit[:1] in ("e", "E") and len(unit) > 1:
        return number * Decimal(10) ** int(unit[1:])
    return number * _UNITS[unit]


def default(pod: dict[str, Any]) -> None:
    """Fill in what was left out, as `SetDefaults_Pod` does: a request from the limit."""
    spec = pod["spec"]
    spec.setdefault("serviceAccountName", "default")
    for container in spec["containers"]:
        resources = container.get("resources") or {}
        for name, limit in (resources.get("limits") or {}).items():
            resources["requests"] = {name: limit, **(resources.get("requests") or {})}


def refuse_unknown(
    pod: Mapping[str, Any], accounts: Collection[str], priorities: Collection[str]
) -> None:
    """Refuse a pod that names what is not there, as the admission plugins do: with 403."""
    metadata, spec = pod["metadata"], pod["spec"]
    name, namespace = metadata["name"], metadata.get("namespace", "")
    account, priority = spec["serviceAccountName"], spec.get("priorityClassName")
    if account not in accounts:
        raise Refusal(
            403,
            "Forbidden",
            f'pods "{name}" is forbidden: error looking up service account {namespace}/{account}: '
            f'serviceaccount "{account}" not found',
            name,
        )
    if priority and priority not in priorities:
        message = f'pods "{name}" is forbidden: no PriorityClass with name {priority} was found'
        raise Refusal(403, "Forbidden", message, name)


def refuse_invalid(pod: dict[str, Any]) -> None:
    """Check the schema, and the rules of a real API server that a pod of this package may break."""
    metadata, spec = pod["metadata"], pod["spec"]
    wrong = [*_wrong_schema(pod), *_wrong_names(metadata), *_wrong_volumes(spec)]
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= MAX_INT32:
        wrong.append(
            f"spec.activeDeadlineSeconds: Invalid value: {deadline}: must be between 1 and {MAX_INT32}, "
            "inclusive"
        )
    if spec.get("terminationGracePeriodSeconds", 0) < 0:
        wrong.append("spec.terminationGracePeriodSeconds: must be greater than or equal to 0")
    names = [container["name"] for container in spec["containers"]]
    wrong += [f'spec.containers: Duplicate value: "{n}"' for n in set(names) if names.count(n) > 1]
    for number, container in enumerate(spec["containers"]):
        if not container.get("image"):
            wrong.append(f"spec.containers[{number}].image: Required value")
        place = f"spec.containers[{number}].resources"
        wrong += [f"{place}.{error}" for error in _wrong_resources(container)]
    if wrong:
        name = metadata.get("name")
        message = f'Pod "{name}" is invalid: {"; ".join(wrong)}'
        raise Refusal(422, "Invalid", message, str(name), "Pod")


def _wrong_schema(pod: dict[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(pod, SCHEMA, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield str(error)[:500]


def _wrong_names(metadata: Mapping[str, Any]) -> Iterator[str]:
    if not _NAME.fullmatch(metadata.get("name", "")):
        yield f"metadata.name: {metadata.get('name')!r}"
    for key, value in (metadata.get("labels") or {}).items():
        prefix, _, last = key.rpartition("/")
        if not _LABEL.fullmatch(value) or not _LABEL.fullmatch(last) or len(prefix) > 253:
            yield f"metadata.labels: {key}={value}"


def _wrong_volumes(spec: Mapping[str, Any]) -> Iterator[str]:
    names = [volume["name"] for volume in spec.get("volumes") or ()]
    yield from (f"volume {name} twice" for name in names if names.count(name) > 1)
    for container in spec["containers"]:
        mounts = container.get("volumeMounts") or ()
        paths = [mount["mountPath"] for mount in mounts]
        yield from (f"{path} is mounted twice" for path in paths if paths.count(path) > 1)
        yield from (f"no volume {m['name']}" for m in mounts if m["name"] not in names)


def _wrong_resources(container: Mapping[str, Any]) -> Iterator[str]:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in sorted(set(requests) | set(limits)):
        if not _is_resource(name):
            yield f"limits[{name}]: Invalid value: {name!r}: must be a standard resource for containers"
            continue
        try:
            request = quantity(requests[name]) if name in requests else None
            limit = quantity(limits[name]) if name in limits else None
        except ValueError as error:
            yield str(error)
            continue
        is_extended = "/" in name
        if is_extended and limit is None:
            yield f"limits: Required value: Limit must be set for non overcommitable resources: {name}"
        elif is_extended and request != limit:
            yield f"requests: Invalid value: {request}: must be equal to {name} limit of {limit}"
        elif request is not None and limit is not None and request > limit:
            yield (
                f"requests: Invalid value: {requests[name]!r}: must be less than or equal to {name} "
                f"limit of {limits[name]}"
            )
        if is_extended and limit is not None and limit != int(limit):
            yield f"limits[{name}]: Invalid value: {limit}: must be an integer"


def _is_resource(name: str) -> bool:
    prefix, slash, last = name.rpartition("/")
    if not slash:
        return name in _STANDARD or name.startswith("hugepages-")
    if name.startswith("requests.") or "/" in prefix or len(f"requests.{prefix}") > 253:
        return False
    return bool(_SUBDOMAIN.fullmatch(prefix)) and bool(_PART.fullmatch(last)) and len(last) <= 63
