"""A sweep as a task: its script, what a retry does with what it left, and what is refused."""

import copy
import os
from datetime import timedelta
from functools import partial

import pytest
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.run_tune_sweep import RunTuneSweepOperator
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.restore import sweep as sweeps
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferralTimeout,
)
from tests.support.airflow.context import make_context
from tests.support.airflow.names import DagSerialization, TaskDeferred
from tests.support.experiments.built import make_experiment, make_row, make_state
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import beat, leave_outcome

DONE = make_row("done", last_result={"training_iteration": 4, "done": True})
BAD = make_row("bad", status="ERROR", last_result={"training_iteration": 2})
HUNG = make_row("hung", status="RUNNING", last_result={"training_iteration": 2})
HEALED = make_row("bad", last_result={"training_iteration": 4, "done": True})


@pytest.fixture
def place(tmp_path):
    return tmp_path / "sweeps" / "exp"


@pytest.fixture
def store(place):
    return open_store(str(place))


def operator(place, **arguments):
    given = {"entrypoint": "python sweep.py", "trainable": "a:b", **arguments}
    return RunTuneSweepOperator(task_id="sweep", experiment=str(place), **given)


def run(place, try_number=1, run_id="run-1", max_tries=3, **arguments):
    context = make_context(run_id=run_id, try_number=try_number, max_tries=max_tries)
    return operator(place, **arguments).execute(context)


def leaving(place, *rows, result="finished", **outcome):
    """Return what the script does: it makes the experiment, and ends like this."""

    def start(request):
        make_experiment(place, list(rows))
        if result is not None:
            leave_outcome(open_store(str(place)), request, result, **outcome)

    return start


def restoring(store, *rows, result="finished", **outcome):
    """Return what the whole-experiment run of a restore does."""

    def start(request):
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        store.put(key, make_state(list(rows)))
        leave_outcome(store, request, result, **outcome)

    return start


def actions(launcher):
    return [str(request.action) for request in launcher.requests]


def test_a_sweep_that_finishes_needs_no_restore_and_gives_its_lease_back(place, store, launcher):
    launcher.on_start = leaving(place, DONE)
    returned = run(place)
    (request,) = launcher.requests
    assert (request.action, request.entrypoint) == ("sweep", "python sweep.py")
    assert request.restore_id.startswith("sweep-airflow-")
    assert (returned["experiment"], returned["restore_id"]) == (str(place), None)
    assert (returned["trials_run"], returned["failed"], returned["samples_left"]) == (1, [], 0)
    assert lease.unreleased(store, but="") == []


def test_it_returns_what_a_commit_returns_but_for_the_changes_of_trials(place, launcher):
    launcher.on_start = leaving(place, DONE)
    own = run(place)
    launcher.on_start = leaving(place.with_name("b"), DONE, BAD)
    with pytest.raises(AirflowException):
        run(place.with_name("b"))
    launcher.on_start = restoring(open_store(str(place.with_name("b"))), DONE, HEALED)
    restored = run(place.with_name("b"), 2)
    assert restored.keys() - own.keys() == {"trials", "metric"}
    assert own.keys() <= restored.keys()


def test_the_trainable_is_checked_before_the_script_is_started(place, store, launcher):
    launcher.refusal = InvalidInputError("a:b cannot be imported.")
    with pytest.raises(AirflowFailException, match="a:b cannot be imported"):
        run(place)
    assert launcher.requests == []
    assert store.list_dir() == []


def test_trials_that_fail_or_are_cut_off_fail_the_task_whatever_the_exit_code(place, launcher):
    for rows, words in [((DONE, BAD), r"bad \(ERROR\)"), ((DONE, HUNG), r"hung \(RUNNING\)")]:
        for result in ("finished", "failed", "interrupted"):
            there = place.with_name(f"{words[:3]}-{result}")
            launcher.on_start = leaving(there, *rows, result=result, error="the exit code was 7")
            match = rf"1 of 2 trials finished, and 1 did not: {words}"
            with pytest.raises(AirflowException, match=match) as raised:
                run(there)
            assert not isinstance(raised.value, AirflowFailException)
            assert "Airflow retries it" in str(raised.value)
            assert lease.unreleased(open_store(str(there)), but="") == []


def test_a_retry_restores_all_trials_in_one_run_and_succeeds(place, store, launcher):
    launcher.on_start = leaving(place, DONE, BAD, result="failed")
    with pytest.raises(AirflowException):
        run(place)
    launcher.on_start = restoring(store, DONE, HEALED)
    returned = run(place, 2)
    assert actions(launcher) == ["sweep", "run"]
    plan = read_plan(store, returned["restore_id"])
    assert plan.is_whole_experiment
    assert launcher.requests[1].entrypoint is None
    assert launcher.requests[1].trainable == "a:b"
    assert returned["failed"] == []
    assert lease.unreleased(store, but="") == []


def test_a_try_after_everything_has_finished_starts_nothing(place, store, launcher):
    launcher.on_start = leaving(place, DONE)
    run(place)
    assert run(place, 2)["state_file"]
    assert len(launcher.requests) == 1


def test_a_trial_that_fails_again_is_committed_and_fails_the_task(place, store, launcher):
    launcher.on_start = leaving(place, DONE, BAD)
    with pytest.raises(AirflowException):
        run(place)
    further = make_row("bad", status="ERROR", last_result={"training_iteration": 3})
    launcher.on_start = restoring(store, DONE, further)
    with pytest.raises(AirflowException, match=r"has not finished.*1 did not \(bad\)"):
        run(place, 2)
    launcher.on_start = restoring(store, DONE, HEALED)
    assert run(place, 3)["failed"] == []
    assert len({request.restore_id for request in launcher.requests}) == 3


def test_errored_trials_stay_as_they_are_if_the_user_wants_it(place, launcher):
    launcher.on_start = leaving(place, DONE, BAD)
    with pytest.raises(AirflowException):
        run(place, resume_errored=False)
    with pytest.raises(AirflowFailException, match="cannot be finished by a restore"):
        run(place, 2, resume_errored=False)
    assert len(launcher.requests) == 1


def test_a_restore_that_breaks_off_is_continued_and_committed_after_the_last_try(
    place, store, launcher
):
    launcher.on_start = leaving(place, DONE, BAD)
    with pytest.raises(AirflowException):
        run(place)
    launcher.on_start = restoring(store, DONE, HUNG_BAD, result="interrupted", error="stopped")
    with pytest.raises(AirflowException, match="stopped"):
        run(place, 2)
    with pytest.raises(AirflowException, match="stopped"):
        run(place, 4)
    one, two = launcher.requests[1:]
    assert (one.restore_id, one.attempt) == (two.restore_id, 1)
    assert two.attempt == 2
    assert lease.unreleased(store, but="") == []


HUNG_BAD = make_row("bad", status="RUNNING", last_result={"training_iteration": 3})


def test_a_script_that_fails_after_all_trials_have_finished_fails_for_good(place, launcher):
    launcher.on_start = leaving(place, DONE, result="failed", error="the exit code was 3")
    for try_number in (1, 2):
        with pytest.raises(AirflowFailException, match="its script failed after that") as raised:
            run(place, try_number)
        assert "the exit code was 3" in str(raised.value)
    assert len(launcher.requests) == 1


def test_a_script_that_makes_no_experiment_is_told_where_it_was_looked_for(place, launcher, store):
    launcher.on_start = partial(leave_outcome, store)
    with pytest.raises(AirflowFailException, match=r"is not an experiment\. Let experiment="):
        run(place)


@pytest.mark.parametrize("has_tuner", [True, False])
def test_a_script_that_died_before_its_first_trial_is_started_again(
    place, store, launcher, has_tuner
):
    def die(request):
        if has_tuner:
            store.put(layout.TUNER_FILE, b"not read")
        leave_outcome(store, request, "failed", error="no")

    launcher.on_start = die
    with pytest.raises(AirflowException, match="holds no trial: ValueError: no"):
        run(place)
    launcher.on_start = leaving(place, DONE)
    run(place, 2)
    assert actions(launcher) == ["sweep", "sweep"]


def test_a_runner_that_died_gives_its_lease_back_and_is_restored_by_the_next_try(
    place, store, launcher
):
    launcher.on_start = leaving(place, DONE, HUNG, result=None)
    with pytest.raises(AirflowException, match="without recording an outcome"):
        run(place)
    assert lease.unreleased(store, but="") == []
    healed = make_row("hung", last_result={"training_iteration": 4, "done": True})
    launcher.on_start = restoring(store, DONE, healed)
    assert run(place, 2)["failed"] == []


def test_a_runner_of_a_lost_worker_is_waited_for_and_never_started_again(
    place, store, launcher, monkeypatch
):
    """The first try was killed with its worker: nobody has recorded how its runner ended."""

    class WorkerLost(BaseException):
        pass

    def lose(request):
        beat(store, request)
        make_experiment(place, [DONE, HUNG])
        raise WorkerLost

    launcher.on_start = lose
    with pytest.raises(WorkerLost):
        run(place)
    watched = []
    real = sweeps.wait_until_all_over

    def end(store, attempts, **options):
        watched.append((list(attempts), len(lease.unreleased(store, but=""))))
        for attempt in attempts:
            leave_outcome(store, attempt, "interrupted")
        return real(store, attempts, **options)

    monkeypatch.setattr(sweeps, "wait_until_all_over", end)
    healed = make_row("hung", last_result={"training_iteration": 4, "done": True})
    launcher.on_start = restoring(store, DONE, healed)
    run(place, 2)
    (first, _) = watched
    assert [attempt.attempt for attempt in first[0]] == [1]
    assert first[1] == 1  # it may still save its snapshot, so it keeps its lease meanwhile
    assert actions(launcher) == ["sweep", "run"]


def test_a_running_sweep_is_left_alone_by_recoveries_and_by_other_sweeps(place, store, launcher):
    def look(request):
        make_experiment(place, [DONE, HUNG])
        (report,) = scan(store, stale_after=timedelta(0))
        assert (report.health, request.restore_id in report.reason) == ("running", True)
        assert report.reason.startswith(f"sweep {request.restore_id} of DAG nightly, run run-1")
        plan = BuildRestorePlanOperator(task_id="plan", experiments=str(place), stale_after=0)
        with pytest.raises(AirflowSkipException, match=r"its own sweep, DAG nightly, run run-1"):
            plan.execute(make_context(run_id="another"))
        with pytest.raises(AirflowException, match=r"is the running sweep of DAG nightly"):
            run(place, run_id="another", stale_after=0)
        leave_outcome(store, request, "finished")

    launcher.on_start = look
    with pytest.raises(AirflowException, match=r"hung \(RUNNING\)"):
        run(place)


def test_an_unfinished_experiment_of_another_process_is_restored_once_it_is_dead(
    place, store, launcher
):
    make_experiment(place, [DONE, HUNG])
    with pytest.raises(AirflowException, match="is running") as raised:
        run(place)
    assert not isinstance(raised.value, AirflowFailException)
    healed = make_row("hung", last_result={"training_iteration": 4, "done": True})
    launcher.on_start = restoring(store, DONE, healed)
    run(place, stale_after=0)
    assert actions(launcher) == ["run"]


def test_a_finished_experiment_of_another_dag_run_fails_for_good(place, launcher):
    launcher.on_start = leaving(place, DONE)
    run(place)
    with pytest.raises(AirflowFailException, match=r"Give each DAG run a directory of its own"):
        run(place, run_id="run-2")
    assert len(launcher.requests) == 1


def test_literals_are_refused_when_the_dag_is_parsed():
    for wrong in ({"entrypoint": " "}, {"trainable": None}, {"resume_errored": "maybe"}):
        with pytest.raises(InvalidInputError):
            operator("/x", **wrong)
    assert operator("/x", trainable=None, recipes=True).trainable is None


def test_a_launcher_from_a_template_cannot_be_kubernetes(place, launcher, monkeypatch):
    from airflow_tune_restore.launch import local
    from airflow_tune_restore.operators import attempt_task

    monkeypatch.setattr(attempt_task, "build_launcher", local.build_launcher)
    sweep = operator(place, launcher="{{ params.launcher }}")
    sweep.launcher = "kubernetes"
    with pytest.raises(AirflowFailException, match="RunTuneSweepKubernetesOperator"):
        sweep.execute(make_context())


def test_for_pods_it_makes_the_operator_of_pods():
    from airflow_tune_restore.operators.kubernetes.run_tune_sweep import (
        RunTuneSweepKubernetesOperator,
    )

    made = operator("/x", launcher="kubernetes", image="i", namespace="n")
    assert type(made) is RunTuneSweepKubernetesOperator
    assert (made.image, made.entrypoint) == ("i", "python sweep.py")
    for each in (made, operator("/x")):
        for copied in (copy.copy(each), copy.deepcopy(each)):
            assert type(copied) is type(each)
            assert (copied.task_id, copied.entrypoint) == ("sweep", "python sweep.py")


def test_both_survive_mapping_and_serialization():
    from airflow.sdk import DAG

    given = {"entrypoint": "x", "trainable": "a:b"}
    with DAG("sweeps", schedule=None) as dag:
        for launcher in ("local", "kubernetes"):
            RunTuneSweepOperator.partial(
                task_id=f"m_{launcher}", launcher=launcher, **given
            ).expand(experiment=["/a", "/b"])
            RunTuneSweepOperator(
                task_id=launcher, launcher=launcher, experiment="/{{ ts_nodash }}", **given
            )
    types = {task.task_id: task.task_type for task in dag.tasks}
    pods = "RunTuneSweepKubernetesOperator"
    assert {types["m_kubernetes"], types["kubernetes"]} == {pods}
    assert {types["m_local"], types["local"]} == {"RunTuneSweepOperator"}
    assert DagSerialization.to_dict(dag)


def ray(monkeypatch):
    jobs = FakeJobs()
    monkeypatch.setattr(RayJobsHook, "jobs", lambda self: jobs)
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", '{"conn_type": "ray_jobs", "host": "head"}')
    return jobs


def test_a_sweep_as_a_ray_job_is_stopped_by_sigint_and_attached_to_while_it_lives(
    place, store, monkeypatch
):
    jobs = ray(monkeypatch)
    for try_number in (1, 2):
        with pytest.raises(TaskDeferred) as raised:
            run(place, try_number, launcher="ray")
        make_experiment(place, [DONE, HUNG])
    (submitted,) = jobs.posted
    trigger = raised.value.trigger
    assert trigger.submission_id == submitted["submission_id"]
    assert submitted["runtime_env"]["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"


def test_the_outcome_of_a_job_is_judged_when_the_trigger_has_fired(place, store, monkeypatch):
    jobs = ray(monkeypatch)
    with pytest.raises(TaskDeferred) as raised:
        run(place, launcher="ray")
    trigger = raised.value.trigger
    make_experiment(place, [DONE])
    records = AttemptRecords(store, trigger.restore_id, trigger.trial_id)
    leave_outcome(store, records.request(1), "finished")
    jobs.end()
    event = {"restore_id": trigger.restore_id, "attempt": 1}
    returned = operator(place, launcher="ray").execute_complete(make_context(), event)
    assert (returned["restore_id"], returned["trials_run"]) == (None, 1)
    assert lease.unreleased(store, but="") == []


def test_a_sweep_that_takes_longer_than_its_execution_timeout_is_stopped(place, monkeypatch):
    jobs = ray(monkeypatch)
    with pytest.raises(TaskDeferred) as raised:
        run(place, launcher="ray")
    timeout = {"error": "Trigger timeout"}
    with pytest.raises(TaskDeferralTimeout):
        operator(place, launcher="ray").resume_execution(TRIGGER_FAIL_REPR, timeout, make_context())
    assert jobs.stopped == [raised.value.trigger.submission_id]


def test_a_script_that_cannot_be_started_gives_its_lease_back(place, store, launcher):
    def refuse(_request):
        raise InvalidInputError("Cannot start /no/python.")

    launcher.on_start = refuse
    with pytest.raises(AirflowFailException, match="Cannot start /no/python"):
        run(place)
    assert lease.unreleased(store, but="") == []


def test_a_driver_that_was_started_by_hand_between_two_tries_is_waited_for(place, store, launcher):
    launcher.on_start = leaving(place, DONE, HUNG)
    with pytest.raises(AirflowException):
        run(place)
    later = store.now().timestamp() + 60
    for path in place.glob("experiment_state-*.json"):
        os.utime(path, (later, later))
    with pytest.raises(AirflowException, match="is running") as raised:
        run(place, 2)
    assert not isinstance(raised.value, AirflowFailException)
    healed = make_row("hung", last_result={"training_iteration": 4, "done": True})
    launcher.on_start = restoring(store, DONE, healed)
    run(place, 3, stale_after=0)
    assert actions(launcher) == ["sweep", "run"]
