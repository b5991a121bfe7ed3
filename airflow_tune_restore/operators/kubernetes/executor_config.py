"""For Airflow's KubernetesExecutor: the worker's own pod, made fit for a trial and its Ray."""

from collections.abc import Mapping
from typing import Any

from airflow_tune_restore.launch.kubernetes import pod_resources
from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
from airflow_tune_restore.launch.kubernetes.pod_spec import shm_mount, shm_volume, size_env
from airflow_tune_restore.operators.kubernetes.pod_arguments import parse_object_store


def executor_config(
    resources: Mapping[str, float],
    *,
    object_store_memory: int = pod_resources.OBJECT_STORE_BYTES,
    gpu_resource: str = pod_resources.GPU_RESOURCE,
    custom_resources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the `executor_config` of a trial task whose worker pod runs the trial itself.

    `RestoreTrialOperator.partial(executor_config=executor_config({"CPU": 4, "GPU": 1, "memory": …}), …)`.
    Airflow cannot map `executor_config`: the one override fits all trials of the mapped task, so give it
    what the largest of them asks for. With pods of different sizes use `RestoreTrialKubernetesOperator`.

    Args:
        resources: What a trial asks for, in Ray's words.
        object_store_memory: Bytes of Ray's object store; `/dev/shm` is sized for it.
        gpu_resource: What the cluster calls a GPU.
        custom_resources: What the cluster calls the custom resources of trials, by Ray's name.

    Raises:
        InvalidInputError: If a cluster can have nothing of such a name or size.
    """
    from kubernetes.client import models

    shape = PodSpecOptions(
        object_store_bytes=parse_object_store(object_store_memory),
        gpu_resource=gpu_resource,
        custom_resources=custom_resources or {},
    )
    asked = pod_resources.container_resources(resources, shape)
    container = models.V1Container(
        name="base",  # the executor's name for the worker's container
        resources=models.V1ResourceRequirements(requests=asked, limits=dict(asked)),
        env=[
            models.V1EnvVar(name=name, value=value)
            for name, value in size_env(resources, shape).items()
        ],
        volume_mounts=[shm_mount()],
    )
    spec = models.V1PodSpec(containers=[container], volumes=[shm_volume(shape)])
    return {"pod_override": models.V1Pod(spec=spec)}
