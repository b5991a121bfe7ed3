"""What may become of requests while a pod runs: restarts, outages, tokens, logs, tries beside each other.

More of it: test_any_answer.py.
"""

import asyncio
import threading
import time

import pytest
from airflow.sdk.module_loading import import_string

from airflow_tune_restore.launch.kubernetes.api import Patience
from airflow_tune_restore.version_compat import AirflowException
from tests.support.airflow.names import TaskDeferred
from tests.support.kubernetes.api import TOKEN, Fault
from tests.support.kubernetes.pods import pod_context
from tests.support.kubernetes.stand_in import BOTH
from tests.support.waiting import eventually


@BOTH
@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_a_restart_of_the_api_server_while_a_pod_runs_costs_nothing(
    trial, api, deferred, seconds, capfd
):
    faults: list[Fault] = []

    def restart() -> None:
        trial.await_work()
        faults.extend(api.restart(seconds))
        eventually(lambda: all(fault.is_over for fault in faults))
        time.sleep(0.5)
        trial.open()

    threading.Thread(target=restart, daemon=True).start()
    result = trial.restore(deferred=deferred)
    assert (result["status"], result["attempt"]) == ("TERMINATED", 1)
    assert all(fault.hits for fault in faults[:3])
    assert len(api.created) == 1
    assert "attempt 1 ends" in capfd.readouterr().out


@BOTH
def test_a_restart_while_a_retry_looks_for_its_pod_costs_nothing(trial, api, deferred):
    trial.abandon()
    name = trial.await_work()
    api.restart(0.4)
    threading.Timer(2.5, trial.open).start()
    assert trial.restore(deferred=deferred)["attempt"] == 1
    assert [pod["metadata"]["name"] for pod in api.created] == [name]


@BOTH
def test_an_outage_that_outlasts_all_patience_leaves_the_pod_alone(
    trial, api, monkeypatch, capfd, deferred
):
    monkeypatch.setitem(Patience.__init__.__kwdefaults__, "seconds", 0.5)
    faults: list[Fault] = []

    def forbid() -> None:
        trial.await_work()
        faults.append(api.fail(403))
        api.drop_streams()

    threading.Thread(target=forbid, daemon=True).start()
    with pytest.raises(AirflowException, match=r"403 Forbidden: .*cannot get resource") as error:
        trial.restore(deferred=deferred)
    assert "It continues; a retry attaches to it" in str(error.value)
    assert "Unexpected error while waiting" not in capfd.readouterr().out
    api.faults.clear()
    monkeypatch.undo()
    trial.open()
    assert trial.restore(deferred=deferred)["attempt"] == 1
    assert len(api.created) == 1


@BOTH
def test_credentials_that_have_run_out_are_loaded_anew(trial, api, tmp_path, deferred):
    """A kubeconfig whose token is replaced while a pod is followed, as those of clouds are each hour."""

    def replace_token() -> None:
        trial.await_work()
        api.token = "the-next-token"
        api.drop_streams()
        time.sleep(0.5)
        api.kubeconfig(tmp_path / "kubeconfig.json", api.token)
        time.sleep(0.5)
        trial.open()

    assert api.token == TOKEN
    threading.Thread(target=replace_token, daemon=True).start()
    assert trial.restore(deferred=deferred)["status"] == "TERMINATED"
    assert any(status == 401 for _, status in api.requests)


@BOTH
def test_a_log_that_cannot_be_read_ends_nothing_and_is_shown_when_it_can(
    trial, api, capfd, caplog, deferred
):
    api.kubelet.shows_logs = False

    def come_back() -> None:
        trial.await_work()
        eventually(log_was_refused)
        time.sleep(0.5)  # it may be asked for again, and says so once
        api.kubelet.shows_logs = True
        time.sleep(1.5)
        trial.open()

    def log_was_refused() -> bool:
        return any("/log" in asked and status == 500 for asked, status in list(api.requests))

    threading.Thread(target=come_back, daemon=True).start()
    assert trial.restore(deferred=deferred)["status"] == "TERMINATED"
    log = capfd.readouterr().out
    # a trigger's log is in one of them, or in both if an earlier test has set up Airflow's logging
    shown = (log, caplog.text if deferred else "")
    assert max(text.count("The log cannot be read just now") for text in shown) == 1
    assert "no route to host" in "".join(shown)
    assert "attempt 1 is at work" in log
    assert "attempt 1 ends" in log


@BOTH
def test_a_log_that_can_never_be_read_ends_nothing(trial, api, capfd, deferred):
    api.kubelet.shows_logs = False
    threading.Timer(2.0, trial.open).start()
    assert trial.restore(deferred=deferred)["status"] == "TERMINATED"
    log = capfd.readouterr().out
    assert "attempt 1 is at work" not in log


def test_a_task_that_is_killed_while_the_api_server_restarts_deletes_its_pod(trial, api):
    task = trial.start()
    trial.await_work()
    api.restart(0.3)
    task.operator.on_kill()
    with pytest.raises(AirflowException):
        task.end()
    api.wait_for(lambda pods: not pods)


def test_a_deferred_task_that_is_killed_while_the_api_server_restarts_deletes_its_pod(trial, api):
    with pytest.raises(TaskDeferred) as deferred:
        trial.operator(deferrable=True).execute(pod_context())
    trial.await_work()
    path, arguments = deferred.value.trigger.serialize()
    api.restart(0.3)
    asyncio.run(import_string(path)(**arguments).on_kill())  # as the triggerer does
    api.wait_for(lambda pods: not pods)


def test_three_first_tries_at_the_same_instant_make_one_pod(trial, api):
    api.kubelet.delay_seconds = 1.0
    tasks = [trial.start() for _ in range(3)]
    trial.open()
    assert [task.end()["attempt"] for task in tasks] == [1, 1, 1]
    assert len(api.created) == 1
    assert trial.failures == ()


def test_a_try_that_another_try_overtook_fails_with_that_reason(trial, api):
    task = trial.start(env={"STAND_IN_RESULT": "none", "STAND_IN_EXIT": "3"})
    trial.await_work()
    newer = trial.operator()
    newer.claim(newer.open_task())
    trial.open()  # a runner that sees a newer attempt ends with 3
    with pytest.raises(
        AirflowException, match=r"Another try of this task runs trial .* as attempt 2"
    ):
        task.end()
    assert trial.failures == ()
