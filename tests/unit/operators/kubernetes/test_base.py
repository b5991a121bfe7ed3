"""The pod that is sent, built by the provider from everything a user may give; nothing is sent here."""

import json
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from kubernetes.client import ApiClient, models

from airflow_tune_restore.launch.kubernetes.pod_spec import runner_command
from airflow_tune_restore.operators.kubernetes.restore_trial import RestoreTrialKubernetesOperator
from airflow_tune_restore.protocol.request import RunnerRequest
from tests.support.airflow.context import make_context
from tests.support.kubernetes.admission import default, refuse_invalid
from tests.support.kubernetes.container import expand

GIB = 1024.0**3
REQUEST = RunnerRequest(
    experiment="s3://bucket/sweeps/exp",
    restore_id="airflow-1",
    trial_id="a1",
    attempt=2,
    trainable="a:b",
    trainable_name="b",
    action="resume",
    resources={"CPU": 2.0, "GPU": 1.0, "memory": 4 * GIB},
)


def operator(request=REQUEST, **arguments) -> RestoreTrialKubernetesOperator:
    made = RestoreTrialKubernetesOperator(
        task_id="trial", trial={}, trainable="a:b", **{"image": "i", "namespace": "n", **arguments}
    )
    made._set_request(request, "score")
    return made


def build(request=REQUEST, **arguments) -> dict:
    """Return the pod as it is sent, and check it as an API server would."""
    pod = operator(request, **arguments).build_pod_request_obj(None, dry_run=True)
    sent = ApiClient().sanitize_for_serialization(pod)
    received = json.loads(json.dumps(sent))
    default(received)
    refuse_invalid(received)
    return sent


def container(pod) -> dict:
    return pod["spec"]["containers"][0]


def template(**container) -> dict:
    base = {"name": "base", "image": "from/template:1", **container}
    metadata = {"name": "t", "namespace": "from-template", "labels": {"team": "vision"}}
    spec = {"serviceAccountName": "sa", "containers": [base]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_a_trial_gets_what_it_asks_for_and_ray_its_shared_memory():
    pod = build(object_store_memory=1024**3)
    asked = {"cpu": "2", "nvidia.com/gpu": "1", "memory": f"{4096 + 1024 + 1024}Mi"}
    assert container(pod)["resources"] == {"requests": asked, "limits": asked}
    (volume,) = pod["spec"]["volumes"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1088Mi"}
    assert container(pod)["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
    assert container(pod)["command"] == ["python"]
    assert container(pod)["args"][:3] == ["-m", "airflow_tune_restore.runner", "run"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 120
    assert pod["spec"]["restartPolicy"] == "Never"


def test_everything_a_template_says_stays():
    given = template(
        env=[{"name": "A", "value": "b"}],
        envFrom=[{"secretRef": {"name": "keys"}}],
        resources={"limits": {"ephemeral-storage": "9Gi", "memory": "64Gi"}},
    )
    pod = build(pod_template_dict=given, image=None, namespace=None)
    assert pod["metadata"]["namespace"] == "from-template"
    assert pod["metadata"]["labels"]["team"] == "vision"
    assert pod["metadata"]["labels"]["tune-restore/attempt"] == "2"
    assert pod["metadata"]["name"].startswith("tune-a1-")
    assert pod["spec"]["serviceAccountName"] == "sa"
    assert container(pod)["image"] == "from/template:1"
    assert container(pod)["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert {"name": "A", "value": "b"} in container(pod)["env"]
    limits = container(pod)["resources"]["limits"]
    assert (limits["ephemeral-storage"], limits["memory"]) == ("9Gi", "64Gi")
    assert operator(pod_template_dict=given, namespace=None).pod_namespace == "from-template"


def test_arguments_of_the_provider_win_over_what_a_trial_asks_for():
    pod = build(
        container_resources=models.V1ResourceRequirements(
            requests={"cpu": "500m"}, limits={"cpu": "8"}
        ),
        env_vars={"TUNE_RESTORE_CPUS": "8", "MINE": "1"},
        env={"MINE": "never", "OTHER": "2"},
        labels={"team": "vision"},
        node_selector={"pool": "gpu"},
    )
    resources = container(pod)["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]["cpu"]) == ("500m", "8")
    env = {variable["name"]: variable["value"] for variable in container(pod)["env"]}
    assert (env["TUNE_RESTORE_CPUS"], env["MINE"], env["OTHER"]) == ("8", "1", "2")
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}


def test_shared_memory_of_a_template_is_not_mounted_over():
    mounts = [{"name": "mine", "mountPath": "/dev/shm"}]
    given = template(volumeMounts=mounts)
    given["spec"]["volumes"] = [{"name": "mine", "emptyDir": {"medium": "Memory"}}]
    pod = build(pod_template_dict=given)
    assert container(pod)["volumeMounts"] == mounts
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["mine"]


@pytest.mark.parametrize(("ttl", "seconds"), [(timedelta(hours=2), 7200), (90, 90), (None, None)])
def test_a_ttl_ends_the_pod_whoever_follows_it(ttl, seconds):
    assert build(ttl=ttl)["spec"].get("activeDeadlineSeconds") == seconds


def test_a_second_pod_is_built_from_what_the_user_gave_and_not_from_the_first():
    made = operator(labels={"team": "vision"})
    one, two = (
        ApiClient().sanitize_for_serialization(made.build_pod_request_obj(None, dry_run=True))
        for _ in range(2)
    )
    assert one == two


def memory_of(operator) -> float | None:
    plan = SimpleNamespace(to_run=(), only_continues_search=False)
    return operator.pod_settings(plan).memory


def test_a_memory_limit_of_the_user_is_known_for_the_next_attempt():
    given = template(resources={"limits": {"memory": "6Gi"}})
    assert memory_of(operator(pod_template_dict=given)) == (6144 - 1224) * 1024**2
    assert memory_of(operator()) is None


def test_a_secret_given_as_the_provider_has_it_stands_in_no_spec():
    from airflow.providers.cncf.kubernetes.secret import Secret

    pod = build(
        secrets=[
            Secret("env", None, "keys"),
            Secret("env", "TOKEN", "keys", "token"),
            Secret("volume", "/var/keys", "files"),
        ]
    )
    assert container(pod)["envFrom"] == [{"secretRef": {"name": "keys"}}]
    (token,) = [v for v in container(pod)["env"] if v["name"] == "TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "keys", "key": "token"}}
    assert "/var/keys" in [mount["mountPath"] for mount in container(pod)["volumeMounts"]]


def test_dollars_reach_the_runner_as_they_are_given():
    """A kubelet expands `$(NAME)` and makes one `$` of two, in commands and in values of variables."""
    address = "s3://bucket/sweeps/$(HOME) of $$5"
    request = replace(REQUEST, experiment=address)
    values = {"PATTERN": "$(HOME)/$$/$x", "N": 3}
    pod = build(request, env=values, python="/opt/$(HOME)/python", env_vars={"MINE": "$(HOME)/m"})
    sent = container(pod)
    known = {"HOME": "/root"}
    argv = [expand(part, known) for part in (*sent["command"], *sent["args"])]
    assert argv == runner_command(request, "/opt/$(HOME)/python")
    env = {variable["name"]: expand(variable["value"], known) for variable in sent["env"]}
    assert (env["PATTERN"], env["N"]) == ("$(HOME)/$$/$x", "3")
    assert env["MINE"] == "/root/m"
    assert pod["metadata"]["annotations"]["tune-restore/experiment"] == address


@pytest.mark.parametrize("asked", [True, False])
def test_a_summary_is_pushed_without_a_sidecar_in_the_pod(asked):
    """For the provider, `do_xcom_push` is a second container, which a runner has no file for."""
    context = make_context()
    assert len(build(do_xcom_push=asked)["spec"]["containers"]) == 1
    assert operator(do_xcom_push=asked).push_summary(context, {"status": "x"}) == {"status": "x"}
    assert ("return_value" in context["ti"].pushed) is asked
