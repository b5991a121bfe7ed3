"""Runs the trials of one restore with a launcher, until they have ended or the user stops them."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.launch.base import Launcher, Run, follow
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.request import (
    Result,
    RunnerExit,
    RunnerOutcome,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.ledger import explain
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.runner_death import record_death
from airflow_tune_restore.restore.shared_driver import (
    ALONE_NOW,
    MOST_BROKEN,
    find_why_alone,
    hand_over,
    record_lost,
)
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

if TYPE_CHECKING:
    from airflow_tune_restore.cli.progress import Progress

logger = logging.getLogger(__name__)


class TrialRuns:
    """The trials of one restore, or its whole-experiment run.

    Trials that share a driver run first. `parallel` is how many run at the same time; None: in a shared
    driver as many as its Ray fits, and others one by one.
    """

    def __init__(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        launcher: Launcher,
        settings: RunnerSettings,
        parallel: int | None,
        progress: "Progress",
    ) -> None:
        self._store = store
        self._plan = plan
        self._parts = {trial.trial_id: plan.part_of(trial) for trial in plan.to_run}
        self._launcher = launcher
        self._parallel = parallel or 1
        if settings.sized:  # a pod for a whole-experiment run has room for so many trials
            concurrent = min(self._parallel, len(plan.to_run) or self._parallel)
            settings = replace(settings, concurrent=concurrent)
        self._settings = replace(settings, at_once=parallel or 0)
        self._ended: set[str] = set()
        self._progress = progress
        self._requests: dict[str, RunnerRequest] = {}
        self._runs: dict[str, Run] = {}
        self._stopping = threading.Event()

    @property
    def was_stopped(self) -> bool:
        """Whether the user has stopped them."""
        return self._stopping.is_set()

    def run_all(self) -> None:
        """Run every trial of the plan. Ctrl-C stops all runs; a second one does not wait for them.

        Raises:
            KeyboardInterrupt: If the user does not wait.
        """
        shared = [trial.trial_id for trial in self._plan.to_run if trial.shares_driver]
        workers: list[_Worker] = []
        limit = window.stop_at_last_moment(self._plan.pause_at, self._stop_runs)
        try:
            if shared:
                workers.append(_in_background(self._run_shared, shared))
                _wait_for(workers)
            units: queue.SimpleQueue[str] = queue.SimpleQueue()
            for unit in self._plan.units:
                if unit not in self._ended:
                    units.put(unit)
            count = min(self._parallel, units.qsize())
            for _ in range(count):  # one by one: Ctrl-C may come before the last
                workers.append(_in_background(self._run_next, units))
            _wait_for(workers)
        except KeyboardInterrupt:
            self._stop_all(workers)
        finally:
            limit.cancel()

    def _stop_runs(self) -> None:
        """Stop what has not ended by itself with the window: a job that waits, a runner that hangs."""
        for unit, run in list(self._runs.items()):
            self._stop(unit, run)

    def _run_next(self, units: "queue.SimpleQueue[str]") -> None:
        """Run one unit after another. One that cannot be run keeps no other from running."""
        while not self._stopping.is_set():
            try:
                unit = units.get_nowait()
            except queue.Empty:
                return
            with self._errors_logged(unit):
                self._run(unit)
            self._requests.pop(unit, None)
            self._runs.pop(unit, None)

    def _run_shared(self, trials: list[str]) -> None:
        """Run trials in drivers that they share, one after another until none is left to begin.

        Those that go on alone are not among the ended.
        """
        left, broken = trials, 0
        while left and not self._stopping.is_set():
            are_handed = for_each(self._hand_over, left)
            handed = left = list(compress(left, are_handed))
            if not handed:
                break
            has_broken = False
            with self._errors_logged(layout.SHARED_DRIVER):
                Desk(self._store, self._plan.restore_id).close()
                outcome = self._run_attempt(
                    claim_next_attempt(
                        *(self._store, self._plan, layout.SHARED_DRIVER, self._settings),
                        log=self._logs(layout.SHARED_DRIVER),
                    )
                )
                has_broken = outcome is None or outcome.result == Result.INTERRUPTED
            with self._errors_logged(layout.SHARED_DRIVER):
                records = RestoreRecords(self._store, self._plan.restore_id)
                begun = {unit for unit in handed if _has_begun(records, unit)}
                left = [unit for unit in handed if unit not in begun]
                for unit in filter(begun.__contains__, handed):
                    self._leave_driver(records, unit)
            broken += has_broken
            # without an end of its own a driver may have had bad luck; any other end would come again
            if left == handed and not (has_broken and broken < MOST_BROKEN):
                self._ended.update(left)
                break
        self._requests.pop(layout.SHARED_DRIVER, None)
        self._runs.pop(layout.SHARED_DRIVER, None)

    def _hand_over(self, unit: str) -> bool:
        """Hand a trial to the driver. One that cannot be run has ended; others may run alone."""
        self._ended.add(unit)
        with self._errors_logged(unit):
            plan = self._parts[unit]
            request = hand_over(self._store, plan, unit, self._settings, log=self._logs(unit))
            self._ended.remove(unit)
            if request is not None:
                self._progress.start(plan.trial(unit))
                return True
        return False

    def _leave_driver(self, records: RestoreRecords, unit: str) -> None:
        """Show how a trial ended that a driver had begun, unless it goes on alone."""
        outcome = records.of(unit).outcome(SHARED_ATTEMPT)
        if outcome is None:
            why = "its shared driver died"
            record_lost(self._store, self._plan.restore_id, unit, why)
        else:
            why = find_why_alone(outcome, on_cluster=self._settings.address is not None)
        if why and not self._stopping.is_set():
            self._progress.say(ALONE_NOW % (unit, why))
        else:
            self._ended.add(unit)
            self._progress.end(unit, outcome)

    def _run(self, unit: str) -> None:
        """Run a trial, or the whole experiment, to its end. Outcome records hold how it ended."""
        plan = self._parts.get(unit, self._plan)  # not all trials for each of them
        trials = plan.to_run
        is_too_small = True
        while is_too_small and not self._stopping.is_set():
            request = claim_next_attempt(
                self._store, plan, unit, self._settings, log=self._logs(unit)
            )
            for trial in trials:
                self._progress.start(trial)
            outcome = self._run_attempt(request)
            # the next attempt gets a larger place; a second one that is too small is refused
            is_too_small = outcome is not None and bool(outcome.resources)
        for trial in trials:
            records = AttemptRecords(self._store, self._plan.restore_id, trial.trial_id)
            self._progress.end(trial.trial_id, records.outcome())

    def _run_attempt(self, request: RunnerRequest) -> RunnerOutcome | None:
        unit = request.trial_id
        self._requests[unit] = request
        run = self._runs[unit] = self._launcher.start(request)
        if self._stopping.is_set():  # `_stop_all` may not have seen this run
            run.stop()
        end = follow(run, lambda line: self._show(unit, line))
        outcome = AttemptRecords.of(self._store, request).outcome(request.attempt)
        if outcome is None:
            self._record_death(request, end)
        elif outcome.result == Result.REFUSED:
            _log_error(unit, outcome.error)
        elif explain(outcome, end) is not outcome:  # the ledger needs the cause
            AttemptRecords.of(self._store, request).record_exit(
                request.attempt, end.exit_code, end.message
            )
        return outcome

    def _record_death(self, request: RunnerRequest, end: RunnerExit) -> None:
        """Record the exit of a runner that left no outcome, unless it was stopped before it began."""
        records = AttemptRecords.of(self._store, request)
        if self._stopping.is_set() and not records.has_begun(request.attempt):
            return
        last_lines = end.message.splitlines()
        with self._errors_logged(request.trial_id):
            raise record_death(self._store, self._plan, request, end.exit_code, last_lines)

    def _stop_all(self, workers: "list[_Worker]") -> None:
        """Stop all runs at the same time, and wait until they have saved their snapshots."""
        try:
            self._stopping.set()
            self._progress.say("Stopping. Saving snapshots, then committing what has finished.")
            stops = [_in_background(self._stop, *item) for item in list(self._runs.items())]
            _wait_for([*stops, *workers])
        except KeyboardInterrupt:
            self._give_up()

    def _stop(self, unit: str, run: Run) -> None:
        with self._errors_logged(unit):
            run.stop()

    def _give_up(self) -> None:
        for unit, request in list(self._requests.items()):
            command = self._launcher.stop_command(request)
            logger.error("%s may still run. To stop it: %s", _name(unit), command)
        logger.error(
            "Nothing was committed. The next restore of %s commits what the trials have done.",
            self._store.uri,
        )
        raise KeyboardInterrupt

    def _show(self, unit: str, line: str) -> None:
        progress = RunnerProgress.from_line(line)
        if progress is not None:
            self._progress.advance(progress.trial_id, progress)
        else:
            self._progress.say(line if unit in layout.RUNS_OF_MANY else f"{unit} | {line}")

    def _logs(self, unit: str) -> Callable[..., None]:
        return lambda text, *values: self._progress.say(f"{_name(unit)}: {text % values}")

    @contextlib.contextmanager
    def _errors_logged(self, unit: str) -> Iterator[None]:
        try:
            yield
        except RestorePausedError as error:
            self._progress.say(printable(str(error), NOTE_LENGTH))
        except TuneRestoreError as error:
            _log_error(unit, str(error))


def _has_begun(records: RestoreRecords, unit: str) -> bool:
    """Whether a shared driver has begun a trial, or has ended it."""
    of_trial = records.of(unit)
    return of_trial.has_begun(SHARED_ATTEMPT) or of_trial.outcome(SHARED_ATTEMPT) is not None


def _log_error(unit: str, error: str) -> None:
    prefix = "" if _name(unit).lower() in error.lower() else f"{_name(unit)}: "
    logger.error("%s%s", prefix, printable(error, NOTE_LENGTH))


def _name(unit: str) -> str:
    many = {layout.WHOLE_EXPERIMENT: "Whole-experiment run", layout.SHARED_DRIVER: "Shared driver"}
    return many.get(unit, f"Trial {unit}")


class _Worker(threading.Thread):
    """Runs a function in a thread that does not keep the process alive: a user may not wait for it.

    `join` is safe with Ctrl-C. A future is not: an exception between its lock and its release would leave
    it locked, and the thread that ends would wait for it for ever.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._arguments = arguments
        self.error: BaseException | None = None

    def run(self) -> None:
        """Keep the error for the thread that waits."""
        try:
            self._work(*self._arguments)
        except BaseException as error:  # noqa: BLE001  raised by `_wait_for`
            self.error = error


def _in_background(work: Callable[..., None], *arguments: Any) -> _Worker:
    worker = _Worker(work, *arguments)
    worker.start()
    return worker


def _wait_for(workers: Iterable[_Worker]) -> None:
    """Wait until all have ended, then raise the first error."""
    ended = list(workers)
    for worker in ended:
        worker.join()
    for worker in ended:
        if worker.error is not None:
            raise worker.error
