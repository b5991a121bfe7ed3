"""The end of a window, task by task: what is not started any more, what is paused, what is committed."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG

from airflow_tune_restore.hooks import window
from airflow_tune_restore.hooks.window import Window
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from airflow_tune_restore.version_compat import AirflowException, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row, make_state
from tests.support.records import ending, leave_attempt, leave_outcome

HOUR = timedelta(hours=1)
NEXT = "airflow dags trigger nightly"


def context(*, began: timedelta, **identity):
    """Return the context of a task whose DAG run began so long ago."""
    made = make_context(**identity)
    made["dag"] = SimpleNamespace(timezone=UTC)
    dag_run = made["dag_run"]
    dag_run.dag_id, dag_run.run_id, dag_run.conf = "nightly", "scheduled__x", {}
    dag_run.run_after = datetime.now(UTC) - began
    return made


def plan(experiment, *, began=timedelta(), try_number=1, **arguments):
    """Run a plan task with a window of one hour; return its items and what it pushed."""
    made = context(began=began, try_number=try_number)
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(experiment),
        resume_errored=True,
        stale_after=0,
        max_duration=HOUR,
        **arguments,
    )
    try:
        return operator.execute(made), made["ti"].pushed
    except AirflowSkipException as error:
        return error, made["ti"].pushed


@pytest.fixture
def store(errored):
    return open_store(str(errored))


@pytest.fixture
def after(monkeypatch):
    """Let the window end: by the clock of the store, and by that of the worker."""

    def end() -> None:
        later = datetime.now(UTC) + 2 * HOUR
        monkeypatch.setattr(window, "now", lambda: later)
        monkeypatch.setattr("airflow_tune_restore.storage.local.LocalStore.now", lambda _: later)

    return end


def trial(item, **arguments):
    return RestoreTrialOperator(task_id="trial", trial=item, trainable="a:b", **arguments)


def test_a_window_without_an_end_asks_for_no_dag_run():
    assert Window.of({}, None, None) == Window()
    assert (Window().is_over, Window().seconds_left, str(Window())) == (
        False,
        float("inf"),
        "no end",
    )


def test_the_plan_of_a_restore_has_the_end_of_the_window(errored, store):
    (item, _), _ = plan(errored)
    made = read_plan(store, item["restore_id"])
    assert HOUR - timedelta(minutes=5) < datetime.fromisoformat(made.pause_at) - datetime.now(UTC)


def test_a_plan_after_the_end_starts_nothing_and_names_the_next_dag_run(errored, store):
    skipped, pushed = plan(errored, began=2 * HOUR)
    assert "Nothing to restore" in str(skipped)
    (outcome,) = pushed["outcomes"]
    assert (outcome["outcome"], outcome["waiting"]) == ("waiting", 2)
    assert "the window of this one ended at " in outcome["reason"]
    assert outcome["reason"].endswith(f"to start one now: {NEXT}")
    assert not (errored / layout.ROOT).exists()


def test_the_last_table_has_what_waits_after_the_end(errored, capfd):
    _, pushed = plan(errored, began=2 * HOUR)
    made = context(began=2 * HOUR)
    CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"]).execute(made)
    assert made["ti"].pushed["totals"]["waiting_trials"] == 2
    assert "1 experiment: 1 waiting; 2 trials wait for the next DAG run" in capfd.readouterr().out


def test_a_restore_that_an_earlier_try_has_started_goes_on_to_its_commit(errored, after):
    items, _ = plan(errored)
    after()
    again, pushed = plan(errored, try_number=2)
    assert again == items
    assert [each["outcome"] for each in pushed["outcomes"]] == ["restored"]


@pytest.mark.usefixtures("launcher")
def test_a_trial_after_the_end_is_skipped_with_the_reason_in_its_log(errored, after, caplog, capfd):
    items, _ = plan(errored)
    after()
    with pytest.raises(AirflowSkipException, match="is not run any further: the window of"):
        trial(items[0]).execute(make_context())
    shown = capfd.readouterr().out + caplog.text
    assert "is not run any further: the window of this restore ended at" in shown


def test_a_trial_that_paused_is_skipped_and_so_is_a_retry(errored, launcher, store):
    items, _ = plan(errored)
    launcher.on_start = ending(store, Result.PAUSED, iteration=5)
    for _ in range(2):
        with pytest.raises(AirflowSkipException, match="was paused at iteration 5: the window of"):
            trial(items[0]).execute(make_context())
    assert len(launcher.requests) == 1


def test_a_trial_that_was_stopped_when_the_window_was_over_is_paused(
    errored, launcher, store, after
):
    items, _ = plan(errored)

    def start(request):
        leave_outcome(store, request, Result.INTERRUPTED, iteration=4)
        after()

    launcher.on_start = start
    with pytest.raises(AirflowSkipException, match="was paused at iteration 4"):
        trial(items[0]).execute(make_context())


@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize("result", [Result.FAILED, Result.FINISHED])
def test_an_end_of_an_earlier_try_wins_over_the_window(errored, store, after, result):
    items, _ = plan(errored)
    leave_attempt(store, read_plan(store, items[0]["restore_id"]), "a3", result=result, iteration=6)
    after()
    if result is Result.FINISHED:
        assert trial(items[0]).execute(make_context())["iteration"] == 6
    else:
        with pytest.raises(AirflowException, match="because the window of its restore has end"):
            trial(items[0]).execute(make_context())


def test_the_commit_and_its_table_show_what_is_paused(errored, launcher, store, capfd):
    items, pushed = plan(errored)
    launcher.on_start = ending(store, Result.PAUSED, iteration=5)
    for item in items:
        with pytest.raises(AirflowSkipException):
            trial(item).execute(make_context())
    made = make_context()
    commit = CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"])
    (output,) = commit.execute(made)
    assert (output["failed"], output["paused"]) == ([], ["a3", "a1"])
    totals = made["ti"].pushed["totals"]
    assert totals["experiments"] == {"trials_paused": 1}
    assert (totals["trials_run"], totals["trials_finished"], totals["trials_paused"]) == (2, 0, 2)
    assert "1 experiment: 1 paused; 2 trials paused" in capfd.readouterr().out


# the search


@pytest.fixture
def left(tmp_path):
    """One trial is done, and three samples are left."""
    return make_experiment(tmp_path / "left", [make_row("done")], total_samples=4)


def samples(experiment, made):
    operator = ContinueSearchOperator(
        task_id="continue_search", experiment=str(experiment), trainable="a:b", max_duration=HOUR
    )
    return operator.execute(made)


def test_no_search_is_continued_after_the_end(left, launcher):
    with pytest.raises(AirflowSkipException, match="the window of this restore ended at"):
        samples(left, context(began=2 * HOUR))
    assert launcher.requests == []
    assert not (left / layout.ROOT).exists()


def drawing(store, result):
    def start(request):
        rows = [make_row("done"), make_row("new", last_result={"training_iteration": 3})]
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        store.put(key, make_state(rows))
        leave_outcome(store, request, result)

    return start


def test_a_search_that_paused_is_committed_at_once_and_its_task_is_skipped(left, launcher, capfd):
    store = open_store(str(left))
    launcher.on_start = drawing(store, Result.PAUSED)
    with pytest.raises(AirflowSkipException, match=r"The run of .* is not continued"):
        samples(left, context(began=timedelta()))
    assert len(list(left.glob("experiment_state-*.json"))) == 2  # noqa: PLR2004  one is the commit's
    assert "sample drawn now finished" in capfd.readouterr().out


def test_a_search_whose_worker_died_is_committed_by_the_try_after_the_end(left, launcher, after):
    store = open_store(str(left))

    def die(request):
        drawing(store, Result.INTERRUPTED)(request)
        raise KeyboardInterrupt

    launcher.on_start = die
    with pytest.raises(KeyboardInterrupt):
        samples(left, context(began=timedelta()))
    after()
    with pytest.raises(AirflowSkipException, match="is not continued: the window"):
        samples(left, context(began=timedelta(), try_number=2))
    assert len(list(left.glob("experiment_state-*.json"))) == 2  # noqa: PLR2004


# the group


@pytest.mark.parametrize("launcher_name", ["local", "kubernetes"])
def test_the_window_of_a_group_reaches_all_that_start_or_wait(launcher_name):
    with DAG("d") as dag:
        TuneRestoreTaskGroup(
            trainable="m:train",
            prefix="/x",
            launcher=launcher_name,
            until="07:00",
            max_duration=60,
            repeat=True,
        )
    found = {
        name: dag.get_task(f"restore.{name}")
        for name in ("find", "plan", "continue_search", "repeat")
    }
    for name, task in found.items():
        given = task.partial_kwargs if name == "continue_search" else vars(task)
        assert (given["until"], given["max_duration"]) == ("07:00", 60), name
