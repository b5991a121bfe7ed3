"""The worker's pod of Airflow's KubernetesExecutor, sized for a trial: by the executor's own code."""

import kubernetes_validate
import pytest
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.sdk import DAG

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.kubernetes.executor_config import executor_config
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from tests.support.airflow.names import DagSerialization

GIB = 1024.0**3


def worker_pod(config) -> dict:
    """Return the pod that the executor makes of its template and the override, as it sends it."""
    from datetime import UTC, datetime

    from kubernetes.client import ApiClient, models

    container = models.V1Container(name="base", image="airflow", command=["template"])
    template = models.V1Pod(
        metadata=models.V1ObjectMeta(name="template"),
        spec=models.V1PodSpec(containers=[container], volumes=[]),
    )
    pod = PodGenerator.construct_pod(
        dag_id="d", task_id="trial", pod_id="p", try_number=1, kube_image="airflow",
        date=datetime.now(UTC), args=["airflow", "work"], run_id="r", map_index=3, namespace="n",
        pod_override_object=PodGenerator.from_obj(config), base_worker_pod=template,
        scheduler_job_id="1", with_mutation_hook=False,
    )  # fmt: skip
    return ApiClient().sanitize_for_serialization(pod)


def test_the_worker_has_what_a_trial_asks_for():
    config = executor_config(
        {"CPU": 4.0, "GPU": 1.0, "memory": 4 * GIB}, object_store_memory=1024**3
    )
    pod = worker_pod(config)
    (container,) = pod["spec"]["containers"]
    expected = {"cpu": "4", "nvidia.com/gpu": "1", "memory": f"{4096 + 1024 + 1024}Mi"}
    assert container["resources"] == {"requests": expected, "limits": expected}
    assert container["args"] == ["airflow", "work"]
    assert {"name": "TUNE_RESTORE_CPUS", "value": "4"} in container["env"]
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "tune-restore-shm"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1088Mi"}
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **pod}, "1.34", strict=True)


def test_it_survives_the_serialization_of_a_dag():
    with DAG("d") as dag:
        TuneRestoreTaskGroup(
            trainable="a:b",
            experiments=["/data/a"],
            trial_args={"executor_config": executor_config({"CPU": 2.0})},
        )
    again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    task = again.task_dict["restore.trial"]
    config = task.partial_kwargs["executor_config"]
    (container,) = config["pod_override"].spec.containers
    assert container.resources.requests == {"cpu": "2"}


def test_airflow_cannot_map_it():
    """Why the helper takes one size for all trials of a mapped task."""
    with pytest.raises(TypeError, match="unmappable"), DAG("d"):
        RestoreTrialOperator.partial(task_id="trial", trainable="a:b").expand(
            trial=[{}], executor_config=[executor_config({"CPU": 2.0})]
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"object_store_memory": 0},
        {"gpu_resource": "gpu"},
        {"custom_resources": {"special": "special"}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_no_worker_can_have_is_refused_where_the_dag_is_written(wrong):
    with pytest.raises(InvalidInputError, match=f"^{next(iter(wrong))}="):
        executor_config({"CPU": 1.0}, **wrong)


def test_the_object_store_is_a_whole_number_of_bytes_for_the_runner():
    (container,) = executor_config({}, object_store_memory=1.5e9)["pod_override"].spec.containers
    env = {variable.name: variable.value for variable in container.env}
    assert env["TUNE_RESTORE_OBJECT_STORE_BYTES"] == "1500000000"
