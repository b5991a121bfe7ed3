"""One runner, one pod: what the pod of a claimed attempt looks like.

Plain values in the form of Kubernetes' own JSON: whoever speaks to a cluster sends them. Names are made
from restore, trial and attempt alone, so that the cluster refuses a second creation of the same pod, and
whoever comes later finds it.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions, mebibytes
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.storage.location import Location

LABEL_PREFIX = "tune-restore/"
SHM_VOLUME = "tune-restore-shm"
SHM_PATH = "/dev/shm"  # noqa: S108  where Ray keeps its object store

_SHM_SLACK_BYTES = 64 * 1024**2
_NAME_LENGTH = 24
_LABEL_LENGTH = 63


def pod_name(experiment: str, restore_id: str, trial_id: str, attempt: int) -> str:
    """Return the one name of the pod of an attempt: readable, unique, and fit for DNS."""
    identity = "\0".join([experiment, restore_id, trial_id]).encode(errors="replace")
    readable = "whole" if trial_id == layout.WHOLE_EXPERIMENT else trial_id
    slug = re.sub(r"[^a-z0-9]+", "-", readable.lower())[:_NAME_LENGTH].strip("-")
    digest = hashlib.sha256(identity).hexdigest()[:12]
    return "-".join(filter(None, ["tune", slug, digest, str(attempt)]))


def pod_labels(request: RunnerRequest) -> dict[str, str]:
    """Return the labels by which people and we find the pods of an experiment, restore or trial."""
    name = Location.parse(request.experiment).name
    trial = "whole" if request.trial_id == layout.WHOLE_EXPERIMENT else request.trial_id
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


def escape(text: str) -> str:
    """Write text for a command or variable such that a kubelet, which expands `$(NAME)`, leaves it so."""
    return text.replace("$", "$$")


def size_env(resources: Mapping[str, float], shape: PodSpecOptions) -> dict[str, str]:
    """Return the variables that tell a runner how large its pod is; `os.cpu_count` tells of the node."""
    return {
        "TUNE_RESTORE_OBJECT_STORE_BYTES": str(shape.object_store_bytes),
        "TUNE_RESTORE_CPUS": str(max(1, math.ceil(resources.get("CPU", 1.0)))),
        "PYTHONUNBUFFERED": "1",
    }


def shm_volume(shape: PodSpecOptions) -> Any:
    """Return the volume for Ray's object store: without it a container has 64 MiB of shared memory."""
    from kubernetes.client import models

    size = mebibytes(shape.object_store_bytes + _SHM_SLACK_BYTES)
    directory = models.V1EmptyDirVolumeSource(medium="Memory", size_limit=size)
    return models.V1Volume(name=SHM_VOLUME, empty_dir=directory)


def shm_mount() -> Any:
    """Return where that volume is mounted."""
    from kubernetes.client import models

    return models.V1VolumeMount(name=SHM_VOLUME, mount_path=SHM_PATH)
