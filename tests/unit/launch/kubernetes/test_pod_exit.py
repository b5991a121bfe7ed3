"""The ends of pods, distinguished; the texts are Kubernetes' own, of 1.26 and newer."""

import pytest

from airflow_tune_restore.launch.kubernetes.pod_exit import (
    ENDING_SECONDS,
    PodExit,
    PodWatch,
    gone_pod_exit,
    is_ending,
    is_live,
    read_disruption,
    read_pod_end,
)
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.request import EXIT_INTERRUPTED, EXIT_REFUSED


def pod(
    phase: str = "Failed", exit_code: int | None = None, why: str = "Error", **status: object
) -> dict:
    states = {}
    if exit_code is not None:
        ended = {"exitCode": exit_code, "reason": why, "message": "the last words"}
        states = {"containerStatuses": [{"name": "base", "state": {"terminated": ended}}]}
    return {"metadata": {"name": "p"}, "status": {"phase": phase, **states, **status}}


def target(reason: str, message: str = "") -> list[dict]:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    return [{"type": "Ready", "status": "False"}, {**condition, "message": message}]


LOW_MEMORY = (
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 91Mi. Container base "
    "was using 3Gi, request is 0, has larger consumption of memory. "
)


@pytest.mark.parametrize(
    ("ended", "words", "cause"),
    [
        (pod(exit_code=137, why="OOMKilled"), "OOMKilled", Cause.OUT_OF_MEMORY),
        (pod(reason="Evicted", message="The node was low on resource: ephemeral-storage."),
         "was evicted", Cause.NODE_LOST),
        (pod(reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit"),
         "used more storage than its own limit", Cause.STORAGE),
        (pod(reason="Evicted", message='Container base exceeded its local ephemeral storage limit "1G"'),
         "used more storage than its own limit", Cause.STORAGE),
        (pod(reason="Evicted", message='Usage of EmptyDir volume "tune-restore-shm" exceeds the limit'),
         "used more storage than its own limit", Cause.STORAGE),
        (pod(reason="OutOfmemory", message="Node didn't have enough resource: memory"),
         "was rejected by its node (OutOfmemory)", Cause.NODE_LOST),
        (pod(exit_code=137, reason="Evicted", conditions=target("TerminationByKubelet"),
             message=LOW_MEMORY), "low on resource: memory", Cause.OUT_OF_MEMORY),
        (pod(exit_code=4, conditions=target("PreemptionByScheduler", "preempting for a higher one")),
         "was preempted (PreemptionByScheduler): preempting for", Cause.NODE_LOST),
        (pod(exit_code=4, conditions=target("EvictionByEvictionAPI", "Eviction API: evicting")),
         "was evicted (EvictionByEvictionAPI)", Cause.NODE_LOST),
        (pod(conditions=target("DeletionByTaintManager")), "was evicted", Cause.NODE_LOST),
        (pod(conditions=target("TerminationByKubelet"),
             message="Pod was terminated in response to imminent node shutdown."),
         "imminent node shutdown", Cause.NODE_LOST),
        (pod(exit_code=137), "ended (Error)", Cause.KILLED),
    ],
)  # fmt: skip
def test_ends_are_told_apart(ended, words, cause):
    end = read_pod_end(ended, "base")
    assert words in end.message
    assert classify_exit(end.exit_code, end.message).cause == cause
    assert end.is_disruption == (cause is not Cause.KILLED)


def test_a_deadline_is_named():
    ended = pod(exit_code=4)
    ended["status"] |= {"reason": "DeadlineExceeded", "message": "Pod was active for too long"}
    end = read_pod_end(ended, "base")
    assert end.message == "pod p ended (DeadlineExceeded: Pod was active for too long)"
    assert classify_exit(end.exit_code, end.message) is None  # it was stopped, and saved


def test_last_words_are_kept_apart_from_what_is_classified():
    ended = pod(exit_code=1)
    ended["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "OOMKilled, I think"
    end = read_pod_end(ended, "base")
    assert end.last_words == "OOMKilled, I think"
    assert classify_exit(end.exit_code, end.message).cause == Cause.KILLED


def test_a_container_that_kubernetes_started_again_has_ended_before():
    ended = pod("Running", exit_code=137, why="OOMKilled")
    status = ended["status"]["containerStatuses"][0]
    status |= {"lastState": status["state"], "state": {"running": {}}}
    assert "OOMKilled" in read_pod_end(ended, "base").message


def test_a_sidecar_that_ends_says_nothing_of_the_runner():
    ended = pod("Running", exit_code=1)
    ended["status"]["containerStatuses"][0]["name"] = "istio-proxy"
    assert read_pod_end(ended, "base") is None


def test_a_pod_may_be_attached_to_until_it_ends_or_is_to_end():
    assert is_live(pod("Pending"), "base")
    assert is_live(pod("Running"), "base")
    assert not is_live(pod("Succeeded", exit_code=0), "base")
    leaving = pod("Running")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
    assert is_ending(leaving)
    assert not is_live(leaving, "base")


def test_a_pod_that_is_gone_is_told_by_what_was_seen_of_it_and_else_by_its_events():
    watch = PodWatch("base")
    assert watch.look_back("p") is None
    watch.look({**pod("Running"), "status": {"conditions": target("EvictionByEvictionAPI")}})
    assert "was evicted" in watch.look_back("p").message
    watch.look(pod(exit_code=137, why="OOMKilled"))
    assert watch.look_back("p").exit_code == 137
    assert "OOMKilled" in watch.look_back("p").message
    events = [{"reason": "Scheduled"}, {"reason": "Preempted", "message": "by pod 42"}]
    assert gone_pod_exit("p", events).message == "The pod was preempted (Preempted): by pod 42"
    gone = gone_pod_exit("p", [])
    assert "is gone" in gone.message
    assert classify_exit(None, gone.message).cause == Cause.KILLED


def test_an_init_container_that_failed_is_named():
    ended = pod("Failed")
    failed = {"exitCode": 1, "reason": "Error", "message": "no such bucket"}
    ended["status"]["initContainerStatuses"] = [{"name": "setup", "state": {"terminated": failed}}]
    assert read_pod_end(ended, "base").last_words == "init container setup: no such bucket"


@pytest.mark.parametrize("status", [{}, {"conditions": None}, {"containerStatuses": None}])
def test_a_pod_without_a_status_has_not_ended(status):
    assert read_pod_end({"metadata": {"name": "p"}, "status": status}, "base") is None
    assert read_disruption({"status": status}) == ""


def test_a_runner_that_saved_before_its_node_went_is_lost_and_one_that_refused_is_not():
    words = "The pod was evicted: The node was low on resource: ephemeral-storage."
    assert classify_exit(EXIT_INTERRUPTED, words).cause == Cause.NODE_LOST
    assert classify_exit(EXIT_INTERRUPTED, "pod p ended (Error)") is None
    assert classify_exit(EXIT_REFUSED, words) is None


def ending(phase: str = "Running", **metadata: object) -> dict:
    """Return a pod that is about to end, and whose container runs."""
    leaving = pod(phase)
    leaving["metadata"] |= metadata
    leaving["spec"] = {"nodeName": "node-1", "terminationGracePeriodSeconds": 120}
    leaving["status"]["containerStatuses"] = [{"name": "base", "state": {"running": {}}}]
    return leaving


DELETED = {"deletionTimestamp": "2026-11-24T00:00:00Z", "deletionGracePeriodSeconds": 10}


@pytest.mark.parametrize(
    ("leaving", "seconds"),
    [
        (ending(**DELETED), 10 + ENDING_SECONDS),
        (ending("Failed"), 120 + ENDING_SECONDS),  # past its deadline, or evicted with time to save
    ],
)
def test_a_pod_that_is_about_to_end_is_given_its_grace_period_and_no_more(leaving, seconds):
    clock = [1000.0]
    watch = PodWatch("base", monotonic=lambda: clock[0])
    assert watch.look(leaving) is None
    clock[0] += seconds
    assert watch.look(leaving) is None
    clock[0] += 1
    end = watch.look(leaving)
    assert end.is_lost
    assert "node-1 does not report its end" in end.message
    assert classify_exit(end.exit_code, end.message).cause == Cause.NODE_LOST


def test_each_pod_has_a_clock_of_its_own_and_one_that_reports_its_end_is_not_lost():
    clock = [0.0]
    watch = PodWatch("base", monotonic=lambda: clock[0])
    assert watch.look(ending(**DELETED)) is None
    clock[0] += 1000
    assert watch.look(ending(**DELETED, name="q")) is None
    ended = pod("Running", exit_code=4)
    ended["metadata"] |= DELETED
    assert watch.look(ended).exit_code == 4


def test_what_another_process_has_seen_is_taken_over():
    watch = PodWatch("base")
    lost = PodExit(exit_code=None, message="lost", is_disruption=True, is_lost=True)
    watch.remember("p", lost)
    assert watch.look(ending(**DELETED)) == lost
    assert watch.look_back("p") == lost
    assert watch.look(ending()) is None


def test_a_pod_that_is_held_is_over_once_its_container_is_or_can_never_be():
    held = pod("Running", exit_code=0)
    held["metadata"] |= {**DELETED, "finalizers": ["kueue.x-k8s.io/managed"]}
    assert read_pod_end(held, "base").exit_code == 0
    never = pod("Pending")
    never["metadata"] |= {**DELETED, "finalizers": ["kueue.x-k8s.io/managed"]}
    assert read_pod_end(never, "base") is not None


def test_a_container_that_cannot_be_started_is_a_mistake_with_its_reason():
    said = 'exec: "no-such-python": executable file not found in $PATH: unknown'
    ended = pod(exit_code=128, why="StartError")
    ended["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = said
    end = read_pod_end(ended, "base")
    assert end.is_mistake
    assert said in end.message
