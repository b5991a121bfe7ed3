"""The one pod of coupled trials: what must not stop a trial, and what must not go on for ever."""

import json
import threading
import time
from pathlib import Path

import pytest

from airflow_tune_restore.launch.kubernetes.api import Patience
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore import follow
from airflow_tune_restore.version_compat import AirflowException, AirflowFailException


@pytest.fixture
def whole(new_trial, monkeypatch):
    """A trial that is coupled with others, and followers that soon take a silent run for dead."""
    for name, seconds in (("START_SECONDS", 1.0), ("QUIET_SECONDS", 1.0), ("POLL_SECONDS", 0.1)):
        monkeypatch.setattr(follow, name, seconds)
    return new_trial("whole", strategy="whole_experiment")


def test_an_api_server_that_does_not_answer_stops_no_trial(whole, api, monkeypatch):
    monkeypatch.setitem(Patience.__init__.__kwdefaults__, "seconds", 0.5)
    api.kubelet.has_room = False
    task = whole.start()
    api.wait_for(lambda pods: pods)
    api.fail(503)
    with pytest.raises(
        AirflowException, match="The Kubernetes API does not answer as it should: 503"
    ):
        task.end()
    assert not list(Path(whole.store.uri).rglob("stops/*"))
    assert len(api.pod_names()) == 1


def test_a_command_that_is_not_in_the_image_fails_for_good(whole, api):
    task = whole.start(python="no-such-python")
    with pytest.raises(AirflowFailException, match='exec: "no-such-python"'):
        task.end()
    assert len(api.created) == 1


def test_a_pod_that_is_wrong_fails_for_good(whole, api):
    with pytest.raises(AirflowFailException, match=r"All trials of .*could not be created: 422"):
        whole.start(labels={"a": "not a label!"}).end()


def test_an_image_that_cannot_be_pulled_fails_the_task(whole, api):
    task = whole.start(image="registry.example.com/typo:1")
    with pytest.raises(AirflowException, match="typo:1 cannot be pulled"):
        task.end()
    api.wait_for(lambda pods: not pods)


def test_a_pod_that_waits_for_a_node_has_its_own_time_to_start(whole, api):
    task = whole.start(startup_timeout_seconds=6)
    whole.await_work()
    is_over = threading.Event()
    threading.Thread(target=lambda: beat(whole, is_over), daemon=True).start()
    time.sleep(5)
    api.kubelet.has_room = False
    is_over.set()
    api.kubelet.preempt(api.pod_names()[0])
    api.wait_for(lambda pods: any(pod["metadata"]["name"].endswith("-2") for pod in pods))
    begun = time.monotonic()
    with pytest.raises(AirflowException, match="did not start: 0/1 nodes are available"):
        task.end()
    assert time.monotonic() - begun > 5


def beat(whole, is_over: threading.Event) -> None:
    """Show signs of life in the place of the run, until it is over."""
    key = layout.heartbeat_key(whole.restore_id, layout.WHOLE_EXPERIMENT, 1)
    count = 1
    while not is_over.wait(0.2):
        count += 1
        whole.store.put(key, json.dumps({"count": count, "pid": 1, "at": ""}).encode())


def test_runs_that_run_out_of_memory_in_a_row_come_to_an_end(whole, api, monkeypatch):
    task = whole.start()
    for attempt in (1, 2, 3):
        api.kubelet.oom_kill(whole.await_work(attempt))
    with pytest.raises(AirflowException, match="3 pods in a row ran out of memory"):
        task.end()
    # with more of it the next try goes on
    again = whole.start()
    whole.await_work(4)
    leave(again, monkeypatch)


def test_a_command_that_was_mended_is_tried_though_its_pod_was_kept(whole, api, monkeypatch):
    with pytest.raises(AirflowFailException):
        whole.start(python="no-such-python", on_finish_action="keep_pod").end()
    again = whole.start(on_finish_action="keep_pod")
    whole.await_work(2)
    leave(again, monkeypatch)


def leave(task, monkeypatch) -> None:
    """End a task that follows a run, and leave the run alone."""

    def is_over(_follower, _stopped):
        raise RuntimeError("the test is over")

    monkeypatch.setattr(follow.Follower, "_look", is_over)
    with pytest.raises(RuntimeError):
        task.end()
