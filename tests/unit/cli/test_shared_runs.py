"""Trials of `tune-restore restore` that share a driver, with a launcher that starts nothing."""

import pytest

from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.cli.runs import TrialRuns
from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.request import RunnerProgress
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.ledger import read_failures
from airflow_tune_restore.restore.shared_driver import MOST_BROKEN
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import beat, leave_outcome, start_night
from tests.support.scripted_runs import FakeLauncher

TRIALS = ("first", "second", "third")
DRIVER = layout.SHARED_DRIVER


@pytest.fixture
def store(tmp_path):
    result = {"training_iteration": 5, "time_this_iter_s": 0.1}
    rows = [
        make_row(name, status="ERROR", error=True, last_result=result, last_result_time=float(-at))
        for at, name in enumerate(TRIALS)
    ]
    return open_store(str(make_experiment(tmp_path / "x", rows)))


@pytest.fixture
def run_all(store):
    """Runs all trials with a launcher whose runs follow a script; returns what it started."""

    def run(script, *, parallel=None, **settings):
        launcher = FakeLauncher(store, script)
        given = RunnerSettings(trainable="m:train", **settings)
        plan = start_night(store, "r1")
        TrialRuns(store, plan, launcher, given, parallel, Progress(quiet=False)).run_all()
        return launcher.started

    return run


def drive(store, request, run, *, ends=None, dies_after=None):
    """Do what a driver does, or an own runner: `ends` holds the results other than finished."""
    if request.trial_id != DRIVER:
        beat(store, request)
        leave_outcome(store, request, "finished")
        run.ended.set()
        return
    for begun, attempt in enumerate(Desk(store, "r1").read().to_run):
        if begun == dies_after:
            run.ended.set()
            return
        beat(store, attempt)
        if dies_after is None:
            progress = RunnerProgress(trial_id=attempt.trial_id, iteration=9, metrics={"score": 8})
            run.lines.append(progress.to_line())
            leave_outcome(store, attempt, (ends or {}).get(attempt.trial_id, "finished"))
            Desk(store, "r1").clear(attempt.trial_id, 1)
    leave_outcome(store, request, "finished")
    run.ended.set()


def test_short_trials_are_run_by_one_driver_and_shown_one_by_one(store, run_all, capsys):
    assert run_all(lambda *of: drive(store, *of)) == [(DRIVER, 1)]
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert "a line" in lines
    assert "second | iteration 9, score=8" in lines
    assert "second | finished" in lines
    requests = [AttemptRecords(store, "r1", name).request(1) for name in TRIALS]
    assert all(request.is_shared for request in requests)
    assert Desk(store, "r1").read().is_closed


@pytest.mark.parametrize(("parallel", "at_once"), [(None, 0), (2, 2)])
def test_the_number_of_parallel_trials_is_a_limit_of_the_driver(store, run_all, parallel, at_once):
    run_all(lambda *of: drive(store, *of), parallel=parallel)
    request = AttemptRecords(store, "r1", DRIVER).request(1)
    assert request.concurrent == at_once


def test_a_trial_that_failed_is_not_run_again(store, run_all, capsys):
    assert run_all(lambda *of: drive(store, *of, ends={"first": "failed"})) == [(DRIVER, 1)]
    assert "first | failed" in capsys.readouterr().err


def test_after_the_death_of_a_driver_those_it_had_begun_run_alone(store, run_all, capsys):
    def script(request, run):
        drive(store, request, run, dies_after=1 if request.attempt == 1 else None)

    started = run_all(script)
    assert started == [(DRIVER, 1), (DRIVER, 2), ("first", 2)]
    shown = capsys.readouterr().err
    assert "Trial first goes on in a driver of its own: its shared driver died." in shown
    assert read_failures(store, "r1", "first") == ()  # nobody knows which trial killed it
    assert {change.note for change in commit_restore(store, "r1").changes} != {"was not started"}


def test_a_driver_that_dies_before_it_begins_a_trial_is_followed_by_another(store, run_all):
    def script(request, run):
        drive(store, request, run, dies_after=0 if request.attempt == 1 else None)

    assert run_all(script) == [(DRIVER, 1), (DRIVER, 2)]
    assert all(AttemptRecords(store, "r1", name).outcome(1) for name in TRIALS)


def test_drivers_that_begin_nothing_are_not_started_without_an_end(store, run_all, caplog):
    started = run_all(lambda *of: drive(store, *of, dies_after=0))
    assert started == [(DRIVER, number) for number in range(1, MOST_BROKEN + 1)]
    assert "the shared driver" in caplog.text


def test_a_driver_that_ends_well_and_begins_nothing_is_not_started_again(store, run_all):
    def script(request, run):
        leave_outcome(store, request, "finished")
        run.ended.set()

    assert run_all(script) == [(DRIVER, 1)]


def test_a_refused_driver_gives_its_reason_once(store, run_all, caplog):
    def script(request, run):
        leave_outcome(store, request, "refused", error="the trainable is called another way")
        run.ended.set()

    assert run_all(script) == [(DRIVER, 1)]
    assert caplog.text.count("the trainable is called another way") == 1


def test_a_trial_that_was_stopped_with_its_driver_goes_on_alone(store, run_all):
    started = run_all(lambda *of: drive(store, *of, ends={"third": "interrupted"}))
    assert started == [(DRIVER, 1), ("third", 2)]


def test_a_store_that_is_away_after_the_driver_is_named_and_the_restore_goes_on(
    store, run_all, caplog, monkeypatch
):
    def list_all(*_):
        raise StorageError("the store was away for a moment")

    monkeypatch.setattr(RestoreRecords, "__init__", list_all)
    assert run_all(lambda *of: drive(store, *of)) == [(DRIVER, 1)]
    assert "Shared driver: the store was away for a moment" in caplog.text
    assert all(AttemptRecords(store, "r1", name).outcome(1) for name in TRIALS)


def test_a_desk_that_cannot_be_closed_starts_no_driver(store, run_all, caplog, monkeypatch):
    def close(_):
        raise StorageError("the store was away for a moment")

    monkeypatch.setattr(Desk, "close", close)
    assert run_all(lambda *of: drive(store, *of)) == []
    assert "Shared driver: the store was away for a moment" in caplog.text


def test_without_a_trial_that_could_be_handed_over_no_driver_is_started(
    store, run_all, caplog, monkeypatch
):
    def hand_over(*_):
        raise StorageError("the store was away for a moment")

    monkeypatch.setattr(Desk, "hand_over", hand_over)
    assert run_all(lambda *of: drive(store, *of)) == []
    assert "Trial first: the store was away for a moment" in caplog.text


def test_the_reason_to_go_on_alone_is_one_sentence(store, run_all, capsys):
    def script(request, run):
        if request.trial_id != DRIVER:
            return drive(store, request, run)
        for attempt in Desk(store, "r1").read().to_run:
            beat(store, attempt)
            error = "its shared driver ended: RuntimeError: the callback broke."
            leave_outcome(store, attempt, "interrupted", error_type="Interrupted", error=error)
        leave_outcome(store, request, "interrupted")
        return run.ended.set()

    run_all(script)
    shown = " ".join(capsys.readouterr().err.split())
    alone = "Trial first goes on in a driver of its own:"
    assert f"{alone} its shared driver ended: RuntimeError: the callback broke. " in shown
