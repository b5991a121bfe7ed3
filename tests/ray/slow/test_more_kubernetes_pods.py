"""More of ../test_kubernetes_pods.py: what Kubernetes does to pods, triggerers, runs of all trials."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from airflow.sdk.module_loading import import_string

from airflow_tune_restore.exceptions import PodLostError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.launch.kubernetes.attempt_pod import NewestAttempt
from airflow_tune_restore.launch.kubernetes.pod_spec import pod_name
from airflow_tune_restore.operators.kubernetes.continue_search import (
    ContinueSearchKubernetesOperator,
)
from airflow_tune_restore.operators.retry_policy import SHORT_DELAY, TrialRetryPolicy
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowException, AirflowFailException
from tests.support.airflow.names import TaskDeferred
from tests.support.experiments.failed import Gate
from tests.support.kubernetes import pods
from tests.support.kubernetes.api import base
from tests.support.kubernetes.pods import Trial

ASKING = "tests.support.experiments.asking"


def test_what_kubernetes_does_to_pods_is_told_apart_and_each_time_the_trial_goes_on(
    trial, api, gate, tmp_path
):
    later = Gate(tmp_path / "later-gate-is-open", before=6)
    more = {"env": later.env, "container_resources": _limits("6Gi")}

    def lose(attempt: int, how) -> PodLostError:
        task = trial.start(**{**more, "env": gate.env} if attempt == 1 else more)
        how(trial.await_iteration(4 if attempt == 1 else 5, attempt))
        with pytest.raises(AirflowException) as error:
            task.end()
        lost = package_error_behind(error.value)
        assert isinstance(lost, PodLostError), lost
        return lost

    lost = lose(1, lambda name: api.kubelet.evict(name, grace=60))
    assert "was evicted" in str(lost)
    assert "low on resource: ephemeral-storage" in str(lost)
    assert TrialRetryPolicy().evaluate(lost, 1, 5).retry_delay == SHORT_DELAY
    # it had time to save a snapshot, and was lost all the same
    outcome = AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).outcome(1)
    assert outcome.result == Result.INTERRUPTED

    # this one is gone at once: its event tells
    assert "was preempted" in str(lose(2, api.kubelet.preempt))
    assert "OOMKilled" in str(lose(3, api.kubelet.oom_kill))
    causes = ["node_lost", "node_lost", "out_of_memory"]
    assert [failure.cause for failure in trial.failures] == causes

    a_dead_worker_and_an_api_server_out_of_order_cost_no_attempt(trial, api, later, more)
    memory = [base(pod)["resources"]["limits"]["memory"] for pod in api.created]
    # twice what was left of 6 GiB for the trial, and Ray's share again
    assert memory == ["6Gi"] * 3 + [f"{2 * (6144 - 1224) + 1224}Mi"]
    assert trial.iterations() == [1, 2, 3, 4, 5, 6]
    assert api.pod_names() == []


def a_dead_worker_and_an_api_server_out_of_order_cost_no_attempt(trial, api, gate, more) -> None:
    # the worker that made the pod has died: nothing is left of it but the claim, and the pod
    conflict = api.fail(409, "POST", left=1)
    answer = api.fail(500, "POST", left=1, after=True)  # created, but nobody heard
    trial.abandon(**more)
    throttled = api.fail(429, "GET .*/log", left=1)
    task = trial.start(**more)
    trial.await_iteration(5, 4)
    outage = api.fail(500)
    api.drop_streams()
    api.wait_for(lambda _pods: outage.hits > 3)
    outage.until = 0
    gate.open()
    assert task.end()["attempt"] == 4
    assert (conflict.hits, answer.hits, throttled.hits) == (1, 1, 1)


def test_a_worker_that_the_kernel_kills_is_out_of_memory_and_the_next_pod_has_more(
    trial, api, gate
):
    limits = _limits("6144Mi")
    task = trial.start(env=gate.env, container_resources=limits)
    api.kubelet.oom_kill_worker(trial.await_iteration(4))
    # on a busy machine Ray may give up more than the worker: the cause stays the same
    with pytest.raises(AirflowException, match=r"\(out_of_memory\)(, in attempt 1)?: .*OOMKilled"):
        task.end()
    assert [failure.cause for failure in trial.failures] == ["out_of_memory"]
    gate.open()
    result = trial.run(container_resources=limits)
    assert (result["status"], result["iteration"], result["attempt"]) == ("TERMINATED", 6, 2)
    memory = [base(pod)["resources"]["limits"]["memory"] for pod in api.created]
    # twice what was left of 6 GiB for the trial, and Ray's share again
    assert memory == ["6144Mi", f"{2 * (6144 - 1224) + 1224}Mi"]
    assert trial.iterations() == [1, 2, 3, 4, 5, 6]


def test_a_deferred_task_is_followed_by_one_triggerer_after_another(trial, api, capfd, gate):
    operator = trial.operator(env=gate.env, deferrable=True, logging_interval=1)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(pods.pod_context())
    trial.await_iteration(4)
    path, arguments = deferred.value.trigger.serialize()

    async def follow() -> dict:
        first = import_string(path)(**arguments)
        following = asyncio.ensure_future(anext(first.run()))
        await asked_for_the_log()
        following.cancel()  # this triggerer dies
        with pytest.raises(asyncio.CancelledError):
            await following
        await first.cleanup()
        following = asyncio.ensure_future(anext(import_string(path)(**arguments).run()))
        await asked_for_the_log()
        api.drop_streams()
        gate.open()
        return (await following).payload

    async def asked_for_the_log() -> None:
        """Wait until somebody who follows has asked for it once more."""
        known = len(api.requests)
        await asyncio.to_thread(
            api.wait_for, lambda _pods: any("/log" in path for path, _ in api.requests[known:])
        )

    event = asyncio.run(follow())
    resumed = trial.operator(deferrable=True)
    result = getattr(resumed, deferred.value.method_name)(pods.pod_context(), event)
    assert (result["status"], result["attempt"]) == ("TERMINATED", 1)
    # by the second triggerer, or by the task where the pod ended before it looked
    shown = capfd.readouterr().out
    assert "iteration 5, score=10" in shown
    assert "iteration 6, score=12" in shown
    assert len(api.created) == 1
    assert api.pod_names() == []


def test_killing_the_task_deletes_the_pod_and_the_snapshot_survives(trial, api, gate):
    task = trial.start(env=gate.env)
    trial.await_iteration(4)
    task.operator.on_kill()
    with pytest.raises(AirflowException):
        task.end()
    # at once, while the pod may still be saving: it is waited for
    assert trial.run()["attempt"] == 2
    first = AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).outcome(1)
    assert (first.result, first.iteration) == (Result.INTERRUPTED, 4)
    assert trial.failures == ()
    assert trial.iterations() == [1, 2, 3, 4, 5, 6]


def _limits(memory: str):
    from kubernetes.client import models

    return models.V1ResourceRequirements(requests={"memory": memory}, limits={"memory": memory})


def test_coupled_trials_share_one_pod_and_go_on_in_another_when_it_is_evicted(
    api, copied, caplog, gate
):
    trial = Trial(api, copied("limited"), strategy="whole_experiment")
    tasks = [trial.start(trial=item, concurrent_trials=2, env=gate.env) for item in trial.items]
    api.kubelet.evict(trial.await_iteration(4, whole=True), grace=60)
    api.wait_for(lambda pods: any(pod["metadata"]["name"].endswith("-2") for pod in pods))
    gate.open()
    assert [task.end()["status"] for task in tasks] == ["TERMINATED"] * 3
    assert len(api.created) == 2
    for pod in api.created:
        assert pod["metadata"]["labels"]["tune-restore/trial"] == "whole"
        cpus = base(pod)["resources"]["limits"]["cpu"]
        assert {"name": "TUNE_RESTORE_CPUS", "value": cpus} in base(pod)["env"]
    assert cpus == str(int(2 * read_plan(trial.store, trial.restore_id).to_run[0].resources["CPU"]))
    end = AttemptRecords(trial.store, trial.restore_id, layout.WHOLE_EXPERIMENT).exit(1)
    assert "The pod was evicted" in end.message
    assert "Attempt 1 ended unseen: The pod was evicted" in caplog.text
    commit_restore(trial.store, trial.restore_id)


def test_coupled_trials_that_ask_for_more_now_get_a_larger_pod(api, copied, capfd):
    trial = Trial(api, copied("limited"), strategy="whole_experiment")
    more = {"trainable": f"{ASKING}:three_cpus", "concurrent_trials": 1}
    tasks = [trial.start(trial=item, **more) for item in trial.items]
    assert [task.end()["status"] for task in tasks] == ["TERMINATED"] * 3
    recorded = read_plan(trial.store, trial.restore_id).to_run[0].resources["CPU"]
    cpus = [base(pod)["resources"]["limits"]["cpu"] for pod in api.created]
    assert cpus == [f"{recorded:g}", "3"]
    assert "its pod was too small: a trial requests CPU 3 now" in capfd.readouterr().out


def test_a_deferred_task_defers_to_the_larger_pod(trial, api):
    more = {"trainable": f"{ASKING}:three_cpus", "deferrable": True, "logging_interval": 1}
    with pytest.raises(TaskDeferred) as deferred:
        trial.operator(**more).execute(pods.pod_context())
    event = _followed(deferred.value)
    with pytest.raises(TaskDeferred) as again:
        trial.operator(**more).trigger_reentry(pods.pod_context(), event)
    result = trial.operator(**more).trigger_reentry(pods.pod_context(), _followed(again.value))
    assert (result["status"], result["attempt"]) == ("TERMINATED", 2)
    assert len(api.created) == 2


def _followed(deferred: TaskDeferred) -> dict:
    """Wait in the place of a triggerer, and return what it says."""
    path, arguments = deferred.trigger.serialize()

    async def follow() -> dict:
        return (await anext(import_string(path)(**arguments).run())).payload

    return asyncio.run(follow())


def test_a_trainable_that_asks_for_more_each_time_gets_no_third_pod(trial, api):
    with pytest.raises(AirflowFailException, match=r"requested CPU [0-9.e+]+ and got it, and then"):
        trial.run(trainable=f"{ASKING}:more_each_time")
    assert len(api.created) == 2
    assert trial.failures == ()


def test_a_run_that_is_being_claimed_just_now_has_no_pod_yet(api, copied):
    trial = Trial(api, copied("limited"), strategy="whole_experiment")
    # on a disk, a request's directory is there before the request (seen to come in between)
    key = layout.request_key(trial.restore_id, layout.WHOLE_EXPERIMENT, 1)
    (Path(trial.store.uri) / key).parent.mkdir(parents=True)
    plan = read_plan(trial.store, trial.restore_id)
    operator = trial.operator()
    task = replace(operator.open_task(), trial_id=layout.WHOLE_EXPERIMENT)
    newest = operator.attempt_pods(task).find_attempt()
    assert newest == NewestAttempt(number=1)
    # the pod of the test before may still be read
    name = pod_name(plan.experiment, plan.restore_id, layout.WHOLE_EXPERIMENT, 1)
    assert not any(name in request for request, _ in api.requests)


def test_samples_are_drawn_in_one_pod(api, copied):
    experiment = copied("left")
    operator = ContinueSearchKubernetesOperator(
        **pods.arguments(
            task_id="continue_search",
            experiment=str(experiment),
            trainable="tests.trainables:counting",
        )
    )
    context = pods.pod_context()
    result = operator.execute(context)
    assert context["ti"].pushed["return_value"] == result
    assert result["samples_left"] == 0
    assert len(api.created) == 1
    found = read_experiment(open_store(str(experiment))).trials
    # the one that hung stays as it is: it was not to be resumed
    assert sorted(trial.status for trial in found) == ["RUNNING", *["TERMINATED"] * 3]


def test_an_experiment_with_dollars_in_its_name_is_restored(api, copied):
    trial = pods.Trial(api, copied("errored", "costs $(HOME) or $$5"))
    assert trial.run()["status"] == "TERMINATED"
    commit_restore(trial.store, trial.restore_id)
    assert trial.iterations() == [1, 2, 3, 4, 5, 6]
