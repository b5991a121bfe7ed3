"""One runner, one pod: the parts of a pod that an attempt needs.

The name is made from restore, trial and attempt alone. So the cluster refuses a second creation of the
same pod, and another process finds the pod later.
"""

import hashlib
import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions, mebibytes
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.storage.location import Location

LABEL_PREFIX = "tune-restore/"
GRACE_SECONDS = 120
"""A pod's time to save a snapshot; Kubernetes' 30 s are too short for a large checkpoint."""

START_SECONDS = 300
"""How long a pod may wait for a node, and then for its image. Together less than the lease of a restore:
only the runner renews that."""

SHM_VOLUME = "tune-restore-shm"
SHM_PATH = "/dev/shm"  # noqa: S108  where Ray keeps its object store

_SHM_SLACK_BYTES = 64 * 1024**2
_NAME_LENGTH = 24
_LABEL_LENGTH = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """The parts of a pod that depend on its attempt; `command` and `env` are the container's."""

    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    command: list[str]
    env: dict[str, str]


def attempt_spec(
    request: RunnerRequest, options: PodSpecOptions, env: Mapping[str, str]
) -> AttemptSpec:
    """Return the parts of the pod of an attempt; `env` are more variables, taken literally."""
    return AttemptSpec(
        name=name_of(request),
        labels=pod_labels(request),
        annotations={
            f"{LABEL_PREFIX}experiment": request.experiment,
            f"{LABEL_PREFIX}trial": request.trial_id,
        },
        command=[escape(part) for part in runner_command(request, options.python)],
        env={
            **size_env(request.resources, options),
            **{name: escape(str(value)) for name, value in env.items()},
        },
    )


def name_of(request: RunnerRequest) -> str:
    """Return the name of an attempt's pod."""
    return pod_name(request.experiment, request.restore_id, request.trial_id, request.attempt)


def trial_label(request: RunnerRequest) -> str:
    """Return the words for the trial of an attempt that begin a message."""
    is_whole = request.trial_id == layout.WHOLE_EXPERIMENT
    return "All trials" if is_whole else f"Trial {request.trial_id}"


def pod_name(experiment: str, restore_id: str, trial_id: str, attempt: int) -> str:
    """Return the name of the pod of an attempt: readable, unique, and valid in DNS."""
    identity = "\0".join([experiment, restore_id, trial_id]).encode(errors="replace")
    readable = "whole" if trial_id == layout.WHOLE_EXPERIMENT else trial_id
    slug = re.sub(r"[^a-z0-9]+", "-", readable.lower())[:_NAME_LENGTH].strip("-")
    digest = hashlib.sha256(identity).hexdigest()[:12]
    return "-".join(filter(None, ["tune", slug, digest, str(attempt)]))


def pod_labels(request: RunnerRequest) -> dict[str, str]:
    """Return the labels by which users find the pods of an experiment, restore or trial."""
    name = Location.parse(request.experiment).name
    trial = "whole" if request.trial_id == layout.WHOLE_EXPERIMENT else request.trial_id
    labels = {"experiment": name, "restore": request.restore_id, "trial": trial}
    labels["attempt"] = str(request.attempt)
    return {f"{LABEL_PREFIX}{key}": label_value(value) for key, value in labels.items()}


def label_value(text: str) -> str:
    """Make any text a label's value; a text that had to be changed or cut gets a hash of the original."""
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


def escape(text: str) -> str:
    """Write text for a command or variable so that a kubelet, which expands `$(NAME)`, keeps it."""
    return text.replace("$", "$$")


def size_env(resources: Mapping[str, float], options: PodSpecOptions) -> dict[str, str]:
    """Return the variables with the size of the pod; `os.cpu_count` is the size of the node."""
    return {
        "TUNE_RESTORE_OBJECT_STORE_BYTES": str(options.object_store_bytes),
        "TUNE_RESTORE_CPUS": str(max(1, math.ceil(resources.get("CPU", 1.0)))),
        "PYTHONUNBUFFERED": "1",
    }


def shm_volume(options: PodSpecOptions) -> Any:
    """Return the volume for Ray's object store: without it a container has 64 MiB of shared memory."""
    from kubernetes.client import models

    size = mebibytes(options.object_store_bytes + _SHM_SLACK_BYTES)
    directory = models.V1EmptyDirVolumeSource(medium="Memory", size_limit=size)
    return models.V1Volume(name=SHM_VOLUME, empty_dir=directory)


def shm_mount() -> Any:
    """Return the mount of that volume."""
    from kubernetes.client import models

    return models.V1VolumeMount(name=SHM_VOLUME, mount_path=SHM_PATH)


def keep_one_shm(pod: Any, container: Any) -> None:
    """Keep the user's mount at `/dev/shm`, and drop ours, if the template mounts something there."""
    mounts = container.volume_mounts or []
    if sum(_is_shm(mount.mount_path) for mount in mounts) > 1:
        container.volume_mounts = [m for m in mounts if m.name != SHM_VOLUME]
        pod.spec.volumes = [v for v in pod.spec.volumes if v.name != SHM_VOLUME]


def _is_shm(path: str) -> bool:
    # POSIX keeps two slashes at the beginning apart from one, which mounts do not
    return posixpath.normpath(f"/{path.lstrip('/')}") == SHM_PATH
