"""The continued search as a task: each outcome of its run, and samples without a searcher."""

from dataclasses import replace

import pytest
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.check import Problem
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferralTimeout,
)
from tests.support.airflow.context import make_context
from tests.support.airflow.names import TaskDeferred
from tests.support.checks import FITS
from tests.support.experiments.built import (
    lose_searcher,
    make_experiment,
    make_row,
    make_state,
)
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import leave_attempt, leave_outcome, start_night

DONE = make_row("done", last_result={"training_iteration": 4, "done": True})
WORDS = "3 samples cannot be drawn without their searcher"


@pytest.fixture
def left(tmp_path):
    """One trial is done, and three samples are left."""
    return make_experiment(tmp_path / "left", [DONE], total_samples=4)


@pytest.fixture
def lost(left):
    """The same, without the searcher that could draw them."""
    return lose_searcher(left, total_samples=4)


def samples(experiment, context=None, **arguments):
    operator = ContinueSearchOperator(
        task_id="continue_search", experiment=experiment, trainable="a:b", **arguments
    )
    return operator.execute(context or make_context())


def plan(experiment, **arguments):
    context = make_context()
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=str(experiment), stale_after=0, **arguments
    )
    return operator.execute(context), context["ti"].pushed


def drawing(store, count, result="finished"):
    """Return what the run does: it draws some samples, and ends like this; None for no outcome."""

    def start(request):
        rows = [DONE, *(make_row(f"new{number}") for number in range(count))]
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        store.put(key, make_state(rows))
        if result is not None:
            leave_outcome(store, request, result, error_type="ValueError", error="no suggestion")

    return start


def ids(store):
    return [trial.trial_id for trial in read_experiment(store).trials]


def test_without_their_searcher_the_task_fails_and_starts_nothing(lost, launcher):
    for night in ("run-1", "run-2"):
        with pytest.raises(AirflowFailException, match=WORDS):
            samples(str(lost), make_context(run_id=night))
    assert launcher.requests == []
    assert not (lost / layout.ROOT).exists()


@pytest.mark.parametrize("where", ["local", "ray"])
@pytest.mark.parametrize("rendered", ["", " ", "None", None])
def test_a_runner_user_that_renders_to_nothing_is_refused_before_anything_is_leased(
    left, launcher, where, rendered
):
    operator = ContinueSearchOperator(
        task_id="continue_search",
        experiment=str(left),
        trainable="a:b",
        launcher=where,
        runner_user="{{ var.value.get('user') }}",
    )
    operator.runner_user = rendered
    with pytest.raises(AirflowFailException, match="is not the name of a user"):
        operator.execute(make_context())
    assert launcher.requests == []
    assert not (left / layout.ROOT).exists()


def test_an_experiment_that_another_restore_works_on_is_skipped(left, launcher):
    start_night(open_store(str(left)), "another")
    with pytest.raises(AirflowSkipException, match="another restore, test another, is restoring"):
        samples(str(left))
    assert launcher.requests == []


def test_a_plan_of_nothing_but_such_samples_is_refused_unleased(lost, launcher):
    _, pushed = plan(lost)
    (outcome,) = pushed["outcomes"]
    assert outcome["outcome"] == "refused"
    assert WORDS in outcome["reason"]
    assert not (lost / layout.ROOT).exists()
    _, pushed = plan(lost, search_alg="m:searcher", trainable="a:b")
    (outcome,) = pushed["outcomes"]
    assert (outcome["experiment"], outcome["outcome"]) == (str(lost), "continue_search")
    (question,) = launcher.checked
    assert [asked.search_alg for asked in question.experiments] == ["m:searcher"]


def test_a_misfit_fails_the_samples_before_anything_is_leased(lost, launcher):
    launcher.answer = replace(FITS, problem=Problem.MISFIT, message="It is another one.")
    with pytest.raises(AirflowFailException, match="It is another one"):
        samples(str(lost), search_alg="m:searcher")
    assert not (lost / layout.ROOT).exists()


def test_a_searcher_that_does_not_fit_is_refused_before_anything_is_leased(lost, launcher):
    launcher.refusal = InvalidInputError("search_alg m:wrong does not fit.")
    with pytest.raises(AirflowFailException, match="m:wrong does not fit"):
        plan(lost, search_alg="m:wrong", trainable="a:b")
    with pytest.raises(AirflowFailException, match="m:wrong does not fit"):
        samples(str(lost), search_alg="m:wrong")
    assert not (lost / layout.ROOT).exists()


@pytest.mark.parametrize("strategy", ["per_trial", "whole_experiment"])
def test_restored_trials_are_committed_and_the_samples_task_fails(tmp_path, launcher, strategy):
    rows = [DONE, make_row("hung", status="PENDING")]
    experiment = make_experiment(tmp_path / "x", rows)
    lose_searcher(experiment, total_samples=5)
    items, pushed = plan(experiment, strategy=strategy)
    assert [item["trial_id"] for item in items] == ["hung"]  # and none for new samples
    (restore,) = pushed["outcomes"]
    store = open_store(str(experiment))
    made = read_plan(store, restore["restore_id"])
    unit = layout.WHOLE_EXPERIMENT if made.is_whole_experiment else "hung"
    leave_attempt(store, made, unit, make_row("hung"))
    commit = CommitRestoreOperator(task_id="commit", outcomes=[restore])
    (output,) = commit.execute(make_context())
    assert (output["failed"], output["samples_left"]) == ([], 3)
    assert WORDS in output["headline"]
    with pytest.raises(AirflowFailException, match=WORDS):
        samples(output)
    assert launcher.requests == []


def test_a_named_searcher_reaches_the_run_which_commits_what_it_drew(lost, launcher):
    store = open_store(str(lost))
    launcher.on_start = drawing(store, 3)
    output = samples(str(lost), search_alg="m:searcher")
    assert launcher.requests[0].search_alg == "m:searcher"
    assert [trial["action"] for trial in output["trials"]] == ["keep", "draw", "draw", "draw"]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("interrupted", "no suggestion"),
        (None, "without recording an outcome"),
        ("refused", "no suggestion"),
    ],
)
def test_a_run_that_breaks_off_fails_and_after_the_last_try_is_committed(
    left, launcher, result, words
):
    store = open_store(str(left))
    launcher.on_start = drawing(store, 1, result)
    is_final = result == "refused"  # a retry would be refused again
    with pytest.raises(AirflowException, match=words):
        samples(str(left), make_context(try_number=1))
    assert ids(store) == (["done", "new0"] if is_final else ["done"])
    if is_final:
        return
    with pytest.raises(AirflowException, match=words):
        samples(str(left), make_context(try_number=2))
    assert [request.attempt for request in launcher.requests] == [1, 2]
    assert ids(store) == ["done", "new0"]
    assert not lease.unreleased(store, but="")


def test_the_exit_of_a_dead_run_is_recorded_with_its_cause(left, launcher):
    store = open_store(str(left))
    launcher.said = ("a line", "Killed")
    launcher.on_start = drawing(store, 1, None)
    with pytest.raises(
        AirflowException, match=r"all trials .*its last lines: a line \| Killed"
    ) as error:
        samples(str(left), make_context(try_number=1))
    assert package_error_behind(error.value).cause == "killed"
    (request,) = launcher.requests
    recorded = AttemptRecords.of(store, request).exit(1)
    assert (recorded.exit_code, recorded.message) == (0, "a line\nKilled")


def test_a_failure_before_anything_was_started_commits_nothing(lost, launcher):
    with pytest.raises(AirflowFailException, match=WORDS):
        samples(str(lost), make_context(try_number=2))
    assert not (lost / layout.ROOT).exists()


@pytest.mark.parametrize(
    ("name", "choice", "ignored"),
    [("train", "False", False), ("train", "True", True), ("old", False, True)],
)
def test_the_check_knows_whether_tuner_pkl_counts(tmp_path, launcher, name, choice, ignored):
    """By choice, or because it belongs to another run: the rows name another trainable."""
    rows = [make_row("t", trainable_name=name)]
    experiment = make_experiment(tmp_path / "left", rows, total_samples=3)
    launcher.refusal = InvalidInputError("no further")
    task = ContinueSearchOperator(
        task_id="continue_search", experiment=str(experiment), trainable="a:b", ignore_tuner=choice
    )
    with pytest.raises(AirflowFailException, match="no further"):
        task.execute(make_context())
    (question,) = launcher.checked
    (asked,) = question.experiments
    assert (asked.trainable_name, asked.ignore_tuner) == (name, ignored)


def test_a_search_that_waited_too_long_stops_its_job(left, monkeypatch):
    jobs = FakeJobs()
    monkeypatch.setattr(RayJobsHook, "jobs", lambda self: jobs)
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", '{"conn_type": "ray_jobs", "host": "head"}')
    with pytest.raises(TaskDeferred) as raised:
        samples(str(left), launcher="ray")
    operator = ContinueSearchOperator(
        task_id="continue_search", experiment=str(left), trainable="a:b", launcher="ray"
    )
    timeout = {"error": "Trigger timeout"}
    with pytest.raises(TaskDeferralTimeout):
        operator.resume_execution(TRIGGER_FAIL_REPR, timeout, make_context())
    assert jobs.stopped == [raised.value.trigger.submission_id]
    with pytest.raises(TaskDeferralTimeout):  # of a task that has started nothing
        operator.resume_execution(TRIGGER_FAIL_REPR, timeout, make_context(run_id="another"))
    assert len(jobs.stopped) == 1
