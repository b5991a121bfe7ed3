"""Trials that share a driver on the worker: one driver, a task for each trial, and who runs alone."""

import pytest

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.request import ProgressTail, Result, RunnerProgress
from airflow_tune_restore.restore import follow_shared
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.plan import read_part
from airflow_tune_restore.restore.shared_driver import hand_over
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowException, AirflowTaskTimeout
from tests.support.airflow.context import make_context
from tests.support.records import Attempt, beat, ending, leave_outcome

DRIVER = layout.SHARED_DRIVER


@pytest.fixture
def store(errored):
    return open_store(str(errored))


@pytest.fixture
def items(errored):
    """The items of two trials that share a driver."""
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(errored),
        resume_errored=True,
        stale_after=0,
        strategy="shared_driver",
    )
    return operator.execute(make_context())


@pytest.fixture
def item(items):
    (found,) = (item for item in items if item["trial_id"] == "a3")
    return found


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(follow_shared, "_FIRST_PAUSE", 0.001)


def trial(item, **arguments) -> RestoreTrialOperator:
    return RestoreTrialOperator(task_id="trial", trial=item, trainable="a:b", **arguments)


def driver_that(store, end):
    """Return what a driver does that takes all from its desk and ends each attempt by `end`."""

    def run(request) -> None:
        if request.trial_id == DRIVER:
            for attempt in Desk(store, request.restore_id).read().to_run:
                end(Attempt(*attempt))
        else:
            leave_outcome(store, request, Result.FINISHED, iteration=6)

    return run


def units(launcher) -> list[tuple[str, int]]:
    return [(request.trial_id, request.attempt) for request in launcher.requests]


def test_the_first_task_starts_the_driver_and_shows_its_output(item, launcher, store, capfd):
    progress = RunnerProgress(trial_id="a3", iteration=4, metrics={}).to_line()
    launcher.said = ("a plain line", progress)
    launcher.on_start = driver_that(store, ending(store, Result.FINISHED, iteration=6))
    assert trial(item).execute(make_context())["attempt"] == 1
    assert units(launcher) == [(DRIVER, 1)]
    assert AttemptRecords(store, item["restore_id"], "a3").request(1).is_shared
    log = capfd.readouterr().out
    assert ("a plain line" in log, "iteration 4" in log) == (True, False)
    assert "Starting shared driver 1. This task shows its output." in log
    assert 'strategy="per_trial" gives each trial a driver of its own' in log
    assert launcher.stopped == []


def lives(store, item, monkeypatch, end) -> None:
    """Let a driver live that ends each attempt by `end` as soon as it lies on the desk."""
    driver = Attempt(item["restore_id"], DRIVER)
    store.create(layout.request_key(*driver), b"{}")
    beat(store, driver)
    lay = Desk.hand_over

    def run(desk, trial_id, attempt) -> None:
        lay(desk, trial_id, attempt)
        end(Attempt(desk.restore_id, trial_id, attempt))

    monkeypatch.setattr(Desk, "hand_over", run)


def test_the_others_attach_and_show_their_own_results(item, launcher, store, capfd, monkeypatch):
    def run(attempt) -> None:
        report = RunnerProgress(trial_id="a3", iteration=5, metrics={})
        tail = ProgressTail(first=0, reports=[report], lines=["it said this"])
        store.put(layout.progress_key(*attempt), tail.to_json())
        leave_outcome(store, attempt, Result.FINISHED, iteration=5)

    lives(store, item, monkeypatch, run)
    assert trial(item).execute(make_context())["iteration"] == 5
    assert units(launcher) == []
    log = capfd.readouterr().out
    assert "iteration 5" in log
    assert log.count("it said this") == 1


def test_one_that_attaches_says_where_the_output_is(item, launcher, store, capfd, monkeypatch):
    lives(store, item, monkeypatch, lambda attempt: beat(store, attempt))
    monkeypatch.setattr(follow_shared, "QUIET_SECONDS", 0.0)
    launcher.on_start = ending(store, Result.FINISHED)
    trial(item).execute(make_context())
    log = capfd.readouterr().out
    assert log.count("Shared driver 1 has it.") == 1
    assert "in the log of the task that started it" in log


def test_a_driver_runs_as_many_at_once_as_there_may_be_tasks(item, launcher, store):
    launcher.on_start = driver_that(store, ending(store, Result.FINISHED))
    trial(item, max_active_tis_per_dagrun=4).execute(make_context())
    assert [request.concurrent for request in launcher.requests] == [4]


def test_without_a_limit_a_driver_runs_as_many_as_fit(item, launcher, store):
    launcher.on_start = driver_that(store, ending(store, Result.FINISHED))
    trial(item).execute(make_context())
    assert [request.concurrent for request in launcher.requests] == [0]


def test_a_retry_of_a_failed_trial_has_a_driver_of_its_own(item, launcher, store, capfd):
    launcher.on_start = driver_that(store, ending(store, Result.FAILED, iteration=4))
    with pytest.raises(AirflowException, match="failed again"):
        trial(item).execute(make_context())
    assert trial(item).execute(make_context())["attempt"] == 2
    assert units(launcher) == [(DRIVER, 1), ("a3", 2)]
    assert not launcher.requests[1].is_shared
    assert "so it has a driver of its own now" in capfd.readouterr().out


def test_a_retry_of_a_finished_trial_starts_nothing(item, launcher, store):
    launcher.on_start = driver_that(store, ending(store, Result.FINISHED))
    first = trial(item).execute(make_context())
    assert trial(item).execute(make_context()) == first
    assert units(launcher) == [(DRIVER, 1)]


def test_the_retry_of_a_task_whose_worker_died_attaches_to_its_attempt(
    item, launcher, store, monkeypatch
):
    plan = read_part(store, item["restore_id"], "a3")
    hand_over(store, plan, "a3", RunnerSettings(trainable="a:b"), log=lambda *words: None)
    lives(store, item, monkeypatch, ending(store, Result.FINISHED))
    assert trial(item).execute(make_context())["attempt"] == 1
    assert units(launcher) == []


def test_a_trial_that_a_dead_driver_had_begun_runs_alone_in_the_same_try(
    item, launcher, store, capfd, monkeypatch
):
    launcher.on_start = driver_that(store, lambda attempt: beat(store, attempt))
    monkeypatch.setattr(follow_shared, "QUIET_SECONDS", 0.0)
    assert trial(item).execute(make_context())["attempt"] == 2
    assert units(launcher) == [(DRIVER, 1), ("a3", 2)]
    log = capfd.readouterr().out
    assert "Trial a3 goes on in a driver of its own: its shared driver died while it ran." in log
    records = AttemptRecords(store, item["restore_id"], "a3")
    assert records.exit(1).message == "its shared driver died"


def test_a_trial_whose_driver_was_stopped_as_a_whole_runs_alone_in_the_same_try(
    item, launcher, store, capfd
):
    stopped = {"error_type": "Interrupted", "error": "stopped; a snapshot was saved"}
    launcher.on_start = driver_that(store, ending(store, Result.INTERRUPTED, **stopped))
    assert trial(item).execute(make_context())["attempt"] == 2
    assert units(launcher) == [(DRIVER, 1), ("a3", 2)]
    assert "stopped; a snapshot was saved" in capfd.readouterr().out


@pytest.mark.parametrize("result", [Result.REFUSED, Result.PAUSED])
def test_other_outcomes_are_judged_as_those_of_a_driver_of_its_own(item, launcher, store, result):
    launcher.on_start = driver_that(store, ending(store, result, error="because"))
    with pytest.raises(AirflowException):
        trial(item).execute(make_context())
    assert units(launcher) == [(DRIVER, 1)]


NO_ROOM = {"cause": "no_room", "error_type": "NoRoomError", "error": "CPU 64"}


def test_a_trial_without_room_on_a_cluster_is_tried_again_by_airflow(item, launcher, store):
    launcher.on_start = driver_that(store, ending(store, Result.INTERRUPTED, **NO_ROOM))
    with pytest.raises(AirflowException, match="found no room"):
        trial(item, ray_address="head:6379").execute(make_context())
    assert units(launcher) == [(DRIVER, 1)]


def test_a_trial_that_is_too_large_for_a_shared_private_ray_has_its_own(
    item, launcher, store, capfd
):
    launcher.on_start = driver_that(store, ending(store, Result.INTERRUPTED, **NO_ROOM))
    assert trial(item).execute(make_context())["attempt"] == 2
    assert units(launcher) == [(DRIVER, 1), ("a3", 2)]
    assert "goes on in a driver of its own: NoRoomError: CPU 64" in capfd.readouterr().out


def test_killing_the_task_stops_its_trial_alone(item, launcher, store):
    operator = trial(item)

    def killed(attempt) -> None:
        operator.on_kill()  # from a signal handler, and perhaps again
        operator.on_kill()
        leave_outcome(store, attempt, Result.INTERRUPTED, iteration=3)

    launcher.on_start = driver_that(store, killed)
    with pytest.raises(AirflowException, match=r"at iteration 3, in attempt 1; its snapshot is"):
        operator.execute(make_context())
    found = Desk(store, item["restore_id"]).read()
    assert [attempt.trial_id for attempt in found.to_stop] == ["a3"]
    assert launcher.stopped == []
    # cleared, it goes on in a driver of its own
    assert trial(item).execute(make_context())["attempt"] == 2
    assert units(launcher) == [(DRIVER, 1), ("a3", 2)]


def test_a_kill_just_after_the_hand_over_reaches_the_driver(item, launcher, store, monkeypatch):
    operator = trial(item)

    def kill(attempt) -> None:
        operator.on_kill()
        leave_outcome(store, attempt, Result.INTERRUPTED, iteration=3)

    lives(store, item, monkeypatch, kill)
    with pytest.raises(AirflowException, match="was stopped at iteration 3"):
        operator.execute(make_context())
    assert Desk(store, item["restore_id"]).read().to_stop
    assert units(launcher) == []


def test_a_timeout_stops_its_trial_alone(item, launcher, store, monkeypatch):
    def timed_out(_seconds=0) -> None:
        raise AirflowTaskTimeout

    launcher.on_start = driver_that(store, lambda attempt: timed_out())
    with pytest.raises(AirflowTaskTimeout):
        trial(item).execute(make_context())
    (stopped,) = Desk(store, item["restore_id"]).read().to_stop
    assert (stopped.trial_id, stopped.attempt) == ("a3", 1)


@pytest.mark.parametrize(
    "variable", ["AIRFLOW_IS_K8S_EXECUTOR_POD", "AIRFLOW_IS_EXECUTOR_CONTAINER"]
)
def test_a_task_shares_nothing_whose_worker_ends_with_it(
    item, launcher, store, monkeypatch, capfd, variable
):
    """A pod of the KubernetesExecutor, a job of the RayExecutor: a detached driver would end with it."""
    monkeypatch.setenv(variable, "True")
    launcher.on_start = driver_that(store, ending(store, Result.FINISHED))
    trial(item).execute(make_context())
    assert units(launcher) == [("a3", 1)]
    assert "a shared one would end with this task's worker" in capfd.readouterr().out


def test_a_trial_that_shares_with_nobody_has_a_driver_of_its_own(errored, launcher, store):
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(errored),
        resume_errored=True,
        stale_after=0,
        strategy="per_trial",
    )
    item = operator.execute(make_context())[0]
    launcher.on_start = ending(store, Result.FINISHED)
    trial(item).execute(make_context())
    assert units(launcher) == [("a3", 1)]
