"""The launcher needs no Airflow, and checks the cluster first; each line of a log is shown once."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client.exceptions import ApiException

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KubernetesConnectionError,
    RunnerError,
)
from airflow_tune_restore.launch.kubernetes import named_pods
from airflow_tune_restore.launch.kubernetes.container_log import ContainerLog, LogPosition
from airflow_tune_restore.launch.kubernetes.launcher import KubernetesLauncher
from airflow_tune_restore.launch.kubernetes.named_pods import NamedPods
from airflow_tune_restore.launch.kubernetes.pod_exit import PodWatch
from airflow_tune_restore.launch.kubernetes.pod_template import read_template
from airflow_tune_restore.launch.kubernetes.run import KubernetesRun
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings
from tests.support.kubernetes.api import KubernetesApi
from tests.support.raw_server import raw_server, whole

BEGAN = datetime(2026, 11, 24, 13, 51, 40, tzinfo=UTC)


def test_attempts_in_pods_do_not_import_airflow():
    code = (
        "import sys\n"
        "from airflow_tune_restore.launch.kubernetes import attempt_pod, launcher\n"
        "sys.exit(any(name.partition('.')[0] == 'airflow' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def look(position, lines):
    position.begin_look()
    log = ContainerLog(position.is_new)
    for at, text in lines:
        stamp = (BEGAN + timedelta(microseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        log.take(f"{stamp} {text}\n".encode())
    log.end()
    return [line.partition(" ")[2] for line in log.newest.take("there")]


@given(st.lists(st.integers(0, 8), max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_each_line_is_shown_once_however_often_it_is_read(times, ends):
    lines = [(at, f"line {n}") for n, at in enumerate(sorted(times))]
    position, shown = LogPosition(), []
    for end in [*sorted(ends), len(lines)]:
        # an API server returns whole seconds, so all lines of a time or none
        newest = shown and lines[len(shown) - 1][0]
        shown += look(position, [line for line in lines[:end] if not shown or line[0] >= newest])
    assert shown == [text for _, text in lines]


@pytest.fixture
def launcher(tmp_path):
    """Makes launchers for the cluster at an address."""

    def make(url):
        kubeconfig = KubernetesApi(url=url).kubeconfig(tmp_path / "kubeconfig")
        return KubernetesLauncher(image="sweeps:1", namespace="sweeps", kubeconfig=kubeconfig)

    return make


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Job", "its kind is not Pod"),
        ("spec: 7", "it has no containers"),
        ("spec: {containers: []}", "it has no containers"),
        ("spec: {containers: 7}", "it has no containers"),
        ("spec: {containers: [{image: x}]}", "container 1 has no name"),
        ("spec: {containers: [{name: a}, 7]}", "container 2 has no name"),
        ("{metadata: 5, spec: {containers: [{name: a}]}}", "its metadata is not an object"),
    ],
)
def test_what_is_wrong_with_a_template_is_named(tmp_path, text, words):
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError) as error:
        read_template(path)
    assert str(error.value) == f"Pod template {path} is not a pod: {words}."


def test_the_command_that_deletes_a_pod_is_shown_once(monkeypatch, caplog):
    def refuse(*_arguments, **_options):
        raise ApiException(status=500)

    monkeypatch.setattr(named_pods, "REFUSAL_SECONDS", -1.0)
    core = SimpleNamespace(delete_namespaced_pod=refuse)
    watch = PodWatch("base")
    pods = NamedPods(core=core, namespace="sweeps", watch=watch, renew=lambda: None)
    request = RunnerRequest(
        experiment="/e", restore_id="r", trial_id="t", attempt=1, trainable="m:f",
        trainable_name="f", action="resume",
    )  # fmt: skip
    run = KubernetesRun(pods, request, 1.0)
    with pytest.raises(RunnerError, match=r"could not be deleted. It may continue") as error:
        run.stop()
    assert f"{caplog.text}{error.value}".count(run.stop_command) == 1


def answered(launcher, status, message="in words", **details):
    """Let an API server answer the first request; return its head."""
    reason = status.partition(" ")[2].replace(" ", "")
    body = {"kind": "Status", "reason": reason, "message": message, "details": details}
    answer = whole(json.dumps(body).encode(), "Content-Type: application/json", status=status)
    with raw_server(lambda _head: [answer]) as server:
        try:
            launcher(server.url).settings(RunnerSettings(trainable="a:b"))
        finally:
            (head,) = server.heads
    return head


@pytest.mark.parametrize(
    ("status", "details", "words"),
    [
        ("401 Unauthorized", {}, "refused the credentials of the kubeconfig: 401"),
        ("403 Forbidden", {"kind": "pods"}, "403 Forbidden: in words.*docs/kubernetes/rbac.yaml"),
        (
            "404 Not Found",
            {"kind": "namespaces", "name": "sweeps"},
            "Namespace sweeps does not exist",
        ),
        ("500 Internal Server Error", {}, "answers 500 Internal Server Error: in words"),
        ("200 OK", {}, "did not answer with pod"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused_at_the_first_answer(
    launcher, status, details, words
):
    with pytest.raises(KubernetesConnectionError, match=words) as error:
        answered(launcher, status, **details)
    assert ("rbac" in str(error.value)) == status.startswith("403")


def test_a_cluster_that_is_not_there_is_refused_at_once(launcher):
    with pytest.raises(
        KubernetesConnectionError, match=r"127.0.0.1:1 cannot be used.*cannot be reached"
    ):
        launcher("http://127.0.0.1:1").settings(RunnerSettings(trainable="a:b"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xfe\x00", "the kubeconfig is not valid .'utf-8' codec"),
        (b"{", "expected the node content"),
        (b"7", "the kubeconfig is not valid .* Check the kubeconfig: kubectl config view"),
    ],
)
def test_a_kubeconfig_that_is_not_one_is_refused_in_one_line(tmp_path, text, words):
    path = tmp_path / "kubeconfig"
    path.write_bytes(text)
    broken = KubernetesLauncher(image="sweeps:1", kubeconfig=str(path))
    with pytest.raises(KubernetesConnectionError, match=f"^No connection to Kubernetes: .*{words}"):
        broken.settings(RunnerSettings(trainable="a:b"))


def test_a_kubeconfig_without_a_server_is_named(launcher):
    with pytest.raises(
        KubernetesConnectionError, match=r"^A kubeconfig without a server cannot be"
    ):
        launcher("").settings(RunnerSettings(trainable="a:b"))


@pytest.mark.parametrize(
    ("status", "details"),
    [
        ("403 Forbidden", {"kind": "pods", "name": "tune-restore-check"}),  # a quota is used up
        ("422 Invalid", {"kind": "Pod", "name": "tune-restore-check"}),
    ],
)
def test_a_cluster_that_examined_a_pod_can_be_used_and_none_is_created(launcher, status, details):
    head = answered(launcher, status, **details)
    assert head.startswith("POST /api/v1/namespaces/sweeps/pods?dryRun=All ")
