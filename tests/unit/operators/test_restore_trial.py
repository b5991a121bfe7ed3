"""One trial: the request of its runner, its log, and the result of the task for each outcome."""

from dataclasses import asdict
from functools import partial

import pytest
from airflow.sdk import DAG

from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.operators import local_attempt
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.ray_job import job_of
from airflow_tune_restore.protocol.records import is_listed
from airflow_tune_restore.protocol.request import Result, RunnerProgress, RunnerRequest
from airflow_tune_restore.restore.follow import Follower, look_until_ended
from airflow_tune_restore.restore.ledger import read_failures
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
)
from tests.support.airflow.context import make_context
from tests.support.records import PLACE, Attempt, ending, leave_outcome


@pytest.fixture
def store(errored):
    return open_store(str(errored))


def trial(item, **arguments) -> RestoreTrialOperator:
    return RestoreTrialOperator(task_id="trial", trial=item, trainable="a:b", **arguments)


def test_a_finished_trial_returns_a_small_summary(item, launcher, store):
    launcher.on_start = ending(store, Result.FINISHED, iteration=6, metrics={"score": 1.0})
    assert trial(item).execute(make_context()) == {
        "experiment": item["experiment"],
        "trial_id": "a3",
        "final_trial_id": "a3",
        "status": "TERMINATED",
        "iteration": 6,
        "metrics": {"score": 1.0},
        "attempt": 1,
    }


def test_the_runner_is_asked_for_what_the_operator_was_given(item, launcher, store):
    launcher.on_start = ending(store, Result.FINISHED)
    trial(
        item,
        param_space="a:space",
        imports=["c"],
        ray_address="head:6379",
        python="/other/python",
        env={"MINE": "1"},
        runner_user="{{ rendered }}",
        runtime_env={"pip": ["x"]},
    ).execute(make_context())
    (request,) = launcher.requests
    assert (request.trainable, request.param_space, request.imports) == ("a:b", "a:space", ["c"])
    assert (request.address, request.runtime_env) == ("head:6379", {"pip": ["x"]})
    assert launcher.arguments == {
        "python": "/other/python",
        "env": {"MINE": "1"},
        "runner_user": "{{ rendered }}",
    }


@pytest.mark.parametrize("where", ["local", "ray"])
@pytest.mark.parametrize("rendered", ["", " ", "None", None])
def test_a_runner_user_that_renders_to_nothing_is_refused_before_anything_is_claimed(
    item, launcher, where, rendered
):
    operator = trial(item, launcher=where, runner_user="{{ var.value.get('user') }}")
    operator.runner_user = rendered
    with pytest.raises(AirflowFailException, match="is not the name of a user"):
        operator.execute(make_context())
    assert launcher.requests == []


def test_the_runners_lines_are_the_tasks_log(item, launcher, store, capfd):
    progress = RunnerProgress(trial_id="a3", iteration=4, metrics={"score": 0.5})
    launcher.said = ("a plain line", progress.to_line())
    launcher.on_start = ending(store, Result.FINISHED)
    trial(item).execute(make_context())
    log = capfd.readouterr().out
    assert "a plain line" in log
    assert "iteration 4, score=0.5" in log


def test_the_experiments_metric_is_shown_first():
    line = RunnerProgress(trial_id="t", iteration=4, metrics={"b": 1, "a": 0.123456789}).to_line()
    assert describe_line(line, "a") == "iteration 4, a=0.123457, b=1"


def test_a_trial_that_failed_again_fails_the_task_and_may_be_retried(item, launcher, store):
    launcher.on_start = ending(
        store, Result.FAILED, iteration=4, cause="", error_type="MemoryError", error="too much"
    )
    with pytest.raises(AirflowException) as error:
        trial(item).execute(make_context())
    assert not isinstance(error.value, AirflowFailException)
    assert str(error.value) == (
        f"Trial a3 of {item['experiment']} failed again: MemoryError: too much, at {PLACE}, after "
        "iteration 4, in attempt 1; Airflow retries it in 5 min (try 2 of 2), as attempt 2."
    )


@pytest.mark.parametrize("result", [Result.REFUSED, Result.FENCED])
def test_a_failure_that_a_retry_cannot_cure_is_not_retried(item, launcher, store, result):
    launcher.on_start = ending(store, result, error="because")
    with pytest.raises(AirflowFailException, match="because"):
        trial(item).execute(make_context())


def test_the_error_of_a_stopped_trial_names_the_retry(item, launcher, store):
    launcher.on_start = ending(store, Result.INTERRUPTED, iteration=3)
    with pytest.raises(
        AirflowException,
        match="at iteration 3, in attempt 1; its snapshot is saved; Airflow retries it in 5 min",
    ):
        trial(item).execute(make_context())


def test_a_trial_without_room_may_be_retried_and_its_error_has_the_request(item, launcher, store):
    launcher.on_start = ending(
        store,
        Result.INTERRUPTED,
        cause="no_room",
        error_type="NoRoomError",
        error="CPU 64, no node",
    )
    with pytest.raises(
        AirflowException, match=r"found no room: .*CPU 64.* its snapshot is saved"
    ) as e:
        trial(item).execute(make_context())
    assert not isinstance(e.value, AirflowFailException)


def test_the_error_of_a_dead_runner_quotes_its_last_lines(item, launcher):
    launcher.said = ("Killed",)
    with pytest.raises(AirflowException, match=r"without recording an outcome.*Killed"):
        trial(item).execute(make_context())


def test_a_try_that_another_try_overtook_fails_with_that_reason(item, launcher, store):
    def overtake(request) -> None:
        newer = RunnerRequest(**{**asdict(request), "attempt": 2})
        store.create(layout.request_key(newer.restore_id, newer.trial_id, 2), newer.to_json())

    launcher.on_start = overtake
    with pytest.raises(
        AirflowException, match=r"Another try of this task runs trial .* as attempt 2"
    ):
        trial(item).execute(make_context())


def test_a_retry_makes_a_new_attempt(item, launcher, store):
    launcher.on_start = ending(store, Result.FAILED)
    for _ in range(2):
        with pytest.raises(AirflowException):
            trial(item).execute(make_context())
    assert [request.attempt for request in launcher.requests] == [1, 2]


def test_a_retry_of_a_finished_trial_starts_nothing(item, launcher, store):
    launcher.on_start = ending(store, Result.FINISHED, iteration=6)
    first = trial(item).execute(make_context())
    assert trial(item).execute(make_context()) == first
    assert len(launcher.requests) == 1


def test_a_lost_lease_starts_nothing(item, launcher, store):
    lease.release(store, lease.check_held(store, item["restore_id"]))
    with DAG("nightly", schedule=None):
        operator = trial(item)
    with pytest.raises(AirflowFailException, match="has ended: it was released without a commit"):
        operator.execute(make_context())
    assert not launcher.requests


def test_killing_the_task_stops_the_runner_with_time_for_a_snapshot(item, launcher, store):
    operator = trial(item)

    def killed_while_it_prints():
        yield "a line"
        operator.on_kill()  # from a signal handler, and perhaps again
        operator.on_kill()

    launcher.said = killed_while_it_prints()
    launcher.on_start = ending(store, Result.INTERRUPTED)
    with pytest.raises(AirflowException, match="its snapshot is saved"):
        operator.execute(make_context())
    assert launcher.stopped == [30.0]


def test_a_timeout_leaves_no_runner_behind(item, launcher):
    def timed_out():
        yield "a line"
        raise AirflowTaskTimeout

    launcher.said = timed_out()
    with pytest.raises(AirflowTaskTimeout):
        trial(item).execute(make_context())
    assert launcher.stopped == [30.0]


def test_killing_a_task_that_has_started_nothing_does_nothing(item):
    trial(item).on_kill()


@pytest.mark.parametrize("value", [None, "a3", {"trial_id": "a3"}])
def test_an_item_that_is_not_valid_is_shown(value, launcher):
    with pytest.raises(AirflowFailException, match="is not an item of BuildRestorePlanOperator"):
        trial(value).execute(make_context())


def test_an_unknown_launcher_is_refused(item):
    operator = trial(item, launcher="{{ params.launcher }}")
    operator.launcher = "moon"  # as Airflow renders it
    with pytest.raises(AirflowFailException, match="'moon' is not known"):
        operator.execute(make_context())


def test_an_item_of_a_later_release_is_read(item, launcher, store):
    launcher.on_start = ending(store, Result.FINISHED)
    trial({**item, "added_later": 1}).execute(make_context())


def test_mapped_tasks_are_labelled_by_default():
    mapped = RestoreTrialOperator.partial(task_id="t", trainable="a:b").expand(trial=[{}])
    assert mapped.map_index_template == "{{ task.trial['label'] }}"


def test_the_label_can_be_chosen():
    mapped = RestoreTrialOperator.partial(
        task_id="t", trainable="a:b", map_index_template="{{ task.trial['trial_id'] }}"
    ).expand(trial=[{}])
    assert mapped.map_index_template == "{{ task.trial['trial_id'] }}"


def test_the_environment_and_the_imports_are_not_shown_as_rendered_fields():
    assert not {"env", "runtime_env", "imports"} & set(RestoreTrialOperator.template_fields)


def test_the_same_failure_again_is_said_to_be_final(item, launcher, store):
    launcher.on_start = ending(store, Result.FAILED, iteration=3, place="p/t.py:7 in f")
    with pytest.raises(AirflowException) as first:
        trial(item).execute(make_context())
    assert package_error_behind(first.value).final == ""
    with pytest.raises(
        AirflowException, match=r"same place and iteration before \(p/t.py:7"
    ) as second:
        trial(item).execute(make_context())
    assert package_error_behind(second.value).cause == "trainable"
    assert "attempt 1 of restore" in package_error_behind(second.value).final


def test_the_exit_of_a_dead_runner_is_recorded_for_the_ledger(item, launcher, store):
    launcher.said = ("a line", "Killed")
    with pytest.raises(AirflowException) as error:
        trial(item).execute(make_context())
    assert package_error_behind(error.value).cause == "killed"
    (failure,) = read_failures(store, item["restore_id"], "a3")
    assert (failure.cause, failure.message) == (
        "killed",
        "the runner exited with code 0: Killed",
    )


def test_after_running_out_of_memory_a_cluster_is_asked_for_more(item, launcher, store, capfd):
    launcher.on_start = ending(store, Result.FAILED, iteration=3, cause="out_of_memory", place="")
    for _ in range(3):
        with pytest.raises(AirflowException):
            trial(item, ray_address="head:6379").execute(make_context())
    asked = [request.resources.get("memory") for request in launcher.requests]
    assert asked == [None, 4.0 * 1024**3, 8.0 * 1024**3]
    assert "this one requests 8.0 GiB" in capfd.readouterr().out


def test_a_private_ray_is_not_asked_for_more_memory(item, launcher, store, capfd):
    launcher.on_start = ending(store, Result.FAILED, iteration=3, cause="out_of_memory", place="")
    for _ in range(2):
        with pytest.raises(AirflowException):
            trial(item).execute(make_context())
    assert ["memory" in request.resources for request in launcher.requests] == [False, False]
    assert "a private Ray cannot get more of it" in capfd.readouterr().out


@pytest.fixture
def shared(errored, monkeypatch):
    """One trial of a whole-experiment run, whose task looks without pauses."""
    monkeypatch.setattr(local_attempt, "Follower", partial(Follower, sleep=lambda _seconds: None))
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=str(errored), resume_errored=True, stale_after=0,
        strategy="whole_experiment",
    )  # fmt: skip
    return operator.execute(make_context())[0]


def test_the_first_task_of_a_shared_run_starts_it_and_shows_its_output(
    shared, launcher, store, capfd
):
    progress = RunnerProgress(trial_id="a3", iteration=4, metrics={}).to_line()
    launcher.said = ("a plain line", progress)
    launcher.on_start = lambda request: leave_outcome(
        store, Attempt(request.restore_id, "a3"), Result.FINISHED
    )
    assert trial(shared).execute(make_context())["trial_id"] == "a3"
    (request,) = launcher.requests
    assert request.trial_id == layout.WHOLE_EXPERIMENT
    log = capfd.readouterr().out
    assert ("a plain line" in log, "iteration 4" in log) == (True, False)
    assert launcher.stopped == []


def test_the_run_that_a_task_starts_outlives_it_on_a_worker_that_does(shared, launcher, store):
    launcher.on_start = lambda request: leave_outcome(
        store, Attempt(request.restore_id, "a3"), Result.FINISHED
    )
    trial(shared).execute(make_context())
    assert launcher.outlives


@pytest.mark.parametrize(
    "variable", ["AIRFLOW_IS_K8S_EXECUTOR_POD", "AIRFLOW_IS_EXECUTOR_CONTAINER"]
)
def test_a_task_whose_worker_ends_with_it_stays_until_its_run_has_ended(
    shared, launcher, store, monkeypatch, capfd, variable
):
    monkeypatch.setenv(variable, "True")
    launcher.on_start = lambda request: leave_outcome(
        store, Attempt(request.restore_id, "a3"), Result.FINISHED
    )
    looks = iter(range(3))

    def wait(_seconds: float) -> None:
        if next(looks) == 2:  # long after the trial
            leave_outcome(
                store, Attempt(shared["restore_id"], layout.WHOLE_EXPERIMENT), Result.FINISHED
            )

    monkeypatch.setattr(local_attempt, "look_until_ended", partial(look_until_ended, sleep=wait))
    operator = trial(shared)
    assert operator.execute(make_context())["trial_id"] == "a3"
    assert next(looks, "all") == "all"
    assert not launcher.outlives
    assert "Its task stays until the whole-experiment run has ended" in capfd.readouterr().out


def test_a_kill_of_a_task_that_only_stays_stops_no_trial(shared, launcher, store, monkeypatch):
    monkeypatch.setenv("AIRFLOW_IS_EXECUTOR_CONTAINER", "true")
    launcher.on_start = lambda request: leave_outcome(
        store, Attempt(request.restore_id, "a3"), Result.FINISHED
    )
    operator = trial(shared)

    def kill(_seconds: float) -> None:
        operator.on_kill()
        raise AirflowTaskTimeout

    monkeypatch.setattr(local_attempt, "look_until_ended", partial(look_until_ended, sleep=kill))
    with pytest.raises(AirflowTaskTimeout):
        operator.execute(make_context())
    assert not is_listed(store, layout.stop_key(shared["restore_id"], 1, "a3"))
    # the next try has the outcome at once
    assert trial(shared).execute(make_context())["trial_id"] == "a3"
    assert len(launcher.requests) == 1


def test_a_task_that_is_a_ray_job_joins_the_cluster_of_that_job(item, launcher, store, monkeypatch):
    """`auto` in a request would mean that the attempt itself was submitted as a job."""
    launcher.on_start = ending(store, Result.FAILED)
    for address, variable, expected in (
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "", "auto"),
        ("ray://other:10001", "10.0.0.1:6379", "ray://other:10001"),
        (None, "10.0.0.1:6379", None),
    ):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with pytest.raises(AirflowException):
            trial(item, ray_address=address).execute(make_context())
        assert launcher.requests[-1].address == expected
        assert job_of(launcher.requests[-1]) is None or not variable


@pytest.mark.parametrize("result", [Result.FINISHED, Result.FAILED])
def test_a_trial_that_has_ended_in_a_shared_run_starts_no_other(shared, launcher, store, result):
    leave_outcome(store, Attempt(shared["restore_id"], "a3"), result, iteration=6)
    if result is Result.FINISHED:
        assert trial(shared).execute(make_context())["iteration"] == 6
    else:
        with pytest.raises(
            AirflowException, match="the next restore with resume_errored=True resumes it"
        ):
            trial(shared).execute(make_context())
    assert launcher.requests == []
