"""The pod of an attempt, made of the user's template file and the parts that the attempt needs."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.kubernetes import pod_resources, pod_spec
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import RunnerRequest

CONTAINER = "base"
"""The runner's container in a template; without a container of this name, the first one."""


def read_template(path: str | Path | None) -> Any:
    """Read a `V1Pod` from a YAML or JSON file; without a file, return a pod with an empty container.

    Raises:
        InvalidInputError: If the file cannot be read, or is not a pod with containers.
    """
    from kubernetes.client import ApiClient, models
    from yaml import YAMLError, safe_load

    if path is None:
        return models.V1Pod(
            metadata=models.V1ObjectMeta(),
            spec=models.V1PodSpec(containers=[models.V1Container(name=CONTAINER)]),
        )
    try:
        found = safe_load(Path(path).read_text(encoding="utf-8"))
        _refuse_malformed(found)
        pod = ApiClient().deserialize(SimpleNamespace(data=json.dumps(found)), "V1Pod")
    except OSError as error:
        raise InvalidInputError(f"Cannot read pod template {path}: {error.strerror}.") from error
    except (YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidInputError(
            f"Pod template {path} is not a pod: {printable(str(error), 500).rstrip('.')}."
        ) from error
    pod.metadata = pod.metadata or models.V1ObjectMeta()
    return pod


def _refuse_malformed(found: Any) -> None:
    """Raise ValueError or TypeError for mistakes that the client accepts or reports unclearly."""
    if not isinstance(found, dict) or found.get("kind", "Pod") != "Pod":
        raise ValueError("its kind is not Pod")
    if not isinstance(found.get("metadata"), dict | None):
        raise TypeError("its metadata is not an object")
    spec = found.get("spec")
    containers = spec.get("containers") if isinstance(spec, dict) else None
    if not isinstance(containers, list) or not containers:
        raise ValueError("it has no containers")
    for number, container in enumerate(containers, 1):
        if not isinstance(container, dict) or not container.get("name"):
            raise ValueError(f"container {number} has no name")


def runner_container(pod: Any) -> Any:
    """Return the container of a pod that the runner gets."""
    containers = pod.spec.containers
    return next((found for found in containers if found.name == CONTAINER), containers[0])


def build_pod(
    template: Any,
    request: RunnerRequest,
    options: pod_resources.PodSpecOptions,
    *,
    namespace: str,
    image: str | None,
    env: Mapping[str, str],
) -> Any:
    """Return the `V1Pod` of an attempt; the template, also one, stays as it is.

    Without an image, the runner's container has the template's. `env` are more variables of this
    container, taken literally.
    """
    from kubernetes.client import models

    pod = copy.deepcopy(template)
    container = runner_container(pod)
    parts = pod_spec.attempt_spec(request, options, env)

    meta, spec = pod.metadata, pod.spec
    pod.api_version, pod.kind = "v1", "Pod"
    meta.name, meta.namespace, meta.generate_name = parts.name, namespace, None
    meta.labels = {**(meta.labels or {}), **parts.labels}
    meta.annotations = {**(meta.annotations or {}), **parts.annotations}

    container.image = image or container.image
    container.command, container.args = parts.command[:1], parts.command[1:]
    container.env = [
        *(given for given in container.env or () if given.name not in parts.env),
        *(models.V1EnvVar(name=name, value=value) for name, value in parts.env.items()),
    ]
    asked = pod_resources.container_resources(request.resources, options)
    given = pod_resources.given_resources(container.resources)
    resources = pod_resources.merge_resources(asked, given)
    container.resources = models.V1ResourceRequirements(**resources)
    # so that Kubernetes keeps the last lines of a runner that fails
    container.termination_message_policy = "FallbackToLogsOnError"

    spec.restart_policy = "Never"
    if spec.termination_grace_period_seconds is None:
        spec.termination_grace_period_seconds = pod_spec.GRACE_SECONDS
    spec.volumes = [*(spec.volumes or ()), pod_spec.shm_volume(options)]
    container.volume_mounts = [*(container.volume_mounts or ()), pod_spec.shm_mount()]
    pod_spec.keep_one_shm(pod, container)
    return pod
