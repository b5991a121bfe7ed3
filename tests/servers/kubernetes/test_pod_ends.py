"""How a pod may end, or seem to, on a real Kubernetes: its end is found, and nothing is waited for."""

import threading

import pytest

from airflow_tune_restore.exceptions import PodLostError
from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.launch.kubernetes import pod_exit
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.version_compat import AirflowException
from tests.support.kubernetes.api import IMAGE, NAMESPACE, base
from tests.support.kubernetes.stand_in import BOTH

SIDECAR = {
    "name": "proxy",
    "image": IMAGE,
    "command": ["sh", "-c", "echo proxy is up; sleep 3600"],
}


def template(*, containers=(), **metadata) -> dict:
    spec = {"containers": [{"name": "base", "image": IMAGE}, *containers], "restartPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "t", "namespace": NAMESPACE, **metadata},
        "spec": spec,
    }


def lost(trial, *, deferred: bool = False, **more) -> PodLostError:
    """Run a task that loses its pod, and return why."""
    with pytest.raises(AirflowException) as error:
        trial.restore(deferred=deferred, **more)
    found = package_error_behind(error.value)
    assert isinstance(found, PodLostError), found
    return found


@BOTH
def test_a_sidecar_that_runs_on_holds_up_nothing(trial, api, capfd, deferred):
    trial.open()
    result = trial.restore(
        deferred=deferred,
        pod_template_dict=template(containers=[SIDECAR]),
        container_logs=True,
    )
    assert result["status"] == "TERMINATED"
    api.wait_for(lambda pods: not pods)
    log = capfd.readouterr().out
    assert "attempt 1 ends" in log
    assert "proxy is up" in log or deferred  # the triggerer shows the runner's log alone


@BOTH
def test_a_pod_that_has_ended_and_is_held_by_a_finalizer_is_over(trial, api, deferred):
    api.finalizers = ["kueue.x-k8s.io/managed"]
    assert lost(
        trial,
        deferred=deferred,
        env={"STAND_IN_RESULT": "none", "STAND_IN_EXIT": "7", "STAND_IN_GATE": "/"},
    )
    (first,) = api.pod_names()
    assert api.get(NAMESPACE, first)["metadata"]["deletionTimestamp"]
    trial.open()
    assert trial.restore(deferred=deferred)["attempt"] == 2
    assert [failure.cause for failure in trial.failures] == ["killed"]
    for name in api.pod_names():
        api.finalize(name)
    assert api.pod_names() == []


@BOTH
def test_a_pod_that_is_held_before_it_ever_got_to_a_node_is_over(trial, api, deferred):
    api.finalizers = ["kueue.x-k8s.io/managed"]
    api.kubelet.has_room = False
    with pytest.raises(AirflowException, match="did not start: 0/1 nodes are available"):
        trial.restore(deferred=deferred, startup_timeout_seconds=1, schedule_timeout_seconds=1)
    api.kubelet.has_room = True
    trial.open()
    trial.restore(deferred=deferred)
    assert trial.failures == ()


@BOTH
def test_a_pod_of_a_node_that_cannot_be_reached_is_given_up_after_grace_and_patience(
    trial, api, monkeypatch, deferred
):
    monkeypatch.setattr(pod_exit, "ENDING_SECONDS", 1.0)

    def lose_node() -> None:
        name = trial.await_work()
        api.kubelet.cut_off()
        api.kubelet.taint(name)

    after(lose_node)
    error = lost(trial, deferred=deferred, termination_grace_period=1)
    assert error.cause == "node_lost"
    assert "node-1 does not report its end" in str(error)
    assert "DeletionByTaintManager" in str(error)
    # the pod stays, Terminating, until its node is removed; the next attempt does not wait again
    monkeypatch.setattr(pod_exit, "ENDING_SECONDS", 10_000.0)
    cut_off = api.pod_names()
    api.kubelet.has_room = False
    with pytest.raises(AirflowException, match="did not start"):
        trial.restore(deferred=deferred, startup_timeout_seconds=1, schedule_timeout_seconds=1)
    assert [pod["metadata"]["labels"]["tune-restore/attempt"] for pod in api.created] == ["1", "2"]
    assert set(cut_off) <= set(api.pod_names())
    assert [failure.cause for failure in trial.failures] == ["node_lost"]


@BOTH
def test_a_retry_waits_for_a_pod_of_a_lost_node_that_nobody_followed_only_so_long(
    trial, api, monkeypatch, deferred
):
    trial.abandon(termination_grace_period=1)
    name = trial.await_work()
    api.kubelet.cut_off()
    api.kubelet.taint(name)
    monkeypatch.setattr(pod_exit, "ENDING_SECONDS", 1.0)
    after(
        lambda: (
            api.wait_for(lambda pods: len(pods) > 1),
            api.kubelet.is_reachable.set(),
            trial.open(),
        )
    )
    assert trial.restore(deferred=deferred)["attempt"] == 2
    assert [failure.cause for failure in trial.failures] == ["node_lost"]


@BOTH
def test_a_pod_past_its_deadline_saves_its_snapshot_before_it_is_judged(
    trial, api, capfd, deferred
):
    # the pod has Failed at once; its container runs until it has saved
    with pytest.raises(AirflowException, match=r"stopped at iteration 6 \(pod .*DeadlineExceeded"):
        trial.restore(deferred=deferred, ttl=1, env={"STAND_IN_SAVES_SECONDS": "2"})
    outcome = AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).outcome(1)
    assert outcome.result == Result.INTERRUPTED
    assert api.created[0]["spec"]["activeDeadlineSeconds"] == 1
    shown = capfd.readouterr().out.count("attempt 1 is at work")
    assert shown == 1 or (
        deferred and shown == 2
    )  # Kubernetes rounds the seconds that are asked for
    assert trial.failures == ()


@BOTH
def test_an_eviction_with_time_to_save_is_judged_after_it(trial, api, deferred):
    after(lambda: api.kubelet.evict(trial.await_work(), grace=60))
    error = lost(trial, deferred=deferred, env={"STAND_IN_SAVES_SECONDS": "1"})
    assert error.cause == "node_lost"
    outcome = AttemptRecords(trial.store, trial.restore_id, trial.item["trial_id"]).outcome(1)
    assert outcome.result == Result.INTERRUPTED


@BOTH
def test_an_evicted_pod_whose_containers_were_forgotten_is_told_by_its_status(trial, api, deferred):
    after(lambda: api.kubelet.evict(trial.await_work(), forgets=True))
    error = lost(trial, deferred=deferred)
    assert (error.cause, "was evicted" in str(error)) == ("node_lost", True)


@BOTH
def test_a_pod_that_is_gone_is_told_by_what_was_seen_of_it(trial, api, deferred):
    after(lambda: api.kubelet.preempt(trial.await_work(), grace=0))
    error = lost(trial, deferred=deferred)
    assert (error.cause, "was preempted" in str(error)) == ("node_lost", True)


@BOTH
def test_a_pod_that_somebody_deletes_has_its_time_to_save(trial, api, capfd, deferred):
    after(lambda: api.delete(NAMESPACE, trial.await_work(), None))
    with pytest.raises(AirflowException, match="stopped at iteration 6"):
        trial.restore(deferred=deferred, env={"STAND_IN_SAVES_SECONDS": "1"})
    assert trial.failures == ()
    assert "Traceback" not in capfd.readouterr().out


@BOTH
def test_an_eviction_for_the_pods_own_storage_limit_is_no_lost_node(trial, api, deferred):
    after(lambda: api.kubelet.evict_for_its_own_storage(trial.await_work()))
    error = lost(trial, deferred=deferred)
    assert error.cause == "storage"
    assert "used more storage than its own limit" in str(error)
    assert [failure.cause for failure in trial.failures] == ["storage"]


@BOTH
def test_a_pod_that_its_node_rejects_costs_no_attempt(trial, api, deferred):
    api.kubelet.rejects = ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 1000")
    error = lost(trial, deferred=deferred)
    assert (error.cause, "was rejected by its node (OutOfcpu)" in str(error)) == ("node_lost", True)
    assert trial.failures == ()


@BOTH
def test_a_worker_killed_for_its_memory_is_out_of_memory_and_the_next_attempt_gets_more(
    trial, api, deferred
):
    from kubernetes.client import models

    limits = models.V1ResourceRequirements(limits={"memory": "6Gi"})
    more = {"container_resources": limits}

    def oom() -> None:
        trial.await_work()
        (life,) = api.kubelet.pods.values()
        # the kernel has killed a child, and the runner records what it saw of that
        life.base.oom_killed = True
        trial.open()

    after(oom)
    env = {"STAND_IN_RESULT": "failed", "STAND_IN_EXIT": "1"}
    with pytest.raises(AirflowException, match=r"failed again \(out_of_memory\): .*OOMKilled"):
        trial.restore(deferred=deferred, env=env, **more)
    assert [failure.cause for failure in trial.failures] == ["out_of_memory"]
    assert trial.restore(deferred=deferred, **more)["attempt"] == 2
    memory = [base(pod)["resources"]["limits"]["memory"] for pod in api.created]
    assert memory == ["6Gi", f"{2 * (6144 - 1224) + 1224}Mi"]


@BOTH
def test_a_trial_that_finished_has_finished_whatever_became_of_a_child(trial, api, deferred):
    trial.open()
    api.kubelet.delay_seconds = 0.2

    def oom() -> None:
        api.wait_for(lambda _pods: api.kubelet.pods)
        next(iter(api.kubelet.pods.values())).base.oom_killed = True

    after(oom)
    assert trial.restore(deferred=deferred)["status"] == "TERMINATED"
    assert trial.failures == ()


def after(what) -> None:
    """Do something while the test continues."""
    threading.Thread(target=what, daemon=True).start()


def test_a_sidecar_whose_image_cannot_be_pulled_ends_no_runner_that_runs(trial, api):
    wrong = {**SIDECAR, "image": "registry.example.com/typo:1"}
    threading.Timer(1.5, trial.open).start()
    with pytest.raises(AirflowException, match=r"cannot be followed: Image cannot be pulled"):
        trial.run(pod_template_dict=template(containers=[wrong]))
    api.wait_for(lambda _pods: next(iter(api.kubelet.pods.values())).base.over.is_set())
    said = next(iter(api.kubelet.pods.values())).said
    assert said[-1][1] == "attempt 1 ends"
    assert trial.run()["attempt"] == 1
