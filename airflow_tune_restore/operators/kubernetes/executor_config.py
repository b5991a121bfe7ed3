"""For Airflow's KubernetesExecutor: the worker's own pod, with the resources of a trial and its Ray."""

from collections.abc import Mapping
from typing import Any

from airflow_tune_restore.launch.kubernetes import pod_resources, pod_spec
from airflow_tune_restore.operators.kubernetes.pod_arguments import parse_object_store
from airflow_tune_restore.protocol.resources import OBJECT_STORE_BYTES


def executor_config(
    resources: Mapping[str, float],
    *,
    object_store_memory: int = OBJECT_STORE_BYTES,
    gpu_resource: str = pod_resources.GPU_RESOURCE,
    custom_resources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the `executor_config` of a trial task whose worker pod runs the trial itself.

    `RestoreTrialOperator.partial(executor_config=executor_config({"CPU": 4, "GPU": 1, "memory": …}), …)`.
    Airflow cannot map `executor_config`: one override serves all trials of the mapped task, so give it
    the needs of the largest trial. With pods of different sizes use `RestoreTrialKubernetesOperator`.

    Args:
        resources: The needs of a trial, by Ray's names.
        object_store_memory: Bytes of Ray's object store; `/dev/shm` is sized for it.
        gpu_resource: The cluster's name of a GPU.
        custom_resources: The cluster's names of the custom resources of trials, by Ray's name.

    Raises:
        InvalidInputError: If a name or size is not valid in a cluster.
    """
    from kubernetes.client import models

    options = pod_resources.PodSpecOptions(
        object_store_bytes=parse_object_store(object_store_memory),
        gpu_resource=gpu_resource,
        custom_resources=custom_resources or {},
    )
    size = pod_spec.size_env(resources, options)
    asked = pod_resources.container_resources(resources, options)
    container = models.V1Container(
        name="base",  # the executor's name for the worker's container
        resources=models.V1ResourceRequirements(requests=asked, limits=dict(asked)),
        env=[models.V1EnvVar(name=name, value=value) for name, value in size.items()],
        volume_mounts=[pod_spec.shm_mount()],
    )
    spec = models.V1PodSpec(containers=[container], volumes=[pod_spec.shm_volume(options)])
    return {"pod_override": models.V1Pod(spec=spec)}
