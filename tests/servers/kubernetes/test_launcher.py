"""The launcher of the shell: attempts in pods through the real Kubernetes client, without Airflow's."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
import yaml

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KubernetesConnectionError,
    RunnerError,
)
from airflow_tune_restore.launch.base import RunState, follow
from airflow_tune_restore.launch.kubernetes import run as module
from airflow_tune_restore.launch.kubernetes.api import Patience
from airflow_tune_restore.launch.kubernetes.launcher import KubernetesLauncher
from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.start import read_plan
from tests.support.kubernetes.api import IMAGE, NAMESPACE, base
from tests.support.kubernetes.stand_in import SCRIPT
from tests.support.waiting import eventually

GIB = 1024**3


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "LOG_SECONDS", 1.0)


@pytest.fixture
def launcher(trial, api, tmp_path):
    """Makes launchers whose pods run the stand-in of a runner."""

    def make(python=str(SCRIPT), **more):
        env = {"STAND_IN_GATE": str(trial.gate), "STAND_IN_OUTCOME": trial._outcome()}
        given = {"image": IMAGE, "namespace": NAMESPACE, "env": env}
        given["kubeconfig"] = api.kubeconfig(tmp_path / "shell.json")
        given["options"] = PodSpecOptions(python=python)
        return KubernetesLauncher(**{**given, **more})

    return make


@pytest.fixture
def claim(trial):
    """Claims the next attempt with the settings of a launcher."""

    def make(launcher):
        plan = read_plan(trial.store, trial.restore_id)
        settings = launcher.settings(RunnerSettings(trainable="tests.trainables:counting"))
        trial_id = trial.item["trial_id"]
        return claim_next_attempt(trial.store, plan, trial_id, settings, log=lambda *_: None)

    return make


def outcome_of(trial, request):
    return AttemptRecords.of(trial.store, request).outcome(request.attempt)


def test_an_attempt_runs_to_its_end_and_its_log_is_shown_once(trial, api, launcher, claim):
    request = claim(launcher())
    run = launcher().start(request)
    threading.Timer(1.5, trial.open).start()
    shown = []
    end = follow(run, shown.append)
    assert shown == ["attempt 1 is at work", "attempt 1 ends"]
    assert end.exit_code == 0
    assert outcome_of(trial, request).result == Result.FINISHED
    api.wait_for(lambda pods: not pods)


def test_the_pod_is_as_the_operators_is(trial, api, launcher, claim):
    trial.open()
    request = claim(launcher())
    follow(launcher().start(request), print)
    (of_shell,) = api.created
    api.created.clear()
    trial.store.delete(
        layout.outcome_key(request.restore_id, request.trial_id, 1)
    )  # the operator then runs the attempt after it
    trial.run()
    (of_operator,) = api.created
    for name in ("restartPolicy", "terminationGracePeriodSeconds", "volumes"):
        assert of_shell["spec"][name] == of_operator["spec"][name]
    ours, theirs = base(of_shell), base(of_operator)
    for name in ("name", "image", "resources", "volumeMounts", "terminationMessagePolicy"):
        assert ours[name] == theirs[name]
    assert ours["command"] == theirs["command"]
    assert ours["args"] == [part.replace("000002", "000001") for part in theirs["args"]]
    for kind in ("labels", "annotations"):
        own = {**of_shell["metadata"][kind]}
        own.pop("tune-restore/attempt", None)
        assert own.items() <= of_operator["metadata"][kind].items()


def test_stop_returns_when_the_snapshot_is_saved_and_the_follower_ends(trial, api, launcher, claim):
    request = claim(launcher())
    run = launcher().start(request)
    assert run.stop_command == launcher().stop_command(request)
    ended = []
    follower = threading.Thread(target=lambda: ended.append(follow(run, print)), daemon=True)
    follower.start()
    trial.await_work()
    run.stop()
    assert outcome_of(trial, request).result == Result.INTERRUPTED
    follower.join(20)
    assert len(ended) == 1
    assert eventually(lambda: api.pod_names() == [])


def test_a_second_process_attaches_by_start_or_by_find(trial, api, launcher, claim):
    request = claim(launcher())
    assert launcher().find(request) is None
    launcher().start(request)
    trial.await_work()
    runs = [launcher().start(request), launcher().find(request)]
    assert len(api.created) == 1
    trial.open()
    shown = []
    for run in runs[:1]:
        assert follow(run, shown.append).exit_code == 0
    assert shown == ["attempt 1 is at work", "attempt 1 ends"]
    # the pod is gone for the other one: its end is not known
    assert follow(runs[1], shown.append).exit_code is None


TEMPLATE = {
    "kind": "Pod",
    "metadata": {"namespace": NAMESPACE, "labels": {"team": "vision"}},
    "spec": {
        "serviceAccountName": "runner",
        "terminationGracePeriodSeconds": 7,
        "containers": [
            {"name": "proxy", "image": IMAGE, "command": ["true"]},
            {
                "name": "base",
                "image": IMAGE,
                "env": [{"name": "MODE", "value": "night"}],
                "resources": {"limits": {"memory": "4Gi"}},
            },
        ],
    },
}


@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps])
def test_a_template_gives_the_rest_of_the_pod(trial, api, launcher, claim, tmp_path, write):
    path = tmp_path / "pod.txt"
    path.write_text(write(TEMPLATE))
    from_template = launcher(pod_template=path, image=None, namespace=None)
    settings = from_template.settings(RunnerSettings(trainable="x"))
    assert settings.sized
    assert settings.can_grow
    assert settings.memory == 4 * GIB - GIB - PodSpecOptions().object_store_bytes
    trial.open()
    request = claim(from_template)
    follow(from_template.start(request), print)
    assert outcome_of(trial, request).result == Result.FINISHED
    (pod,) = api.created
    assert pod["metadata"]["labels"]["team"] == "vision"
    assert pod["metadata"]["labels"]["tune-restore/attempt"] == "1"
    assert pod["spec"]["serviceAccountName"] == "runner"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 7
    proxy, runner = pod["spec"]["containers"]
    assert proxy["command"] == ["true"]
    assert runner["env"][0] == {"name": "MODE", "value": "night"}
    assert runner["resources"]["limits"]["memory"] == "4Gi"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spec: [", "is not a pod"),
        ("[]", "its kind is not Pod"),
        ("kind: Job", "its kind is not Pod"),
        ("spec: {containers: []}", "it has no containers"),
        ("spec: {containers: [{image: x}]}", "container 1 has no name"),
        ("spec: 7", "it has no containers"),
        (None, "No such file or directory"),
    ],
)
def test_a_template_that_is_not_a_pod_is_refused_before_anything_is_claimed(
    trial, launcher, claim, tmp_path, text, words
):
    path = tmp_path / "pod.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        claim(launcher(pod_template=path))
    assert AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).numbers() == []


def test_without_an_image_nothing_is_claimed(launcher, claim):
    with pytest.raises(InvalidInputError, match="No image is given"):
        claim(launcher(image=None))


def test_without_a_valid_kubeconfig_nothing_is_claimed(launcher, claim):
    with pytest.raises(KubernetesConnectionError, match="No connection to Kubernetes"):
        claim(launcher(kubeconfig="/nope/config"))
    with pytest.raises(KubernetesConnectionError, match="nowhere"):
        claim(launcher(context="nowhere"))


def test_an_image_that_cannot_be_pulled_is_named_and_its_pod_deleted(
    trial, api, launcher, claim, caplog
):
    wrong = launcher(image="registry.example.com/typo:1")
    run = wrong.start(claim(wrong))
    with pytest.raises(RunnerError, match=r"registry.example.com/typo:1 cannot be pulled") as error:
        follow(run, print)
    assert "failed to resolve reference" in str(error.value)
    assert "It was deleted" in str(error.value)
    assert "has not started: Image registry.example.com/typo:1" in caplog.text
    assert eventually(lambda: api.pod_names() == [])


def test_a_node_that_is_missing_is_logged_and_the_pod_given_up(
    trial, api, launcher, claim, caplog, monkeypatch
):
    later = [0.0]
    clock = SimpleNamespace(sleep=time.sleep, monotonic=lambda: time.monotonic() + later[0])
    monkeypatch.setattr(module, "time", clock)
    api.kubelet.has_room = False
    patient = launcher(start_seconds=3600.0)
    run = patient.start(claim(patient))
    assert run.poll() is RunState.WAITING
    later[0] = 3600.0
    with pytest.raises(RunnerError, match="did not start: 0/1 nodes are available"):
        follow(run, print)
    assert caplog.text.count("has not started: 0/1 nodes are available") == 1
    assert eventually(lambda: api.pod_names() == [])


def test_an_interpreter_that_is_not_in_the_image_is_named(api, launcher, claim):
    wrong = launcher(python="no-such-python")
    run = wrong.start(claim(wrong))
    with pytest.raises(InvalidInputError, match='exec: "no-such-python": executable file not'):
        follow(run, print)
    api.wait_for(lambda pods: not pods)


def test_an_image_without_this_package_is_refused(api, launcher, claim, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho $0: No module named airflow_tune_restore >&2; exit 1\n")
    python.chmod(0o755)
    wrong = launcher(python=str(python))
    with pytest.raises(InvalidInputError, match="does not have this package"):
        follow(wrong.start(claim(wrong)), print)


def test_a_role_that_does_not_allow_to_create_pods_is_named(api, launcher, claim, monkeypatch):
    from airflow_tune_restore.launch.kubernetes import named_pods

    monkeypatch.setattr(named_pods, "REFUSAL_SECONDS", 0.3)
    request = claim(launcher())
    api.rules -= {("create", "pods")}
    with pytest.raises(RunnerError, match='cannot create resource "pods"'):
        launcher().start(request)
    with pytest.raises(KubernetesConnectionError, match='cannot create resource "pods"'):
        claim(launcher())


def test_a_namespace_that_does_not_exist_is_named(api, launcher, claim):
    request = claim(launcher())
    api.fail(
        404,
        "^POST",
        body=json.dumps(
            {
                "kind": "Status",
                "reason": "NotFound",
                "message": 'namespaces "typo" not found',
                "details": {"name": "typo", "kind": "namespaces"},
            }
        ),
    )
    with pytest.raises(RunnerError, match=r'namespaces "typo" not found. Nothing ran'):
        launcher().start(request)


def test_a_pod_that_is_not_valid_is_not_sent_again(api, launcher, claim, tmp_path):
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump({**TEMPLATE, "metadata": {"labels": {"a": "not a label!"}}}))
    wrong = launcher(pod_template=path)
    with pytest.raises(InvalidInputError, match="422"):
        wrong.start(claim(wrong))
    sent = [path for path, _ in api.requests if path.startswith("POST")]
    assert len([path for path in sent if "dryRun" not in path]) == 1


def test_a_pod_that_was_evicted_is_reported_in_kubernetes_words(trial, api, launcher, claim):
    run = launcher().start(claim(launcher()))
    name = trial.await_work()
    api.kubelet.evict(name)
    end = follow(run, print)
    assert "evicted" in end.message.splitlines()[-1]


def test_an_outage_is_waited_for_and_one_that_lasts_leaves_the_pod_alone(
    trial, api, launcher, claim, monkeypatch
):
    run = launcher().start(claim(launcher()))
    trial.await_work()
    fault = api.fail(500)
    threading.Timer(1.0, lambda: setattr(fault, "left", 0)).start()
    assert run.poll() is RunState.RUNNING
    assert fault.hits
    monkeypatch.setitem(Patience.__init__.__kwdefaults__, "seconds", 0.3)
    api.fail(500)
    with pytest.raises(RunnerError, match="cannot be followed: The Kubernetes API answers 500"):
        run.poll()
    api.faults.clear()
    assert len(api.pod_names()) == 1


def test_of_a_chatty_log_every_line_is_shown_once(trial, api, launcher, claim, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nfor n in $(seq 60); do echo line $n; sleep 0.03; done\n")
    python.chmod(0o755)
    chatty = launcher(python=str(python))
    shown = []
    follow(chatty.start(claim(chatty)), shown.append)
    assert shown == [f"line {n}" for n in range(1, 61)]


def test_a_log_that_cannot_be_read_for_a_moment_is_read_later(trial, api, launcher, claim, caplog):
    api.fail(500, "/log", left=3)
    run = launcher().start(claim(launcher()))
    threading.Timer(1.5, trial.open).start()
    shown = []
    follow(run, shown.append)
    assert shown == ["attempt 1 is at work", "attempt 1 ends"]
    assert caplog.text.count("The log cannot be read just now") == 1


def test_new_credentials_are_read_after_a_401(trial, api, launcher, claim, tmp_path):
    made = launcher()
    run = made.start(claim(made))
    trial.await_work()
    api.token = "another-token"
    api.kubeconfig(tmp_path / "shell.json", token="another-token")
    trial.open()
    assert follow(run, print).exit_code == 0
