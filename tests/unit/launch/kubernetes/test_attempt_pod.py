"""Attempts in pods without Airflow: which one to attach to, and what is recorded of an end."""

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, PodLostError, RunnerError
from airflow_tune_restore.launch.kubernetes.attempt_pod import AttemptPods, NewestAttempt
from airflow_tune_restore.launch.kubernetes.pod_exit import PodWatch, gone_pod_exit
from airflow_tune_restore.launch.kubernetes.pod_spec import name_of
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import beat, leave_outcome, start_night

SETTINGS = RunnerSettings(trainable="a:b")


class FakePods:
    """The pods of a cluster: a test puts them there, and may end them."""

    def __init__(self):
        self.watch = PodWatch("base")
        self.pods, self.deleted = {}, []

    def put(self, name, status, **metadata):
        metadata = {"name": name, **metadata}
        self.pods[name] = {"metadata": metadata, "spec": {"nodeName": "n"}, "status": status}

    def read(self, name):
        return self.pods.get(name)

    def look(self, name):
        pod = self.pods.get(name)
        return self.watch.look(pod) if pod is not None else gone_pod_exit(name, [])

    def delete(self, name):
        self.deleted.append(name)
        self.pods.pop(name, None)


RUNNING = {"phase": "Running", "containerStatuses": [{"name": "base", "state": {"running": {}}}]}
EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}


def ended(exit_code, message="", reason="Error", **status):
    state = {"terminated": {"exitCode": exit_code, "message": message, "reason": reason}}
    return {"phase": "Failed", "containerStatuses": [{"name": "base", "state": state}], **status}


@pytest.fixture
def pods():
    return FakePods()


@pytest.fixture
def attempts(pods):
    store = MemoryStore()
    row = make_row("bad", status="ERROR", error=True, last_result_time=3.0)
    store.put(STATE_NAME, make_state([row]))
    plan = start_night(store, "r1")
    return AttemptPods(
        pods=pods,
        store=store,
        plan=plan,
        trial_id=plan.to_run[0].trial_id,
        deletes_ended=True,
        sleep=lambda _seconds: None,
    )


@pytest.fixture
def request_(attempts):
    return claim_attempt(attempts.store, attempts.plan, attempts.trial_id, SETTINGS)


def test_without_an_attempt_the_first_is_next(attempts):
    assert attempts.find_attempt() == NewestAttempt(number=0)


def test_a_pod_that_runs_is_attached_to(attempts, pods, request_):
    pods.put(name_of(request_), RUNNING)
    assert attempts.find_attempt() == NewestAttempt(number=1, alive=request_)
    assert attempts.find_request(name_of(request_)) == request_
    with pytest.raises(RunnerError, match="still runs; a retry attaches to it"):
        attempts.get_outcome(request_, None)


def test_an_attempt_without_a_pod_that_never_began_is_taken_again(attempts, request_):
    assert attempts.find_attempt() == NewestAttempt(number=1, unstarted=request_)


def test_a_pod_that_ended_unseen_is_recorded_and_deleted(attempts, pods, request_):
    beat(attempts.store, request_)
    pods.put(name_of(request_), {**ended(137), **EVICTED})
    newest = attempts.find_attempt()
    assert newest.number == 1
    assert newest.alive is newest.unstarted is None
    assert newest.ended == request_
    assert "evicted" in attempts.records.exit(1).message
    assert pods.deleted == [name_of(request_)]


def test_a_pod_that_is_about_to_end_is_waited_for(attempts, pods, request_):
    beat(attempts.store, request_)
    name = name_of(request_)
    pods.put(name, RUNNING, deletionTimestamp="2026-11-24T13:51:40Z")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        leave_outcome(attempts.store, request_, "interrupted")
        pods.put(name, ended(4), deletionTimestamp="2026-11-24T13:51:40Z")

    object.__setattr__(attempts, "sleep", sleep)
    assert attempts.find_attempt().ended == request_
    assert len(waits) == 1
    assert attempts.records.exit(1) is None


def test_a_pod_that_kubernetes_took_away_is_lost_with_its_cause(attempts, pods, request_):
    beat(attempts.store, request_)
    pods.put(name_of(request_), EVICTED)
    with pytest.raises(PodLostError, match="The pod was evicted: The node was low on memory"):
        attempts.get_outcome(request_, None)
    assert "evicted" in attempts.records.exit(1).message


def test_an_outcome_counts_more_than_the_end_of_its_pod(attempts, pods, request_):
    leave_outcome(attempts.store, request_, "finished")
    pods.put(name_of(request_), EVICTED)
    assert attempts.get_outcome(request_, None).result == "finished"
    assert attempts.records.exit(1) is None


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (ended(128, "exec: no python", "StartError"), InvalidInputError, "exec: no python"),
        (
            ended(1, "python: No module named airflow_tune_restore"),
            InvalidInputError,
            "the image lacks this package",
        ),
        (ended(2, "error: no credentials"), RunnerError, "was not started: no credentials"),
    ],
)
def test_a_container_that_could_not_start_costs_no_attempt(
    attempts, pods, request_, status, kind, words
):
    pods.put(name_of(request_), status)
    with pytest.raises(kind, match=words):
        attempts.get_outcome(request_, None)
    assert attempts.records.exit(1) is None


def test_a_name_that_no_attempt_has_is_refused(attempts, request_):
    with pytest.raises(InvalidInputError, match="runs no attempt of restore r1"):
        attempts.find_request("tune-x-1")
