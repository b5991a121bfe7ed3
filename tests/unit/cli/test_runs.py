"""The trials of `tune-restore restore`, with a launcher that obeys the contract and starts nothing."""

import gc
import logging
import signal
import threading
import time

import pytest

from airflow_tune_restore.cli import runs as cli_runs
from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.cli.runs import TrialRuns
from airflow_tune_restore.exceptions import RayClusterError, StorageError
from airflow_tune_restore.launch.base import Launcher, Run
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import RunnerExit, RunnerProgress
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.ledger import read_failures
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import leave_attempt, leave_outcome, start_night
from tests.support.scripted_runs import FakeLauncher, FakeRun
from tests.support.waiting import PATIENCE_SECONDS

TRIALS = ("first", "second", "third")


@pytest.fixture
def store(tmp_path):
    rows = [
        make_row(name, status="ERROR", error=True, last_result_time=float(-at))
        for at, name in enumerate(TRIALS)
    ]
    return open_store(str(make_experiment(tmp_path / "x", rows)))


@pytest.fixture
def runs(store):
    """Makes the runs of a started restore, with a launcher whose runs follow a script."""
    plan = start_night(store, "r1")

    def make(script, *, parallel=1, quiet=True):
        launcher = FakeLauncher(store, script)
        settings = RunnerSettings(trainable="m:train", can_grow=True)
        return TrialRuns(store, plan, launcher, settings, parallel, Progress(quiet=quiet)), launcher

    return make


@pytest.fixture
def errors():
    """Returns what is logged as an error."""
    shown = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    logger = logging.getLogger("airflow_tune_restore.cli.runs")
    logger.addHandler(handler)
    yield shown
    logger.removeHandler(handler)


@pytest.fixture
def press():
    """Press Ctrl-C in the main thread, from any thread; each press once, whoever asks for it."""
    gc.disable()  # as the program does: what is raised in a callback of the collector is lost
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presses, lock = [], threading.Lock()

    def press(number):
        with lock:
            if number == len(presses) + 1:
                presses.append(number)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    yield press
    signal.signal(signal.SIGINT, before)
    gc.enable()


def finish(store):
    """Returns a script in which every run finishes."""

    def script(request, run):
        leave_outcome(store, request, "finished")
        run.ended.set()

    return script


def test_the_fakes_obey_the_contract():
    launcher: Launcher = FakeLauncher(None, None)
    run: Run = FakeRun(None)
    assert launcher
    assert run


def test_every_trial_is_run_and_its_output_shown(runs, store, capsys):
    made, launcher = runs(finish(store), quiet=False)
    made.run_all()
    assert launcher.started == [(name, 1) for name in TRIALS]
    assert not made.was_stopped
    err = capsys.readouterr().err
    assert "second | a line" in err
    assert "second | finished" in err


def test_a_trial_that_cannot_be_run_keeps_no_other_from_running(runs, store, errors):
    made, launcher = runs(finish(store))
    start = launcher.start

    def start_all_but_the_first(request):
        if request.trial_id == "first":
            raise StorageError("the store was away for a moment")
        return start(request)

    launcher.start = start_all_but_the_first
    made.run_all()
    assert launcher.started == [("second", 1), ("third", 1)]
    assert errors == ["Trial first: the store was away for a moment"]


def test_no_more_than_the_given_number_of_trials_runs_at_the_same_time(runs, store):
    alive, most = set(), []

    def script(request, run):
        alive.add(request.trial_id)
        most.append(len(alive))
        if len(most) < 10:
            return
        leave_outcome(store, request, "finished")
        alive.discard(request.trial_id)
        run.ended.set()

    made, launcher = runs(script, parallel=2)
    made.run_all()
    assert max(most) == 2
    assert len(launcher.started) == 3


def test_a_runner_that_died_is_recorded_and_named(runs, store, errors, capsys):
    made, _ = runs(lambda _, run: run.ended.set(), quiet=False)
    made.run_all()
    assert "first | exited without recording an outcome" in capsys.readouterr().err
    exit_ = AttemptRecords(store, "r1", "first").exit(1)
    assert (exit_.exit_code, exit_.message) == (1, "the last line")
    assert len(errors) == 3
    assert errors[0].startswith("The runner of trial first of ")
    assert "the last line" in errors[0]


def test_a_run_that_never_started_is_named_and_is_not_a_failed_attempt(runs, store, errors):
    def script(request, run):
        run.exit = lambda: RunnerExit(exit_code=None, message="Ray reports FAILED. No such image.")
        run.ended.set()

    made, _ = runs(script)
    made.run_all()
    assert errors[0] == (
        f"Trial first of {store.uri} was not started: Ray reports FAILED. No such image."
    )
    assert read_failures(store, "r1", "first") == ()


def test_a_cause_that_only_the_place_knows_is_recorded(runs, store):
    def script(request, run):
        leave_outcome(store, request, "failed", cause="actor_died", error="The actor died.")
        run.exit = lambda: RunnerExit(exit_code=1, message="A process was killed: OOMKilled")
        run.ended.set()

    made, _ = runs(script)
    made.run_all()
    assert [failure.cause for failure in read_failures(store, "r1", "first")] == ["out_of_memory"]


def test_a_refused_trial_shows_the_sentence_of_its_runner(runs, store, errors):
    def script(request, run):
        leave_outcome(store, request, "refused", error="m:train is not the recorded trainable.")
        run.ended.set()

    made, _ = runs(script)
    made.run_all()
    assert errors[0] == "Trial first: m:train is not the recorded trainable."


def test_a_trial_whose_place_was_too_small_runs_once_more_in_a_larger_one(runs, store, capsys):
    def script(request, run):
        if request.trial_id == "first" and request.attempt == 1:
            leave_outcome(store, request, "interrupted", cause="no_room", resources={"CPU": 3.0})
        else:
            leave_outcome(store, request, "finished")
        run.ended.set()

    made, launcher = runs(script, quiet=False)
    made.run_all()
    assert launcher.started[:2] == [("first", 1), ("first", 2)]
    assert AttemptRecords(store, "r1", "first").request(2).resources == {"CPU": 3.0}
    assert "Trial first: Attempt 1 ran nothing" in capsys.readouterr().err


def test_a_trial_whose_larger_place_was_too_small_again_is_given_up(runs, store, errors):
    def script(request, run):
        size = {"CPU": 2.0 + request.attempt}
        leave_outcome(store, request, "interrupted", cause="no_room", resources=size)
        run.ended.set()

    made, launcher = runs(script)
    made.run_all()
    assert launcher.started[:2] == [("first", 1), ("first", 2)]
    assert len(launcher.started) == 6
    assert errors[0].startswith("Trial first of ")


@pytest.mark.parametrize(
    ("can_grow", "words"),
    [
        (True, "Trial first: An attempt ran out of memory: this one requests 4.0 GiB."),
        (False, "Trial first: An attempt ran out of memory; a private Ray cannot get more of it."),
    ],
)
def test_a_trial_that_ran_out_of_memory_gets_more_where_there_is_more(
    store, capsys, can_grow, words
):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "first", result="failed", cause="out_of_memory", place="")
    launcher = FakeLauncher(store, finish(store))
    settings = RunnerSettings(trainable="m:train", can_grow=can_grow)
    TrialRuns(store, plan, launcher, settings, 1, Progress(quiet=False)).run_all()
    resources = AttemptRecords(store, "r1", "first").request(2).resources
    assert ("memory" in resources) == can_grow
    assert words in capsys.readouterr().err


def test_a_whole_experiment_run_is_one_run_whose_results_are_shown_per_trial(store, capsys):
    plan = start_night(store, "r1", strategy="whole_experiment")

    def script(request, run):
        progress = RunnerProgress(trial_id="second", iteration=4, metrics={"score": 8})
        run.lines.append(progress.to_line())
        leave_outcome(store, request, "finished")
        run.ended.set()

    launcher = FakeLauncher(store, script)
    settings = RunnerSettings(trainable="m:train")
    TrialRuns(store, plan, launcher, settings, 4, Progress(quiet=False)).run_all()
    assert launcher.started == [(layout.WHOLE_EXPERIMENT, 1)]
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert "a line" in lines
    assert "second | iteration 4, score=8" in lines


@pytest.mark.parametrize(("parallel", "cpus"), [(1, 1.0), (2, 2.0), (9, 3.0)])
def test_a_pod_for_a_whole_experiment_run_has_room_for_the_parallel_trials(store, parallel, cpus):
    plan = start_night(store, "r1", strategy="whole_experiment")
    settings = RunnerSettings(trainable="m:train", sized=True)
    launcher = FakeLauncher(store, finish(store))
    TrialRuns(store, plan, launcher, settings, parallel, Progress(quiet=True)).run_all()
    request = AttemptRecords(store, "r1", layout.WHOLE_EXPERIMENT).request(1)
    assert request.resources == {"CPU": cpus}


def test_ctrl_c_stops_all_runs_at_the_same_time_and_starts_no_more(runs, store, press, capsys):
    def script(request, run):
        if len(launcher.polled) == 2:
            press(1)

    made, launcher = runs(script, parallel=2, quiet=False)
    barrier = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def stop_together(run):
        barrier.wait()  # broken if one is stopped after the other
        run.ended.set()

    start = launcher.start

    def start_run(request):
        run = start(request)
        run.stop = lambda: stop_together(run)
        return run

    launcher.start = start_run
    made.run_all()
    assert made.was_stopped
    assert sorted(launcher.started) == [("first", 1), ("second", 1)]
    text = "Stopping. Saving snapshots, then committing what has finished."
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("started", [1, 2])
def test_ctrl_c_while_the_first_runs_are_started_stops_them(runs, monkeypatch, started):
    made, launcher = runs(lambda *_: None, parallel=2)
    start_worker, workers = cli_runs._in_background, []

    def start_worker_and_press(*work):
        workers.append(start_worker(*work))
        if len(workers) == started:
            while len(launcher.runs) < started:
                time.sleep(0.01)
            raise KeyboardInterrupt
        return workers[-1]

    monkeypatch.setattr(cli_runs, "_in_background", start_worker_and_press)
    made.run_all()
    assert made.was_stopped
    assert all(run.stopped for run in launcher.runs.values())
    assert len(launcher.started) == started


def test_a_run_that_starts_while_the_user_stops_is_stopped_too(runs):
    made, launcher = runs(lambda *_: None)
    start = launcher.start

    def start_during_ctrl_c(request):
        made._stopping.set()
        return start(request)

    launcher.start = start_during_ctrl_c
    made.run_all()
    assert launcher.runs["first"].stopped == 1
    assert len(launcher.started) == 1


def test_a_run_that_was_stopped_before_it_began_is_not_a_failed_attempt(runs, store):
    made, launcher = runs(lambda *_: made._stopping.set() or launcher.runs["first"].stop())
    made.run_all()
    assert AttemptRecords(store, "r1", "first").exit(1) is None


def test_a_run_that_cannot_be_stopped_does_not_keep_the_others(runs, press, errors):
    def script(request, run):
        if len(launcher.polled) == 2:
            press(1)
        if "refused" in seen and request.trial_id == "first":
            run.ended.set()

    seen = []
    made, launcher = runs(script, parallel=2)
    start = launcher.start

    def refuse():
        seen.append("refused")
        raise RayClusterError("http://head:8265", "it does not answer")

    def start_run(request):
        run = start(request)
        if request.trial_id == "first":
            run.stop = refuse
        return run

    launcher.start = start_run
    made.run_all()
    assert launcher.runs["second"].stopped == 1
    assert any("it does not answer" in error for error in errors)


def test_a_second_ctrl_c_does_not_wait_and_names_the_commands_that_stop_the_runs(
    runs, store, press, errors
):
    def script(request, run):
        if len(launcher.polled) == 2:
            press(1)

    made, launcher = runs(script, parallel=2)
    start = launcher.start

    def never_stops():
        press(2)
        threading.Event().wait(PATIENCE_SECONDS)

    def start_run(request):
        run = start(request)
        run.stop = never_stops
        return run

    launcher.start = start_run
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made.run_all()
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert sorted(errors[:2]) == [
        "Trial first may still run. To stop it: stop first",
        "Trial second may still run. To stop it: stop second",
    ]
    assert f"The next restore of {store.uri}" in errors[2]
    for run in launcher.runs.values():
        run.ended.set()
