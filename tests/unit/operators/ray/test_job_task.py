"""A trial as a Ray job: attach or start, once; what each end means. The cluster is a fake here."""

import json
import threading

import pytest
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR

from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.links.ray_job import RayJobLink
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.retry_policy import FIRST_WAIT, TRIAL_RETRY_POLICY
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.triggers.ray_job import RayJobTrigger
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    TaskDeferralTimeout,
)
from tests.support.airflow.context import make_context
from tests.support.airflow.names import TaskDeferred, since_3_3
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import Attempt, beat, ending, leave_outcome
from tests.support.waiting import set_time

LONG_AGO = {"is_lost": False, "offset": 0, "seen": 0}


class StateStore(dict):
    """Airflow's task_state_store."""

    def set(self, key, value):
        json.dumps(value)
        self[key] = value


@pytest.fixture
def item(errored):
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(errored),
        resume_errored=True,
        stale_after=0,
        trainable="not.here:train",
        launcher="ray",
    )
    return operator.execute(make_context())[0]


@pytest.fixture
def store(errored):
    return open_store(str(errored))


@pytest.fixture
def jobs(monkeypatch):
    fake = FakeJobs()
    monkeypatch.setattr(RayJobsHook, "jobs", lambda self: fake)
    set_time(monkeypatch, "sleep", lambda seconds: None)
    connection = {"conn_type": "ray_jobs", "host": "head", "extra": {"runtime_env": {"pip": ["x"]}}}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(connection))
    return fake


def trial(item, **arguments) -> RestoreTrialOperator:
    return RestoreTrialOperator(
        task_id="trial", trial=item, trainable="a:b", launcher="ray", **arguments
    )


def test_a_user_for_runners_on_the_worker_is_refused(item, jobs):
    with pytest.raises(AirflowFailException, match="Leave it out"):
        trial(item, runner_user="nobody").execute(make_context())
    assert jobs.posted == []


def deferred(operator, context=None) -> RayJobTrigger:
    with pytest.raises(TaskDeferred) as raised:
        operator.execute(context or make_context())
    assert raised.value.method_name == "execute_complete"
    return raised.value.trigger


def event(item, attempt=1, **more):
    return {"restore_id": item["restore_id"], "attempt": attempt, **LONG_AGO, **more}


def test_a_trial_is_posted_once_and_waited_for_elsewhere(item, jobs, store):
    context = make_context()
    trigger = deferred(trial(item, env={"MINE": "1"}), context)
    (posted,) = jobs.posted
    assert posted["submission_id"] == trigger.submission_id
    assert posted["runtime_env"]["pip"] == ["x"]
    assert posted["runtime_env"]["env_vars"]["MINE"] == "1"
    assert posted["entrypoint_memory"] == 512 * 1024**2
    assert context["ti"].pushed["ray_job_url"].endswith(trigger.submission_id)
    body = store.get(layout.request_key(item["restore_id"], "a3", 1))
    request = json.loads(body)
    assert (request["address"], request["reports"], request["trainable"]) == ("auto", True, "a:b")
    path, arguments = trigger.serialize()
    assert path == "airflow_tune_restore.triggers.ray_job.RayJobTrigger"
    assert RayJobTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)


def test_its_outcome_is_judged_as_on_the_worker(item, jobs, store):
    jobs.on_submit = lambda name: None
    operator = trial(item)
    deferred(operator)
    run_outcome(store, item, Result.FINISHED, iteration=6)
    jobs.end()
    assert operator.execute_complete(make_context(), event(item))["iteration"] == 6
    # a task that is run again has nothing to do
    assert trial(item).execute(make_context())["iteration"] == 6
    assert len(jobs.posted) == 1


def run_outcome(store, item, result, **fields):
    leave_outcome(store, Attempt(item["restore_id"], "a3"), result, **fields)


def test_a_retry_attaches_and_so_do_twenty_at_once(item, jobs, store):
    deferred(trial(item))
    triggers, threads = [], []
    for _ in range(20):
        thread = threading.Thread(
            target=lambda: triggers.append(deferred(trial(item), make_context()))
        )
        threads.append(thread)
        thread.start()
    for thread in threads:
        thread.join()
    assert len(triggers) == 20
    assert len(jobs.posted) == 1
    assert AttemptRecords(store, item["restore_id"], "a3").numbers() == [1]


def test_a_job_that_died_fails_the_task_and_a_retry_submits_the_next_attempt(item, jobs):
    trigger = deferred(trial(item))
    jobs.output = "Traceback\nKilled\n"
    jobs.end("FAILED", driver_exit_code=-9)
    with pytest.raises(AirflowException, match="Killed") as raised:
        trial(item).execute_complete(make_context(), event(item))
    assert not isinstance(raised.value, AirflowFailException)
    again = deferred(trial(item))
    assert again.attempt == 2
    assert again.submission_id != trigger.submission_id


@pytest.mark.parametrize("result", [Result.REFUSED, Result.FENCED])
def test_a_trial_of_a_refused_run_is_not_retried(errored, jobs, result):
    planner = BuildRestorePlanOperator(
        task_id="plan", experiments=str(errored), resume_errored=True, stale_after=0,
        strategy="whole_experiment",
    )  # fmt: skip
    item, store = planner.execute(make_context())[0], open_store(str(errored))
    deferred(trial(item))
    whole = Attempt(item["restore_id"], layout.WHOLE_EXPERIMENT)
    leave_outcome(store, whole, result, error="no such module")
    jobs.end("FAILED")
    with pytest.raises(AirflowFailException, match="was not restored: no such module"):
        trial(item).execute_complete(make_context(), event(item))


def test_one_that_has_attached_too_early_goes_on_with_the_next_attempt(item, jobs, store):
    operator = trial(item)
    deferred(operator)._stop()
    run_outcome(store, item, Result.INTERRUPTED)
    jobs.end("STOPPED")
    with pytest.raises(TaskDeferred) as again:
        trial(item).execute_complete(make_context(), event(item))
    assert again.value.trigger.attempt == 2


def test_a_job_that_was_stopped_elsewhere_is_tried_again_by_airflow(item, jobs, store):
    deferred(trial(item))
    run_outcome(store, item, Result.INTERRUPTED, iteration=4)
    jobs.end("STOPPED")
    with pytest.raises(AirflowException, match="was stopped at iteration 4"):
        trial(item).execute_complete(make_context(), event(item))


def test_one_of_many_without_room_is_not_run_again_at_once(errored, jobs):
    """Others of the run that were stopped alone are; this one would only wait once more."""
    planner = BuildRestorePlanOperator(
        task_id="plan", experiments=str(errored), resume_errored=True, stale_after=0,
        strategy="whole_experiment",
    )  # fmt: skip
    item, store = planner.execute(make_context())[0], open_store(str(errored))
    deferred(trial(item))
    run_outcome(
        store, item, Result.INTERRUPTED, cause="no_room", error_type="NoRoomError", error="CPU 64"
    )
    jobs.end("SUCCEEDED")
    with pytest.raises(AirflowException, match=r"Trial a3 .* found no room"):
        trial(item).execute_complete(make_context(), event(item))


def test_the_state_store_is_believed_only_of_this_very_attempt(item, jobs, store):
    context = {**make_context(), "task_state_store": StateStore()}
    trigger = deferred(trial(item), context)
    (remembered,) = context["task_state_store"].values()
    assert remembered["submission_id"] == trigger.submission_id
    # the position of a mapped task, with what another trial left there
    remembered["submission_id"], remembered["attempt"] = "tune-restore-other-7-x", 7
    assert deferred(trial(item), context).attempt == 1


def test_killing_a_task_in_the_worker_stops_its_job_once(item, jobs, store):
    operator = trial(item, deferrable=False)
    looked = []

    def find(name):
        looked.append(name)
        if len(looked) == 3:
            operator.on_kill()
            operator.on_kill()
            run_outcome(store, item, Result.INTERRUPTED)
            jobs.end("STOPPED")
            raise KeyboardInterrupt  # Airflow's worker ends here
        return jobs.jobs.get(name)

    jobs.find = find
    with pytest.raises(KeyboardInterrupt):
        operator.execute(make_context())
    assert len(jobs.stopped) == 1


@pytest.mark.parametrize("state", [{}, {"task_state_store": StateStore()}], ids=["", "stored"])
def test_one_that_waited_too_long_stops_its_job(item, jobs, state):
    context = {**make_context(), **state}
    trigger = deferred(trial(item), context)
    with pytest.raises(TaskDeferralTimeout):
        trial(item).resume_execution(TRIGGER_FAIL_REPR, {"error": "Trigger timeout"}, context)
    assert jobs.stopped == [trigger.submission_id]


def test_a_refusal_of_the_cluster_fails_at_once(item, jobs):
    from airflow_tune_restore.exceptions import InvalidInputError

    def refuse(submission):
        raise InvalidInputError("http://head:8265 rejected the token.")

    jobs.submit = refuse
    with pytest.raises(AirflowFailException, match="rejected the token"):
        trial(item).execute(make_context())


@since_3_3
def test_an_outage_while_a_task_waits_reaches_the_retry_policys_rule_for_it(item, jobs):
    fired = {**event(item), "trouble": "Ray cluster http://head:8265: it timed out."}
    with pytest.raises(
        AirflowException,
        match=r"^Ray cluster http://head:8265: it timed out; Airflow retries it in 60 s \(try 2 of 2",
    ) as raised:
        trial(item).execute_complete(make_context(), fired)
    assert not isinstance(raised.value, AirflowFailException)
    decision = TRIAL_RETRY_POLICY.evaluate(raised.value, try_number=3, max_tries=5)
    assert decision.retry_delay == 4 * FIRST_WAIT


def test_a_connection_that_cannot_be_used_is_not_retried(item, jobs):
    fired = {"restore_id": item["restore_id"], "attempt": 1, "error": "The connection has no host."}
    with pytest.raises(AirflowFailException, match="no host"):
        trial(item).execute_complete(make_context(), fired)


def test_the_link_is_among_the_operators():
    assert [type(link) for link in RestoreTrialOperator.operator_extra_links] == [RayJobLink]


@pytest.mark.parametrize(("where", "links"), [("local", []), ("ray", [RayJobLink])])
@pytest.mark.parametrize("cls", [RestoreTrialOperator, ContinueSearchOperator])
def test_a_task_without_a_ray_job_has_no_link_from_its_start(cls, where, links):
    """Airflow would keep an XCom of it, also if the task is skipped."""
    subject = {"trial": {}} if cls is RestoreTrialOperator else {"experiment": "/x"}
    operator = cls(task_id="t", trainable="a:b", launcher=where, **subject)
    operator.pre_execute(make_context())
    assert [type(link) for link in operator.operator_extra_links] == links


@pytest.mark.parametrize(("where", "link"), [("local", ""), ("ray", "http://head:8265/#/jobs/x")])
def test_the_link_of_a_trial_on_the_worker_reads_no_xcom(item, monkeypatch, where, link):
    read = []

    def get_value(*, key, ti_key):
        read.append(key)
        return "http://head:8265/#/jobs/x"

    monkeypatch.setattr("airflow.sdk.execution_time.xcom.XCom.get_value", get_value)
    operator = RestoreTrialOperator(task_id="trial", trial=item, trainable="a:b", launcher=where)
    assert RayJobLink().get_link(operator, ti_key=None) == link
    assert read == ([] if where == "local" else ["ray_job_url"])


@pytest.fixture
def reads(monkeypatch):
    """Stores that were opened, and keys that were read from them."""
    opened, keys = [], []
    open_store_of = ExperimentStorageHook.open

    def count(self, address, **options):
        store = open_store_of(self, address, **options)
        opened.append(store)
        get = store.get

        def counted(key, **limits):
            keys.append(key)
            return get(key, **limits)

        monkeypatch.setattr(store, "get", counted)
        return store

    monkeypatch.setattr(ExperimentStorageHook, "open", count)
    return opened, keys


def test_each_execution_opens_the_store_and_reads_its_part_of_the_plan_once(
    item, jobs, store, reads
):
    opened, keys = reads
    plan_key = layout.seed_key(item["restore_id"], item["trial_id"])
    deferred(trial(item))
    assert (len(opened), keys.count(plan_key)) == (1, 1)
    run_outcome(store, item, Result.FINISHED)
    jobs.end()
    trial(item).execute_complete(make_context(), event(item))
    assert (len(opened), keys.count(plan_key)) == (2, 2)


def test_a_restore_on_the_worker_makes_no_job(item, jobs, launcher, store, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT")
    launcher.on_start = ending(store, Result.FINISHED)
    operator = RestoreTrialOperator(task_id="trial", trial=item, trainable="a:b")
    assert operator.execute(make_context())["trial_id"] == "a3"
    assert jobs.posted == []


def test_a_finished_trial_needs_no_lease_any_more(item, jobs, store):
    run_outcome(store, item, Result.FINISHED, iteration=6)
    lease.release(store, lease.check_held(store, item["restore_id"]))
    assert trial(item).execute(make_context())["iteration"] == 6
    assert jobs.posted == []


# a driver that trials share


@pytest.fixture
def shared(errored):
    """The items of two trials that share a driver."""
    planner = BuildRestorePlanOperator(
        task_id="plan", experiments=str(errored), resume_errored=True, stale_after=0,
        strategy="shared_driver",
    )  # fmt: skip
    return {item["trial_id"]: item for item in planner.execute(make_context())}


def test_trials_that_share_wait_for_one_job_each_for_its_own_outcome(shared, jobs):
    context = make_context()
    one, other = deferred(trial(shared["a3"]), context), deferred(trial(shared["a1"]))
    (posted,) = jobs.posted
    assert {one.submission_id, other.submission_id} == {posted["submission_id"]}
    assert (one.trial_id, one.attempt, one.driver) == ("a3", 1, 1)
    assert (one.is_one_of_many, one.ends_with_job) == (True, False)
    assert (one.shows_output, other.shows_output) == (True, False)
    assert context["ti"].pushed["ray_job_url"].endswith(posted["submission_id"])


def test_the_outcome_of_one_that_shares_is_judged_as_any_other(shared, jobs, store):
    item = shared["a3"]
    deferred(trial(item))
    run_outcome(store, item, Result.FINISHED, iteration=6)
    fired = event(item, driver=1)
    assert trial(item).execute_complete(make_context(), fired)["iteration"] == 6
    assert len(jobs.posted) == 1


def test_one_that_failed_in_a_shared_driver_has_a_job_of_its_own_in_the_retry(shared, jobs, store):
    item = shared["a3"]
    first = deferred(trial(item))
    run_outcome(store, item, Result.FAILED, iteration=4)
    with pytest.raises(AirflowException, match="failed again"):
        trial(item).execute_complete(make_context(), event(item, driver=1))
    again = deferred(trial(item))
    assert (again.attempt, again.driver, again.is_one_of_many) == (2, 0, False)
    assert again.submission_id != first.submission_id


def test_after_the_death_of_a_shared_job_its_trial_runs_alone_and_the_next_goes_on(
    shared, jobs, store
):
    begun, waiting = shared["a3"], shared["a1"]
    deferred(trial(begun))
    deferred(trial(waiting))
    beat(store, Attempt(begun["restore_id"], layout.SHARED_DRIVER))
    beat(store, Attempt(begun["restore_id"], "a3"))
    jobs.end("FAILED", driver_exit_code=-9)
    with pytest.raises(TaskDeferred) as alone:
        trial(begun).execute_complete(make_context(), event(begun, driver=1))
    assert (alone.value.trigger.attempt, alone.value.trigger.driver) == (2, 0)
    with pytest.raises(TaskDeferred) as next_driver:
        trial(waiting).execute_complete(make_context(), event(waiting, driver=1))
    assert (next_driver.value.trigger.attempt, next_driver.value.trigger.driver) == (1, 2)
    assert len(jobs.posted) == 3


def test_one_that_waited_too_long_in_a_shared_job_stops_alone(shared, jobs, store):
    item, context = shared["a3"], make_context()
    deferred(trial(item), context)
    with pytest.raises(TaskDeferralTimeout):
        trial(item).resume_execution(TRIGGER_FAIL_REPR, {"error": "Trigger timeout"}, context)
    assert jobs.stopped == []
    found = Desk(store, item["restore_id"]).read()
    assert [attempt.trial_id for attempt in found.to_stop] == ["a3"]


def test_one_that_runs_alone_after_sharing_is_stopped_with_its_own_job(shared, jobs, store):
    item, context = shared["a3"], make_context()
    deferred(trial(item))
    run_outcome(store, item, Result.INTERRUPTED)
    again = deferred(trial(item), context)
    with pytest.raises(TaskDeferralTimeout):
        trial(item).resume_execution(TRIGGER_FAIL_REPR, {"error": "Trigger timeout"}, context)
    assert jobs.stopped == [again.submission_id]


def test_killing_one_that_shares_in_the_worker_stops_it_alone(shared, jobs, store):
    item = shared["a3"]
    operator = trial(item, deferrable=False)
    looked = []

    def find(name):
        looked.append(name)
        if len(looked) == 3:
            operator.on_kill()
            run_outcome(store, item, Result.INTERRUPTED, iteration=3)
        return jobs.jobs.get(name)

    jobs.find = find
    with pytest.raises(AirflowException, match="was stopped at iteration 3"):
        operator.execute(make_context())
    assert jobs.stopped == []
    assert Desk(store, item["restore_id"]).read().to_stop


def test_the_state_store_of_one_that_shares_has_the_job_of_the_driver(shared, jobs):
    context = {**make_context(), "task_state_store": StateStore()}
    trigger = deferred(trial(shared["a3"]), context)
    (remembered,) = context["task_state_store"].values()
    assert remembered == {"attempt": 1, "submission_id": trigger.submission_id}
    assert deferred(trial(shared["a3"]), context).submission_id == trigger.submission_id
