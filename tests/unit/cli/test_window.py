"""The window of a restore in the shell: its end, what is started, what is stopped, and the exit code."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day

import pytest

from airflow_tune_restore.cli.options import WindowOptions
from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.cli.runs import TrialRuns
from airflow_tune_restore.launch.base import RunState
from airflow_tune_restore.protocol import window
from airflow_tune_restore.protocol.request import RunnerExit
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.storage.fs import open_store
from tests.support.checks import FITS, answer_all
from tests.support.ended_runs import EndedRuns
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import leave_outcome, start_night

HUNG = make_row("hung", status="RUNNING", last_result_time=2.0)
NOW = datetime(2026, 11, 30, 22, 0, tzinfo=UTC)


def test_the_end_is_the_next_such_time_or_so_long_from_now():
    assert WindowOptions().end(NOW) is None
    assert WindowOptions(max_duration=timedelta(hours=3)).end(NOW) == NOW + timedelta(hours=3)
    at = NOW.astimezone() + timedelta(hours=1)
    assert WindowOptions(until=time_of_day(at.hour, at.minute)).end(NOW) == at


@pytest.mark.parametrize(
    ("evening", "morning"),
    [
        ("2026-10-24T22:00+02:00", "2026-10-25T07:00+01:00"),
        ("2026-03-28T22:00+01:00", "2026-03-29T07:00+02:00"),
    ],
)
def test_the_clock_of_this_machine_changes_in_the_night(evening, morning, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        end = WindowOptions(until=time_of_day(7)).end(datetime.fromisoformat(evening))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert end == datetime.fromisoformat(morning)


def test_a_window_beyond_all_years_has_no_end():
    options = WindowOptions(max_duration=timedelta(days=365 * 9000))
    assert options.end(NOW) is None
    assert replace(options, until=time_of_day(7)).end(NOW) == WindowOptions(
        until=time_of_day(7)
    ).end(NOW)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--until", "7 pm"), "7 pm is not a time of day, such as 07:00"),
        (("--until", "25:00"), "25:00 is not a time of day"),
        (("--max-duration", "3x"), "3x is not a duration, such as 3h, 90m or 5400"),
        (("--max-duration", "0h"), "leaves no time"),
        (("--max-duration", "h"), "h is not a duration"),
    ],
)
def test_what_is_no_time_is_refused(tune_restore, tmp_path, option, words):
    code, _, err = tune_restore("restore", tmp_path, "--trainable", "m:t", *option)
    assert code == 2
    assert words in " ".join(err.split())


class Paused(EndedRuns):
    """Its runners are paused by their window."""

    def __init__(self, store):
        super().__init__()
        self._store = store
        self.requests = []

    def check(self, request, timeout):
        del timeout
        return answer_all(request, FITS)

    def settings(self, settings):
        return settings

    def start(self, request):
        self.requests.append(request)
        leave_outcome(self._store, request, "paused", iteration=3)
        return self


@pytest.mark.parametrize("option", [("--max-duration", "3h"), ("--until", "23:59:59")])
def test_paused_trials_are_committed_and_the_exit_code_is_1(
    tune_restore, tmp_path, monkeypatch, option
):
    experiment = make_experiment(tmp_path / "x", [make_row("done"), HUNG], total_samples=5)
    launcher = Paused(open_store(str(experiment)))
    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0", "--json")
    code, out, err = tune_restore(*command, *option)
    assert code == 1, err
    found = json.loads(out)
    assert (found["failed"], found["paused"]) == ([], ["hung"])
    assert all(window.parse_end(request.pause_at) for request in launcher.requests)


class WaitingRun:
    """A job that waits for resources until it is stopped."""

    def __init__(self):
        self.stopped = 0

    def poll(self):
        time.sleep(0.01)
        return RunState.ENDED if self.stopped else RunState.WAITING

    def output(self):
        return iter(())

    def stop(self):
        self.stopped += 1

    def exit(self):
        return RunnerExit()


def test_a_run_that_still_waits_is_stopped_and_no_further_one_is_started(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(window, "FOLLOWED_SECONDS", 0.0)
    rows = [make_row(name, status="ERROR", error=True) for name in ("first", "second")]
    store = open_store(str(make_experiment(tmp_path / "x", rows)))
    soon = datetime.now(UTC) + timedelta(seconds=1)
    plan = replace(start_night(store), pause_at=soon.isoformat())
    run = WaitingRun()

    class OneRun:
        def start(self, request):
            return run

    settings = RunnerSettings(trainable="m:train")
    TrialRuns(store, plan, OneRun(), settings, 1, Progress(quiet=False)).run_all()
    shown = capsys.readouterr().err
    assert run.stopped == 1
    for name in ("first", "second"):
        assert f"Trial {name} of {store.uri} is not run any further: the window" in " ".join(
            shown.split()
        )
    assert "error" not in shown
