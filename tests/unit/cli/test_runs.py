"""The trials of `tune-restore restore`, with a launcher that starts nothing."""

import pytest

from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.cli.restore import RestoreOptions, _Runs
from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.restore.prepare import PrepareOptions
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import start_night

OPTIONS = RestoreOptions(
    prepare=PrepareOptions(),
    trainable="m:train",
    param_space=None,
    search_alg=None,
    address=None,
    imports=(),
    parallel=1,
)


class Process:
    """A runner that prints nothing and ends when it is told to."""

    def __init__(self):
        self.stopped = 0

    def lines(self):
        return iter(())

    def wait(self):
        return 0

    def stop(self):
        self.stopped += 1


class Launcher:
    """Remembers what it was to start; the first one cannot be started."""

    def __init__(self, on_start=lambda: None):
        self.started = []
        self.process = Process()
        self._on_start = on_start

    def start(self, request):
        self.started.append(request.trial_id)
        if request.trial_id == "first":
            raise StorageError("the store was away for a moment")
        self._on_start()
        return self.process


@pytest.fixture
def runs(tmp_path):
    """Makes the runs of a started restore."""
    rows = [
        make_row("first", status="ERROR", error=True, last_result_time=2.0),
        make_row("second", status="ERROR", error=True, last_result_time=1.0),
    ]
    store = open_store(str(make_experiment(tmp_path / "x", rows)))
    plan = start_night(store, "r1")
    return lambda launcher: _Runs(store, plan, OPTIONS, launcher, Progress(quiet=True))


def test_a_trial_that_cannot_be_run_keeps_no_other_from_running(runs):
    launcher = Launcher()
    runs(launcher).run_all()
    assert launcher.started == ["first", "second"]
    assert not launcher.process.stopped


def test_a_runner_that_starts_just_when_the_user_stops_is_stopped_too(runs):
    launcher = Launcher()
    made = runs(launcher)
    launcher._on_start = made._stopping.set  # Ctrl-C while the process was being started
    made.run_all()
    assert launcher.process.stopped == 1
