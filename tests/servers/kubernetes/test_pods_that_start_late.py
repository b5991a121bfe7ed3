"""Pods that start while a task gives them up, and names that are used again."""

import asyncio
import json
import threading
import time

import pytest
from airflow.sdk.module_loading import import_string

from airflow_tune_restore.launch.kubernetes.api import Patience
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.restore import follow as following
from airflow_tune_restore.triggers import runner_pod
from airflow_tune_restore.version_compat import AirflowException
from tests.support.airflow.names import TaskDeferred
from tests.support.kubernetes.api import NAMESPACE
from tests.support.kubernetes.pods import pod_context
from tests.support.kubernetes.stand_in import BOTH

SOON = {"startup_timeout_seconds": 1, "schedule_timeout_seconds": 1}


@BOTH
@pytest.mark.parametrize("at", ["GET .*/pods/", "DELETE"])
def test_a_pod_that_starts_while_it_is_given_up_goes_on(trial, api, deferred, at):
    api.kubelet.has_room = False

    def start_in_an_outage() -> None:
        api.wait_for(lambda pods: pods)
        time.sleep(0.8)
        fault = api.fail(503, at)
        while not fault.hits:
            time.sleep(0.02)
        api.kubelet.has_room = True
        trial.await_work()
        fault.until = 0
        time.sleep(0.5)
        trial.open()

    threading.Thread(target=start_in_an_outage, daemon=True).start()
    try:
        trial.restore(deferred=deferred, **SOON)
    except AirflowException as error:
        assert "It continues; a retry attaches to it" in str(error)  # noqa: PT017
    assert trial.restore(deferred=deferred)["attempt"] == 1
    assert len(api.created) == 1


def test_two_tasks_of_coupled_trials_that_start_at_the_same_moment_share_a_pod(
    new_trial, api, monkeypatch
):
    whole = new_trial("whole", strategy="whole_experiment")
    is_claimed = threading.Event()
    first: list[int] = []

    class Stale(AttemptRecords):
        def newest(self):  # the second lists before the first has claimed, and looks after that
            found = super().newest()
            if self.unit == WHOLE_EXPERIMENT:
                first.append(threading.get_ident())
                if found == 0 and threading.get_ident() != first[0]:
                    is_claimed.wait()
            return found

    monkeypatch.setattr(following, "AttemptRecords", Stale)
    tasks = [whole.start(), whole.start()]
    whole.await_work()
    is_claimed.set()
    time.sleep(1)
    assert all(task.is_alive() for task in tasks)
    assert len(api.created) == 1

    def is_over(_follower, _stopped):
        raise RuntimeError("the test is over")

    monkeypatch.setattr(following.Follower, "_look", is_over)
    for task in tasks:
        with pytest.raises(RuntimeError):
            task.end()


@pytest.mark.parametrize(
    "more", [{"image": "registry.example.com/typo:1"}, SOON], ids=["image", "node"]
)
def test_a_deferred_task_without_live_logs_gives_up_a_pod_that_does_not_start(trial, api, more):
    api.kubelet.has_room = "image" in more
    with pytest.raises(AirflowException, match="did not start"):
        trial.restore(deferred=True, logging_interval=None, **more)
    api.wait_for(lambda pods: not pods)


def test_an_event_of_an_earlier_pod_of_the_name_is_not_believed(trial, api):
    api.kubelet.has_room = False
    with pytest.raises(AirflowException):
        trial.restore(deferred=False, **SOON)
    first = api.created[0]
    api.report(first, "Preempted", "Preempted by pod 42")
    api.kubelet.has_room = True
    threading.Thread(
        target=lambda: api.delete(NAMESPACE, trial.await_work(), 0), daemon=True
    ).start()
    with pytest.raises(AirflowException, match=r"was lost \(killed\)"):
        trial.restore(deferred=False)


def test_an_answer_to_a_creation_that_was_lost_is_not_called_nothing(trial, api, monkeypatch):
    monkeypatch.setitem(Patience.__init__.__kwdefaults__, "seconds", 0.5)
    api.fail(503, "POST", after=True, left=1)
    fault = api.fail(503, "GET")
    with pytest.raises(AirflowException, match="retry attaches to it"):
        trial.run()
    fault.until = 0
    trial.open()
    assert trial.run()["attempt"] == 1
    assert len(api.created) == 1


def test_a_kill_before_the_first_event_deletes_the_pod(trial, api, monkeypatch):
    monkeypatch.setattr(runner_pod, "FIRST_EVENT_SECONDS", 30.0)
    with pytest.raises(TaskDeferred) as deferred:
        trial.operator(deferrable=True, image="registry.example.com/typo:1").execute(pod_context())
    path, arguments = deferred.value.trigger.serialize()

    async def kill() -> None:
        trigger = import_string(path)(**arguments)
        running = asyncio.ensure_future(anext(trigger.run()))
        await asyncio.sleep(2)
        running.cancel()
        await trigger.on_kill()

    asyncio.run(kill())
    api.wait_for(lambda pods: not pods)


def test_a_kubeconfig_that_is_half_written_may_be_tried_again(trial, api, tmp_path):
    path = tmp_path / "kubeconfig.json"
    whole = path.read_text()
    path.write_text(whole[:40])
    with pytest.raises(AirflowException, match="cannot be used") as error:
        trial.run()
    assert type(error.value) is AirflowException
    path.write_text(whole)
    trial.open()
    assert trial.run()["attempt"] == 1


def test_admission_that_is_not_ready_is_waited_for(trial, api):
    name = "tune-x"
    said = f'pods "{name}" is forbidden: not yet ready to handle request'
    status = {"kind": "Status", "reason": "Forbidden", "message": said, "code": 403}
    api.fail(
        403, "POST", body=json.dumps({**status, "details": {"name": name, "kind": "pods"}}), left=2
    )
    trial.open()
    assert trial.run()["attempt"] == 1
    assert AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).numbers() == [1]
