"""One runner, one pod: what the pod of a claimed attempt looks like.

Plain values in the form of Kubernetes' own JSON: whoever speaks to a cluster sends them. Names are made
from restore, trial and attempt alone, so that the cluster refuses a second creation of the same pod, and
whoever comes later finds it.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import RunnerRequest
from airflow_tune_restore.storage.location import Location

OBJECT_STORE_BYTES = 200 * 1024**2
"""What the runner gives a private Ray (`runner.ray_session`), where nobody says otherwise."""

RAY_BYTES = 1024**3
"""Memory of a private Ray beside its object store and the trial: GCS, raylet, agents, our own process."""

GPU_RESOURCE = "nvidia.com/gpu"
LABEL_PREFIX = "tune-restore/"
SHM_VOLUME = "tune-restore-shm"
SHM_PATH = "/dev/shm"  # noqa: S108  where Ray keeps its object store

_SHM_SLACK_BYTES = 64 * 1024**2
_MIB = 1024**2
_NAME_LENGTH = 24
_LABEL_LENGTH = 63
_EXTENDED_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(|[kMGTPE]i?|m|e\d+)")
_OF_RAY = frozenset({"CPU", "GPU", "memory", "object_store_memory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PodShape:
    """What of a pod does not depend on the trial.

    Args:
        python: Interpreter in the image that has Ray and the trainable.
        object_store_bytes: Size of Ray's object store; `/dev/shm` is made a little larger.
        gpu_resource: What the cluster calls a GPU.
        custom_resources: Names of Ray's custom resources, and what the cluster calls them.
    """

    python: str = "python"
    object_store_bytes: int = OBJECT_STORE_BYTES
    gpu_resource: str = GPU_RESOURCE
    custom_resources: Mapping[str, str] = field(default_factory=dict)


def pod_name(experiment: str, restore_id: str, trial_id: str, attempt: int) -> str:
    """Return the one name of the pod of an attempt: readable, unique, and fit for DNS."""
    identity = "\0".join([experiment, restore_id, trial_id]).encode(errors="replace")
    readable = "whole" if trial_id == layout.EVERY_TRIAL else trial_id
    slug = re.sub(r"[^a-z0-9]+", "-", readable.lower())[:_NAME_LENGTH].strip("-")
    digest = hashlib.sha256(identity).hexdigest()[:12]
    return "-".join(filter(None, ["tune", slug, digest, str(attempt)]))


def pod_labels(request: RunnerRequest) -> dict[str, str]:
    """Return the labels by which people and we find the pods of an experiment, restore or trial."""
    name = Location.parse(request.experiment).name
    trial = "whole" if request.trial_id == layout.EVERY_TRIAL else request.trial_id
    labels = {"experiment": name, "restore": request.restore_id, "trial": trial}
    labels = {key: label_value(value) for key, value in labels.items()}
    labels["attempt"] = str(request.attempt)
    return {f"{LABEL_PREFIX}{key}": value for key, value in labels.items()}


def label_value(text: str) -> str:
    """Make any text a label's value; what had to be changed or cut carries a hash of the whole."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:_LABEL_LENGTH].strip("-_.")
    if safe == text:
        return safe
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:9]
    return f"{safe[: _LABEL_LENGTH - 10].rstrip('-_.')}-{digest}".lstrip("-")


def runner_command(request: RunnerRequest, python: str) -> list[str]:
    """Return the command line of the container."""
    key = layout.request_key(request.restore_id, request.trial_id, request.attempt)
    module = ["-m", "airflow_tune_restore.runner", "run"]
    return [python, *module, "--experiment", request.experiment, "--request", key]


def size_env(resources: Mapping[str, float], shape: PodShape) -> dict[str, str]:
    """Return the variables that tell a runner how large its pod is; `os.cpu_count` tells of the node."""
    return {
        "TUNE_RESTORE_OBJECT_STORE_BYTES": str(shape.object_store_bytes),
        "TUNE_RESTORE_CPUS": str(max(1, math.ceil(resources.get("CPU", 1.0)))),
        "PYTHONUNBUFFERED": "1",
    }


def container_resources(resources: Mapping[str, float], shape: PodShape) -> dict[str, str]:
    """Return what a trial asks for as Kubernetes' quantities, of which the pod needs no more or less.

    A GPU is given whole. Custom resources without a name in the cluster are Ray's affair alone.
    """
    found = {"cpu": _cpu(max(1.0, resources.get("CPU", 1.0)))}  # Ray itself needs one to start
    if gpus := resources.get("GPU", 0.0):
        found[shape.gpu_resource] = str(math.ceil(gpus))
    if memory := resources.get("memory", 0.0):
        found["memory"] = _mebibytes(memory + RAY_BYTES + shape.object_store_bytes)
    for name, amount in resources.items():
        cluster_name = cluster_resource(name, shape)
        if cluster_name is not None and amount:
            found[cluster_name] = str(math.ceil(amount))
    return found


def cluster_resource(name: str, shape: PodShape) -> str | None:
    """Return what the cluster calls a custom resource of Ray's; None for Ray's own, and for no name."""
    if name in _OF_RAY:
        return None
    given = shape.custom_resources.get(name, name)
    return given if _EXTENDED_RESOURCE.fullmatch(given) else None


def merge_resources(
    asked: Mapping[str, str], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """Return requests and limits: what the user gives wins, but for memory, of which the larger does."""
    merged: dict[str, dict[str, str]] = {}
    for kind in ("requests", "limits"):
        named = {name: str(amount) for name, amount in (given.get(kind) or {}).items()}
        merged[kind] = {**asked, **named}
        if "memory" in asked and quantity_bytes(named.get("memory")) < quantity_bytes(
            asked["memory"]
        ):
            merged[kind]["memory"] = asked["memory"]
    return merged


def trial_memory(limit: Any, shape: PodShape) -> float | None:
    """Return how much of a container's memory is left for the trial; None if it has no limit."""
    left = quantity_bytes(limit) - RAY_BYTES - shape.object_store_bytes
    return left if left > 0 else None


def quantity_bytes(quantity: Any) -> float:
    """Read an amount of memory as Kubernetes writes it; 0 for none or for one that is no amount."""
    match = _QUANTITY.fullmatch(str(quantity or ""))
    if match is None:
        return 0.0
    number, unit = float(match[1]), match[2]
    if unit == "m":
        return number / 1000
    if unit.startswith("e"):
        return number * 10.0 ** int(unit[1:])
    power = "kMGTPE".find(unit[:1]) + 1 if unit else 0
    return number * float(1024 if unit.endswith("i") else 1000) ** power


def shm_volume(shape: PodShape) -> Any:
    """Return the volume for Ray's object store: without it a container has 64 MiB of shared memory."""
    from kubernetes.client import models

    size = _mebibytes(shape.object_store_bytes + _SHM_SLACK_BYTES)
    directory = models.V1EmptyDirVolumeSource(medium="Memory", size_limit=size)
    return models.V1Volume(name=SHM_VOLUME, empty_dir=directory)


def shm_mount() -> Any:
    """Return where that volume is mounted."""
    from kubernetes.client import models

    return models.V1VolumeMount(name=SHM_VOLUME, mount_path=SHM_PATH)


def _cpu(cores: float) -> str:
    return str(int(cores)) if cores == int(cores) else f"{math.ceil(cores * 1000)}m"


def _mebibytes(amount: float) -> str:
    return f"{math.ceil(amount / _MIB)}Mi"
