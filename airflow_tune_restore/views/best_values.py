"""The best value of each experiment's metric, read in the background: a list of them does not wait.

It is the best `metric` in the last results of the trials, as in the tables of this package: what a trial
ended with, not the best that it ever reported.
"""

import logging
import threading
from collections import OrderedDict, deque
from datetime import datetime
from typing import NamedTuple

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.experiment import RecordedTuner
from airflow_tune_restore.experiments.health import ExperimentReport
from airflow_tune_restore.experiments.parameters import read_metric
from airflow_tune_restore.experiments.raw_row import RawRow
from airflow_tune_restore.experiments.read import StateReader
from airflow_tune_restore.experiments.state import Keep, State
from airflow_tune_restore.experiments.trial import Trial
from airflow_tune_restore.experiments.tuner_file import describe_doubt, read_tuner
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.views.showable import finite

MAX_ENTRIES = 20_000
"""Experiments whose best values a process keeps; the first to go is the one asked for least lately."""

THREADS = 4
"""State files are decoded by the processor, which the requests of people need, too."""

log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The metric of an experiment, and the best value of it; None where that is unknown."""

    metric: str | None = None
    mode: str | None = None
    value: float | int | None = None
    trial_id: str | None = None


_UNKNOWN = Best()

_Version = tuple[str, datetime | None]
"""State file and last write: as long as they are the same, so is the best value."""


class Answer(NamedTuple):
    """The best value as far as it is known; while it `is_pending`, it may be that of an older state."""

    best: Best
    is_pending: bool = False


class _Wanted(NamedTuple):
    key: tuple[str, str]
    version: _Version
    store: ObjectStore


class BestValues:
    """Keeps the best value of each experiment for as long as nothing is written to it.

    Threads may ask at once. Values are read by a few threads of its own, which end when nothing waits.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._most_threads = threads
        self._known: OrderedDict[tuple[str, str], tuple[_Version, Best]] = OrderedDict()
        self._waiting: deque[_Wanted] = deque()
        self._pending: set[tuple[str, str]] = set()
        self._threads = 0
        self._changed = threading.Condition()

    def ask(self, store: ObjectStore, report: ExperimentReport, prefix: str = "") -> Answer:
        """Return the best value at once, as far as it is known, and begin to read it if it is not.

        `store` is rooted at the experiment; `prefix` tells stores with other credentials or endpoints
        apart. The values of an experiment without a state are unknown, and so are those of one whose
        reading failed, until something is written to it.
        """
        if report.state_file is None:
            return Answer(_UNKNOWN)
        key, version = (prefix, report.experiment), (report.state_file, report.last_write)
        with self._changed:
            known_version, best = self._known.get(key, (None, _UNKNOWN))
            if key in self._known:
                self._known.move_to_end(key)
            if known_version == version:
                return Answer(best)
            if key not in self._pending and len(self._pending) < MAX_ENTRIES:
                self._pending.add(key)
                self._waiting.append(_Wanted(key, version, store))
                self._start_thread()
            return Answer(best, is_pending=True)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until all that was asked for is known; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout_seconds)

    def _start_thread(self) -> None:
        if self._threads < self._most_threads:
            self._threads += 1
            # as a daemon: the server's end does not wait for it
            threading.Thread(target=self._read_all, name="tune-restore-best", daemon=True).start()

    def _read_all(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._threads -= 1
                    return
                wanted = self._waiting.popleft()
            best = _read_safely(wanted.store)
            with self._changed:
                self._known[wanted.key] = wanted.version, best
                while len(self._known) > MAX_ENTRIES:
                    self._known.popitem(last=False)
                self._pending.discard(wanted.key)
                self._changed.notify_all()


def read_best(store: ObjectStore) -> Best:
    """Read the best value of the experiment at the store's root. Raises as `read_experiment`."""
    entries = store.list_dir()
    tuner = read_tuner(store, entries).recorded
    named = tuner.metric if tuner is not None else None
    state, results = _read_results(store, entries, named)
    if tuner is not None and _is_of_another_run(tuner, state):
        tuner, named = None, None
    recorded = state.runner.get("_metric")
    if named is None and isinstance(recorded, str) and recorded:  # it stands behind the rows
        named = recorded
        state, results = _read_results(store, entries, named)
    mode = tuner.mode if tuner is not None and tuner.mode in ("min", "max") else None
    shown = printable(named) if named else None
    if mode is None or not results:
        return Best(shown, mode)
    best = max if mode == "max" else min
    value, trial_id = best(results, key=lambda result: result[0])
    return Best(shown, mode, value, trial_id)


class _LastResults:
    """Collects the value of a metric in the last result of each trial that has one."""

    def __init__(self, metric: str | None) -> None:
        self._metric = metric
        self.found: list[tuple[float | int, str]] = []

    def add(self, trial: Trial, row: RawRow) -> None:
        value = None if trial.unusable else finite(read_metric(row, self._metric))
        if value is not None:
            self.found.append((value, trial.trial_id))


def _read_results(
    store: ObjectStore, entries: list[Entry], metric: str | None
) -> tuple[State, list[tuple[float | int, str]]]:
    state = StateReader(Keep(collect=lambda: _LastResults(metric)))(store, entries).state
    collected = state.collected
    return state, collected.found if isinstance(collected, _LastResults) else []


def _is_of_another_run(tuner: RecordedTuner, state: State) -> bool:
    names = {trial.trainable_name for trial in state.trials if trial.trainable_name}
    return bool(describe_doubt(tuner, tuple(sorted(names))))


def _read_safely(store: ObjectStore) -> Best:
    """Read the best value; what fails is unknown until something is written, and stands in the log."""
    try:
        return read_best(store)
    except TuneRestoreError as error:
        log.warning(
            "%s: the best value of its metric is unknown: %s", store.uri, printable(str(error))
        )
    except Exception as error:  # noqa: BLE001  it must not end the thread that reads the others
        report_unexpected(store.uri, error)
    return _UNKNOWN
