"""What the user gives of a pod, by template or argument, as a `KubernetesPodOperator` would take it."""

import posixpath
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.launch.kubernetes import SHM_PATH, SHM_VOLUME

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator


def read_template(operator: "KubernetesPodOperator") -> Any | None:
    """Return the pod that the operator's arguments are laid over; None if there is none."""
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    if operator.pod_template_file:
        template = PodGenerator.deserialize_model_file(operator.pod_template_file)
    elif operator.pod_template_dict:
        template = PodGenerator.deserialize_model_dict(operator.pod_template_dict)
    else:
        return operator.full_pod_spec
    return PodGenerator.reconcile_pods(template, operator.full_pod_spec)


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
