"""A pod from what the user gives, by template or argument, and from what an attempt needs.

Both are put together as a `KubernetesPodOperator` does it: arguments win over every template.
"""

import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.kubernetes import pod_resources
from airflow_tune_restore.launch.kubernetes import pod_spec as shapes
from airflow_tune_restore.launch.kubernetes.attempt_pod import name_of
from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
from airflow_tune_restore.launch.kubernetes.pod_spec import SHM_PATH, SHM_VOLUME
from airflow_tune_restore.operators.kubernetes.pod_arguments import parse_ttl
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import RunnerRequest

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator


def apply_request_to_spec(
    operator: "RunnerPodOperator", request: RunnerRequest, shape: PodSpecOptions
) -> None:
    """Set the provider's own arguments of an operator for one attempt."""
    from airflow.providers.cncf.kubernetes.backcompat.backwards_compat_converters import (
        convert_env_vars_or_raise_error,
    )
    from kubernetes.client import models

    operator.name, operator.random_name_suffix = name_of(request), False
    operator.labels = {**operator.labels, **shapes.pod_labels(request)}
    operator.annotations = {
        **operator.annotations,
        f"{shapes.LABEL_PREFIX}experiment": request.experiment,
        f"{shapes.LABEL_PREFIX}trial": request.trial_id,
    }
    command = [shapes.escape(part) for part in shapes.runner_command(request, shape.python)]
    operator.cmds, operator.arguments = command[:1], command[1:]
    own = {name: shapes.escape(str(value)) for name, value in (operator.env or {}).items()}
    given = {**shapes.size_env(request.resources, shape), **own}
    named = convert_env_vars_or_raise_error(operator.env_vars) if operator.env_vars else []
    taken = {variable.name for variable in named}
    fresh = {name: value for name, value in given.items() if name not in taken}
    operator.env_vars = [*named, *convert_env_vars_or_raise_error(fresh)]
    asked = pod_resources.container_resources(request.resources, shape)
    resources = pod_resources.merge_resources(asked, given_resources(operator))
    operator.container_resources = models.V1ResourceRequirements(**resources)
    operator.volumes = [*operator.volumes, shapes.shm_volume(shape)]
    operator.volume_mounts = [*operator.volume_mounts, shapes.shm_mount()]
    if operator.ttl is not None:
        operator.active_deadline_seconds = parse_ttl(operator.ttl)


def read_template(operator: "KubernetesPodOperator") -> Any | None:
    """Return the pod that the operator's arguments are laid over; None if there is none.

    Raises:
        InvalidInputError: If a template does not exist or is not a pod.
    """
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    path = operator.pod_template_file
    if path and not Path(path).is_file():  # the provider goes on without it
        raise InvalidInputError(f"pod_template_file={path!r} does not exist on this worker.")
    try:
        if path:
            template = PodGenerator.deserialize_model_file(path)
        elif operator.pod_template_dict:
            template = PodGenerator.deserialize_model_dict(operator.pod_template_dict)
        else:
            return operator.full_pod_spec
        return PodGenerator.reconcile_pods(template, operator.full_pod_spec)
    except (YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        given = f"pod_template_file={path!r}" if path else "pod_template_dict"
        raise InvalidInputError(f"{given} is not a pod: {printable(str(error), 500)}") from None


def check_template(operator: "KubernetesPodOperator") -> None:
    """Refuse a template that cannot be read, or whose first container is not the runner's.

    The provider lays the runner over the first container, whatever its name.

    Raises:
        InvalidInputError: If it is one of these.
    """
    template = read_template(operator)
    containers = template.spec.containers if template is not None and template.spec else None
    names = [container.name for container in containers or ()]
    base = operator.base_container_name
    if base in names[1:]:
        raise InvalidInputError(
            f"Container {base!r} of the pod template is not its first one. The first is the runner's: "
            "put sidecars after it."
        )


def given_resources(operator: "KubernetesPodOperator") -> dict[str, dict[str, str]]:
    """Return requests and limits that the user gives, by argument or template."""
    template = read_template(operator)
    containers = template.spec.containers if template is not None and template.spec else []
    of_template = _plain(containers[0].resources) if containers else {}
    own = _plain(operator.container_resources)
    return {
        kind: {**(of_template.get(kind) or {}), **(own.get(kind) or {})}
        for kind in ("requests", "limits")
    }


def keep_one_shm(pod: Any) -> None:
    """Leave `/dev/shm` to the user's template if that mounts something there."""
    container = pod.spec.containers[0]
    mounts = container.volume_mounts or []
    if sum(_is_shm(mount.mount_path) for mount in mounts) > 1:
        container.volume_mounts = [m for m in mounts if m.name != SHM_VOLUME]
        pod.spec.volumes = [v for v in pod.spec.volumes if v.name != SHM_VOLUME]


def _is_shm(path: str) -> bool:
    # POSIX keeps two slashes at the beginning apart from one, which mounts do not
    return posixpath.normpath(f"/{path.lstrip('/')}") == SHM_PATH


def _plain(model: Any) -> dict[str, Any]:
    """Return an object of Kubernetes' client, or what stands for one, as a mapping."""
    if model is None:
        return {}
    plain: dict[str, Any] = model if isinstance(model, dict) else model.to_dict(serialize=True)
    return {name: value for name, value in plain.items() if value is not None}
