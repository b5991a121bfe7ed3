"""Tries, kills and clean-ups that meet at one pod: what one of them has seen or done, the others know."""

import asyncio
import json
import threading
import time
from datetime import timedelta

import pytest
from airflow.sdk.module_loading import import_string
from kubernetes.client import models

from airflow_tune_restore.hooks.pods import PatientPodManager
from airflow_tune_restore.launch.kubernetes.pod_exit import PodWatch
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.layout import SHARED_DRIVER
from airflow_tune_restore.restore.plan import read_part
from airflow_tune_restore.version_compat import AirflowException, AirflowTaskTimeout
from tests.support.airflow.names import TaskDeferred
from tests.support.experiments.built import make_experiment, make_row
from tests.support.kubernetes.api import NAMESPACE, base
from tests.support.kubernetes.pods import pod_context
from tests.support.kubernetes.stand_in import BOTH, SCRIPT, StandInTrial, follow
from tests.support.waiting import eventually

MEMORY = models.V1ResourceRequirements(limits={"memory": "6Gi"})


@BOTH
def test_an_end_that_was_seen_counts_though_the_pod_is_gone_at_the_next_look(
    trial, api, monkeypatch, deferred
):
    look = PodWatch.look

    def look_once(watch, pod):
        end = look(watch, pod)
        if end is not None:  # a node that is scaled down takes its pods along
            api.pods.pop((NAMESPACE, pod["metadata"]["name"]), None)
        return end

    monkeypatch.setattr(PodWatch, "look", look_once)
    threading.Thread(target=lambda: api.kubelet.oom_kill(trial.await_work()), daemon=True).start()
    with pytest.raises(AirflowException, match="OOMKilled"):
        trial.restore(deferred=deferred, container_resources=MEMORY)
    assert [failure.cause for failure in trial.failures] == ["out_of_memory"]


def test_three_tries_that_lose_one_pod_agree_on_how(trial, api):
    api.kubelet.delay_seconds = 0.5
    tasks = [trial.start(container_resources=MEMORY) for _ in range(3)]
    api.kubelet.oom_kill(trial.await_work())
    eventually(lambda: trial.failures)
    trial.open()  # one that comes late starts the next attempt, which may end
    for task in tasks:
        task.join()
        assert task.result is not None or "OOMKilled" in str(task.error)
    assert [failure.cause for failure in trial.failures] == ["out_of_memory"]


def test_three_tries_whose_pod_was_too_small_share_the_larger_one(trial, api):
    api.kubelet.delay_seconds = 0.5
    env = {"STAND_IN_OUTCOME": too_small(trial), "STAND_IN_RESULT": "interrupted"}
    tasks = [trial.start(env=env) for _ in range(3)]
    trial.open()
    for task in tasks:
        with pytest.raises(AirflowException):  # it asks for the same again
            task.end()
    assert AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).numbers() == [1, 2]
    assert [base(pod)["resources"]["limits"]["cpu"] for pod in api.created] == ["2", "3"]


def too_small(trial) -> str:
    """Return an outcome that asks for more."""
    outcome = json.loads(trial._outcome().replace('"RESULT"', '"interrupted"'))
    outcome |= {"resources": {"CPU": 3.0}, "cause": "", "error": "its place was made for less"}
    return json.dumps(outcome).replace('"result": "interrupted"', '"result": "RESULT"')


@BOTH
@pytest.mark.parametrize("action", ["keep_pod", "delete_succeeded_pod"])
def test_a_pod_that_did_not_start_is_deleted_though_pods_are_kept(trial, api, deferred, action):
    with pytest.raises(AirflowException, match="cannot be pulled"):
        trial.restore(
            deferred=deferred, image="registry.example.com/typo:1", on_finish_action=action
        )
    api.wait_for(lambda pods: not pods)
    trial.open()  # and the image is the right one now
    assert trial.restore(deferred=deferred, on_finish_action=action)["attempt"] == 1


@BOTH
def test_a_deletion_that_something_else_answered_is_asked_for_again(trial, api, deferred):
    api.fail(200, "DELETE", body="<html>Welcome</html>", left=2)
    if deferred:
        with pytest.raises(TaskDeferred) as error:
            trial.operator(deferrable=True).execute(pod_context())
        trial.await_work()
        path, arguments = error.value.trigger.serialize()
        asyncio.run(import_string(path)(**arguments).on_kill())
    else:
        task = trial.start()
        trial.await_work()
        task.operator.on_kill()
    api.wait_for(lambda pods: not pods)


@pytest.mark.parametrize("action", ["delete_pod", "keep_pod"])
@pytest.mark.parametrize("is_outage", [False, True], ids=["answers", "out of order"])
def test_a_task_whose_time_is_over_deletes_its_pod(trial, api, monkeypatch, action, is_outage):
    def time_is_over(*_arguments, **_options):  # stands for Airflow's signal
        trial.await_work()
        if is_outage:
            fault = api.fail(503)
            threading.Timer(1.0, lambda: setattr(fault, "until", 0)).start()
        raise AirflowTaskTimeout

    monkeypatch.setattr(PatientPodManager, "read_pod_logs", time_is_over)
    with pytest.raises(AirflowTaskTimeout):
        trial.run(on_finish_action=action)
    api.wait_for(lambda pods: not pods)


@pytest.mark.parametrize("is_outage", [False, True], ids=["answers", "out of order"])
def test_a_deferred_task_whose_time_is_over_deletes_its_pod(trial, api, is_outage):
    more = {"deferrable": True, "poll_interval": 0.05, "execution_timeout": timedelta(seconds=3)}
    with pytest.raises(TaskDeferred) as deferred:
        trial.operator(**more).execute(pod_context())
    trial.await_work()
    if is_outage:
        api.fail(503)
    event = follow(deferred.value)
    api.faults.clear()
    with pytest.raises(AirflowException, match=r"was given up: .*execution_timeout"):
        trial.operator(**more).trigger_reentry(pod_context(), event)
    api.wait_for(lambda pods: not pods)


def test_a_webhook_that_denies_a_pod_is_believed_at_once(trial, api):
    said = 'admission webhook "validate.example.com" denied the request: add the label team'
    api.fail(403, "POST", body=json.dumps({"kind": "Status", "message": said, "code": 403}), left=1)
    with pytest.raises(AirflowException, match="add the label team"):
        trial.run()
    trial.open()
    assert trial.run()["attempt"] == 1


@pytest.mark.parametrize("how", ["oom_kill", "evict"])
def test_a_runner_that_complains_of_a_missing_plugin_did_run(trial, api, tmp_path, how):
    python = tmp_path / "python"
    said = "WARNING no plugin: No module named 'airflow_tune_restore.extras'"
    lines = ["#!/bin/sh", f'echo "{said}"', f'exec {SCRIPT} "$@"', ""]
    python.write_text("\n".join(lines))
    python.chmod(0o755)
    task = trial.start(python=str(python))
    getattr(api.kubelet, how)(trial.await_work())
    with pytest.raises(AirflowException, match="was lost"):
        task.end()
    causes = {"oom_kill": "out_of_memory", "evict": "node_lost"}
    assert [failure.cause for failure in trial.failures] == [causes[how]]


def test_a_retry_deletes_the_pod_of_a_trial_that_finished_while_its_worker_was_dead(trial, api):
    trial.abandon()
    trial.await_work()
    trial.open()
    api.wait_for(lambda pods: pods[0]["status"]["phase"] == "Succeeded")
    assert trial.run()["attempt"] == 1
    api.wait_for(lambda pods: not pods)


def test_a_server_that_sends_any_retry_after_is_asked_again_soon(trial, api):
    api.retry_after = "3600"
    api.fail(503, "GET", left=3)
    threading.Timer(1.0, trial.open).start()
    begun = time.monotonic()
    assert trial.run()["attempt"] == 1
    assert time.monotonic() - begun < 60


def test_trials_that_may_share_a_driver_have_a_pod_each(api, tmp_path):
    rows = [make_row(name, status="ERROR") for name in ("a1", "a2")]
    experiment = make_experiment(tmp_path / "sweeps" / "short", rows)
    trial = StandInTrial(api, experiment, strategy="shared_driver")
    assert read_part(trial.store, trial.restore_id, trial.item["trial_id"]).to_run[0].shares_driver
    trial.open()
    assert trial.restore(deferred=False)["attempt"] == 1
    records = AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"])
    assert not records.request(1).is_shared
    assert AttemptRecords(trial.store, trial.restore_id, SHARED_DRIVER).numbers() == []
    assert len(api.created) == 1
