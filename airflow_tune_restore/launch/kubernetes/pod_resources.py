"""Requests and limits of a pod, from the needs of a trial, of its Ray and of the user."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.resources import OBJECT_STORE_BYTES

RAY_BYTES = 1024**3
"""Memory of a private Ray beside its object store and the trial: GCS, raylet, agents, the runner."""

GPU_RESOURCE = "nvidia.com/gpu"

_MIB = 1024**2
_NATIVE = "kubernetes.io/"
_QUOTA_PREFIX = "requests."
_DOMAIN_LENGTH = 253
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_EXTENDED_RESOURCE = re.compile(
    rf"(?P<domain>{_LABEL}(\.{_LABEL})*)/[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
)
_OF_RAY = frozenset({"CPU", "GPU", "memory", "object_store_memory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpecOptions:
    """Options of a pod that do not depend on the trial.

    Args:
        python: Interpreter in the image that has Ray and the trainable.
        object_store_bytes: Size of Ray's object store; `/dev/shm` is made a little larger.
        gpu_resource: The cluster's name of a GPU.
        custom_resources: The cluster's names of custom resources, by Ray's name.

    Raises:
        InvalidInputError: If a name or size is not valid in a cluster.
    """

    python: str = "python"
    object_store_bytes: int = OBJECT_STORE_BYTES
    gpu_resource: str = GPU_RESOURCE
    custom_resources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.object_store_bytes <= 0:
            raise InvalidInputError(
                f"object_store_memory={self.object_store_bytes!r} is not a positive number of bytes."
            )
        if not _is_extended(self.gpu_resource):
            raise InvalidInputError(
                f"gpu_resource={self.gpu_resource!r} is not a resource name of a cluster, like "
                f"{GPU_RESOURCE}."
            )
        if not isinstance(self.custom_resources, Mapping):
            raise InvalidInputError(
                f"custom_resources={self.custom_resources!r} is not a mapping of names to names."
            )
        for name, given in self.custom_resources.items():
            if name in _OF_RAY:
                raise InvalidInputError(
                    f"custom_resources={{{name!r}: {given!r}}}: {name} is not a custom resource. "
                    "gpu_resource names a GPU; container_resources sets memory and CPUs."
                )
            if not _is_extended(given):
                raise InvalidInputError(
                    f"custom_resources={{{name!r}: {given!r}}}: {given!r} is not a resource name of a "
                    "cluster, like example.com/special."
                )


def container_resources(resources: Mapping[str, float], options: PodSpecOptions) -> dict[str, str]:
    """Return the needs of a trial as Kubernetes' quantities, for requests and limits alike.

    GPUs are rounded up. Custom resources without a name in the cluster concern Ray alone.
    """
    found = {"cpu": _cpu(max(1.0, resources.get("CPU", 1.0)))}  # Ray itself needs one to start
    if gpus := resources.get("GPU", 0.0):
        found[options.gpu_resource] = str(math.ceil(gpus))
    if memory := resources.get("memory", 0.0):
        found["memory"] = mebibytes(memory + RAY_BYTES + options.object_store_bytes)
    for name, amount in resources.items():
        if amount and (cluster_name := cluster_resource(name, options)):
            found[cluster_name] = str(math.ceil(amount))
    return found


def cluster_resource(name: str, options: PodSpecOptions) -> str | None:
    """Return the cluster's name of a custom resource; None for Ray's own, and without a name."""
    if name in _OF_RAY:
        return None
    given = options.custom_resources.get(name, name)
    return given if _is_extended(given) else None


def given_resources(*given: Any) -> dict[str, dict[str, Any]]:
    """Return requests and limits of `V1ResourceRequirements` or their JSON; a later one has priority."""
    merged: dict[str, dict[str, Any]] = {"requests": {}, "limits": {}}
    for one in given:
        for kind, amounts in merged.items():
            amounts.update(
                (one.get(kind) if isinstance(one, dict) else getattr(one, kind, None)) or {}
            )
    return merged


def merge_resources(
    asked: Mapping[str, str], given: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, dict[str, str]]:
    """Return valid requests and limits, from the trial's needs and the user's values.

    The user's value has priority; of memory, the larger one. If the user gives a request alone, the limit
    is not below it; if a limit alone, the request is not above it. If a resource cannot be overcommitted,
    one value sets both. A user's request above the user's limit is kept: the API server refuses it.
    """
    merged: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    requests, limits = (_amounts(given.get(kind)) for kind in merged)
    for name in dict.fromkeys([*asked, *requests, *limits]):
        request, limit = _merge_pair(name, asked.get(name), requests.get(name), limits.get(name))
        if request is not None:
            merged["requests"][name] = request
        if limit is not None:
            merged["limits"][name] = limit
    return merged


def trial_memory(limit: Any, options: PodSpecOptions) -> float | None:
    """Return the bytes of a memory limit that are left for the trial; None without a limit."""
    left = float(parse_amount(limit)) - RAY_BYTES - options.object_store_bytes
    return left if left > 0 else None


def parse_amount(quantity: Any) -> Decimal:
    """Read a quantity as Kubernetes' client does; 0 if it is missing or not a quantity."""
    from kubernetes.utils.quantity import parse_quantity

    try:
        amount: Decimal = parse_quantity(quantity)
    except (ValueError, ArithmeticError):
        return Decimal(0)
    return amount if amount.is_finite() else Decimal(0)  # the client accepts "NaN"


def mebibytes(amount: float) -> str:
    """Write an amount of memory in bytes as Kubernetes does, rounded up."""
    return f"{math.ceil(amount / _MIB)}Mi"


def _cpu(cores: float) -> str:
    return str(int(cores)) if cores == int(cores) else f"{math.ceil(cores * 1000)}m"


def _amounts(given: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: str(amount) for name, amount in (given or {}).items() if amount is not None}


def _merge_pair(
    name: str, asked: str | None, request: str | None, limit: str | None
) -> tuple[str | None, str | None]:
    """Return request and limit of one resource; None if the API server has to fill it in."""
    if asked is not None and name == "memory":
        request, limit = (
            amount and max(amount, asked, key=parse_amount) for amount in (request, limit)
        )
    if not _can_overcommit(name):
        return request or limit or asked, limit or request or asked
    if asked is None:
        return request, limit
    return (
        request or (min(asked, limit, key=parse_amount) if limit else asked),
        limit or (max(asked, request, key=parse_amount) if request else asked),
    )


def _is_extended(name: Any) -> bool:
    """Whether a name is that of an extended resource (Kubernetes' `helper.IsExtendedResourceName`).

    It must also be short enough for the prefix in a quota. Kubernetes' own names are excluded.
    """
    match = _EXTENDED_RESOURCE.fullmatch(name) if isinstance(name, str) else None
    if match is None or _NATIVE in name or name.startswith(_QUOTA_PREFIX):
        return False
    return len(_QUOTA_PREFIX + match["domain"]) <= _DOMAIN_LENGTH


def _can_overcommit(name: str) -> bool:
    """Whether a request may be below its limit (Kubernetes' `helper.IsOvercommitAllowed`)."""
    is_native = "/" not in name or _NATIVE in name
    return is_native and not name.startswith("hugepages-")
