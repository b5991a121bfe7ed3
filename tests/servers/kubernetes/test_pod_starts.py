"""Pods that cannot be created or do not start: the message names why, and no attempt is counted."""

import pytest
from airflow.providers.cncf.kubernetes.secret import Secret
from kubernetes.client import models

from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.version_compat import AirflowException, AirflowFailException
from tests.support.kubernetes.api import base
from tests.support.kubernetes.pods import pod_context
from tests.support.kubernetes.stand_in import BOTH

SOON = {"startup_timeout_seconds": 1, "schedule_timeout_seconds": 1}
ON_ITS_NODE = {**SOON, "schedule_timeout_seconds": 600}
"""It waits on its node for a second, however late it comes there."""


def refused(trial, *, deferred: bool, kind=AirflowException, **more) -> str:
    """Run a task that fails, and return its message: one line, without a traceback."""
    with pytest.raises(kind) as error:
        trial.restore(deferred=deferred, **more)
    assert isinstance(error.value, AirflowFailException) == (kind is AirflowFailException)
    message = str(error.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert trial.failures == ()
    return message


@BOTH
def test_an_image_that_cannot_be_pulled_is_named_with_the_registrys_reason(trial, api, deferred):
    message = refused(trial, deferred=deferred, image="registry.example.com/typo:1")
    assert "Image registry.example.com/typo:1 cannot be pulled (ErrImagePull)" in message
    assert "failed to resolve reference" in message
    api.wait_for(lambda pods: not pods)
    trial.open()
    assert trial.restore(deferred=deferred)["attempt"] == 1  # it was claimed and never started


@BOTH
def test_a_secret_that_is_missing_is_named(trial, api, deferred):
    secret = models.V1EnvFromSource(
        secret_ref=models.V1SecretEnvSource(name="tune-restore-storage")
    )
    message = refused(trial, deferred=deferred, env_from=[secret], **ON_ITS_NODE)
    assert 'CreateContainerConfigError): secret "tune-restore-storage" not found' in message
    api.wait_for(lambda pods: not pods)


@BOTH
def test_a_secret_that_is_missing_for_a_volume_is_named(trial, api, deferred):
    message = refused(
        trial, deferred=deferred, secrets=[Secret("volume", "/keys", "files")], **ON_ITS_NODE
    )
    assert 'secret "files" not found (FailedMount)' in message
    api.wait_for(lambda pods: not pods)


@BOTH
def test_a_node_that_is_missing_is_told_in_the_schedulers_words(trial, api, deferred):
    api.kubelet.has_room = False
    message = refused(trial, deferred=deferred, **SOON)
    assert "did not start: 0/1 nodes are available: 1 Insufficient cpu." in message


@BOTH
def test_a_command_that_is_not_in_the_image_fails_the_task_for_good(trial, api, deferred):
    message = refused(trial, deferred=deferred, kind=AirflowFailException, python="no-such-python")
    assert 'exec: "no-such-python": executable file not found in $PATH' in message
    assert "python=" in message
    # another worker finds it, and counts no attempt either
    dead = trial.operator(python="no-such-python", on_finish_action="keep_pod")
    with pytest.raises(AirflowFailException):
        dead.execute(pod_context())
    assert refused(trial, deferred=deferred, kind=AirflowFailException, python="no-such-python")


@BOTH
def test_an_image_without_this_package_fails_the_task_for_good(trial, api, deferred, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho $0: No module named airflow_tune_restore >&2; exit 1\n")
    python.chmod(0o755)
    message = refused(trial, deferred=deferred, kind=AirflowFailException, python=str(python))
    assert "the image lacks this package" in message


@BOTH
def test_a_runner_without_a_way_to_the_store_is_quoted(trial, api, deferred, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho error: s3://b/e: Unable to locate credentials >&2; exit 2\n")
    python.chmod(0o755)
    message = refused(trial, deferred=deferred, python=str(python))
    assert "was not started: s3://b/e: Unable to locate credentials" in message


WRONG = [
    ({"pod_template_file": "/opt/airflow/tune.yaml"}, "does not exist on this worker"),
    ({"pod_template_dict": {"kind": "Pod", "spec": {"containers": None}}}, "is not a pod"),
    ({"custom_resources": ["x"]}, "custom_resources="),
    ({"custom_resources": {"x": "???"}}, "is not a resource name of a cluster"),
    ({"gpu_resource": "gpu"}, "gpu_resource='gpu'"),
    ({"startup_timeout_seconds": "5m"}, "startup_timeout_seconds='5m'"),
    ({"env": {"A": None}}, "has no value"),
    (
        {
            "pod_template_dict": {
                "kind": "Pod",
                "spec": {"containers": [{"name": "proxy"}, {"name": "base"}]},
            }
        },
        "'base' of the pod template is not its first one",
    ),
]


@pytest.mark.parametrize(("more", "words"), WRONG, ids=[words for _, words in WRONG])
def test_arguments_that_no_pod_can_be_made_of_are_refused_before_anything_is_claimed(
    trial, api, more, words
):
    assert words in refused(trial, deferred=False, kind=AirflowFailException, **more)
    assert AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).numbers() == []


def test_a_template_that_is_not_yaml_is_refused(trial, api, tmp_path):
    path = tmp_path / "tune.yaml"
    path.write_text("spec: [")
    more = {"pod_template_file": str(path)}
    assert "is not a pod" in refused(trial, deferred=False, kind=AirflowFailException, **more)


def test_a_connection_that_cannot_be_used_is_told(trial, api, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_KUBERNETES_DEFAULT")
    more = {"kubernetes_conn_id": None, "config_file": "/nope/config"}
    message = refused(trial, deferred=False, **more)
    assert "connection to Kubernetes (/nope/config) cannot be used" in message


@BOTH
def test_a_pod_that_is_wrong_is_not_tried_again(trial, api, deferred):
    more = {"env": {"not a name": "1"}, "labels": {"a": "not a label!"}}
    message = refused(trial, deferred=deferred, kind=AirflowFailException, **more)
    assert "could not be created: 422" in message
    posts = [path for path, _ in api.requests if path.startswith("POST")]
    assert len(posts) == 1


@BOTH
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"service_account_name": "nobody"}, 'serviceaccount "nobody" not found'),
        ({"priority_class_name": "urgent"}, "no PriorityClass with name urgent was found"),
    ],
)
def test_what_admission_refuses_is_told_at_once_and_may_be_tried_again(
    trial, api, deferred, more, words
):
    assert words in refused(trial, deferred=deferred, **more)
    api.accounts.add("nobody")
    api.priorities.add("urgent")
    trial.open()
    assert trial.restore(deferred=deferred, **more)["attempt"] == 1


@BOTH
def test_a_role_that_does_not_allow_to_create_pods_is_told_where_it_is_described(
    trial, api, monkeypatch, caplog, deferred
):
    from airflow_tune_restore.launch.kubernetes import named_pods

    monkeypatch.setattr(named_pods, "REFUSAL_SECONDS", 0.5)
    api.rules -= {("create", "pods")}
    message = refused(trial, deferred=deferred)
    assert 'cannot create resource "pods"' in message
    assert "docs/kubernetes/rbac.yaml" in caplog.text


@BOTH
@pytest.mark.parametrize(
    "resources",
    [
        models.V1ResourceRequirements(requests={"cpu": "8"}),
        models.V1ResourceRequirements(limits={"cpu": "500m"}),
        models.V1ResourceRequirements(limits={"nvidia.com/gpu": "1"}),
        models.V1ResourceRequirements(requests={"memory": "64Gi"}, limits={"cpu": "4"}),
    ],
    ids=str,
)
def test_a_request_or_a_limit_alone_is_taken(trial, api, deferred, resources):
    trial.open()
    trial.restore(deferred=deferred, container_resources=resources)
    given = base(api.created[0])["resources"]
    for kind in ("requests", "limits"):
        for name, amount in (getattr(resources, kind) or {}).items():
            assert given[kind][name] == amount


@BOTH
@pytest.mark.parametrize("ttl", [0.5, 100 * 365 * 24 * 3600])
def test_a_ttl_that_no_pod_can_have_is_refused_before_anything_is_claimed(
    trial, api, deferred, ttl
):
    message = refused(trial, deferred=deferred, kind=AirflowFailException, ttl=ttl)
    assert "ttl" in message
    assert api.created == []
    assert AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).numbers() == []


@BOTH
@pytest.mark.parametrize("name", ["a$(HOME)b", "cost$$", "$", "$(PATH)"])
def test_a_dollar_in_the_name_of_an_experiment_reaches_the_runner(new_trial, api, deferred, name):
    trial = new_trial(name)
    trial.open()
    assert trial.restore(deferred=deferred)["status"] == "TERMINATED"


@BOTH
def test_a_template_may_mount_shared_memory_with_a_slash(trial, api, deferred):
    trial.open()
    trial.restore(
        deferred=deferred,
        volumes=[models.V1Volume(name="mine", empty_dir=models.V1EmptyDirVolumeSource())],
        volume_mounts=[models.V1VolumeMount(name="mine", mount_path="/dev/shm/")],
    )
    assert [mount["name"] for mount in base(api.created[0])["volumeMounts"]] == ["mine"]
