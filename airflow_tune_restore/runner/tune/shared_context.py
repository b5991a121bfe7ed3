"""The context of a driver that independent trials share: the attempts in work, and how each ended."""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from ray.tune.experiment import Trial

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    RunnerError,
    StorageError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import Result, RunnerRequest
from airflow_tune_restore.runner import needs
from airflow_tune_restore.runner.desk_reader import DeskReader, Work
from airflow_tune_restore.runner.loading import Loaded
from airflow_tune_restore.runner.outcome import (
    INTERRUPTED,
    PAUSED,
    Ending,
    build_outcome,
    error_of,
    write_outcome,
)
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.tune.controller import AttemptContext
from airflow_tune_restore.runner.worker_lines import WorkerLines
from airflow_tune_restore.storage.in_flight import IN_FLIGHT, for_each

POLL_SECONDS = 0.05
"""How often an empty driver looks whether an attempt was taken."""

RETRY_SECONDS = 2.0
"""After this, the end of a trial that could not be saved is tried again."""

TRIES = 10

_ENDED = (Trial.TERMINATED, Trial.ERROR)

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SharedContext(AttemptContext):
    """The context of a driver that trials share.

    Args:
        reader: Takes attempts from the desk.
        reporter: Writes progress for the tasks of trials.
        lines: Gives what workers print to the trials that they train.
        leaving: Ends the heartbeats of an attempt while its outcome is written.
        first: Attempts that were taken before there is a controller.
        ended: Attempts whose ends are being recorded, and which the controller still knows.
        fail_fast: As recorded. It is off while trials share a driver.
        recorders: Threads that record the ends of trials.
        has_halted: Whether nothing is tried again, because the driver ends.
    """

    reader: DeskReader
    reporter: Reporter
    lines: WorkerLines
    leaving: Callable[[RunnerRequest], AbstractContextManager[None]]
    first: list[Work] = field(default_factory=list)
    ended: list[Work] = field(default_factory=list)
    fail_fast: bool | str = False
    recorders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(IN_FLIGHT))
    has_halted: threading.Event = field(default_factory=threading.Event)

    @property
    def has_ended(self) -> bool:
        """Whether all that was handed over has its outcome, and nothing more comes."""
        return self.reader.is_done()

    def wait_for_work(self) -> bool:
        """Wait for attempts, and start from the seed of the first; False if none comes."""
        self.reader.start()
        self.reporter.start()
        self.lines.start()
        while not self.first:
            if self.reader.is_done():
                return False
            time.sleep(POLL_SECONDS)
            self.first = self.take_new()
        first = self.first[0].request
        self.source_key = layout.seed_key(first.restore_id, first.trial_id)
        return True

    def ask(self, loaded: Loaded) -> needs.Asked:
        """Return the requests of all trials on the desk. A larger one that comes later runs alone."""
        rows = [row for seed in self.reader.seeds() for row, _metadata in seed["trial_data"]]
        return needs.ask(loaded.trainable, rows, loaded.param_space, leaves_out_refused=True)

    def take_new(self) -> list[Work]:
        """Return the attempts to restore that were taken since the last call; end the others."""
        new = self.reader.take_new()
        for work in new:
            if self.reader.is_asked_to_stop(work):
                work.ending = Ending(
                    Result.INTERRUPTED, INTERRUPTED, "stopped before the trial ran"
                )
            elif work.error is not None:
                self.refuse(work, work.error)
        for work in new:
            if work.ending is not None:
                self.record(work)
        return [work for work in new if work.ending is None]

    def refuse(self, work: Work, error: Exception) -> None:
        """End an attempt that cannot run here, because of this error."""
        work.error = error
        name, message = type(error).__name__, str(error)
        if isinstance(error, InvalidInputError):
            work.ending = Ending(Result.REFUSED, InvalidInputError.__name__, message)
        elif isinstance(error, StorageError | KeyNotFoundError | OSError):
            work.ending = Ending(Result.INTERRUPTED, name, message)
        else:
            why = f"Ray cannot restore it ({name}: {message})"
            work.ending = Ending(Result.REFUSED, RunnerError.__name__, why)
        logger.warning("Trial %s is not run here: %s", work.trial_id, work.ending.error)

    def work_of(self, trial: Trial) -> Work:
        """Return the attempt of a restored trial."""
        return next(work for work in self.reader.works() if work.trial is trial)

    def record(self, work: Work, save: Callable[[], None] = lambda: None) -> None:
        """Save and record the end of an attempt in a thread: the others do not wait for the store.

        If that fails for some time, the attempt ends as interrupted, with its last snapshot.
        """
        work.is_leaving = True
        self.recorders.submit(self._record, work, save)

    def _record(self, work: Work, save: Callable[[], None]) -> None:
        try:
            self._patiently(save, tries=TRIES)
        except Exception as error:  # what the files of one trial may raise
            logger.exception("The end of trial %s could not be saved", work.trial_id)
            work.ending = Ending(Result.INTERRUPTED, type(error).__name__, str(error))
        # without it, the attempt is never over; a store that fails for too long ends this process
        self._patiently(lambda: self._finish(work), tries=math.inf)

    def _patiently(self, write: Callable[[], None], *, tries: float) -> None:
        for number in itertools.count(1):
            try:
                write()
            except (TuneRestoreError, OSError) as error:
                if number >= tries or self.has_halted.is_set():
                    raise
                logger.warning("The end of a trial is not saved yet: %s", error)
                self.has_halted.wait(RETRY_SECONDS)
            else:
                return

    def _finish(self, work: Work) -> None:
        """Write the outcome of an attempt, once, and take it off the desk."""
        with work.writing:
            if work.is_over or work.ending is None:
                return
            self.lines.leave(work.trial_id)
            self.reporter.flush()
            outcome = build_outcome(
                work.request, work.ending, trial=work.trial, started_at=work.started_at
            )
            if work.saved_iteration is not None:
                outcome = replace(outcome, iteration=work.saved_iteration)
            with self.leaving(work.request):
                write_outcome(self.store, outcome)
            work.is_over = True
        self.reporter.forget(work.trial_id)
        self.reader.end(work)

    def close(self) -> None:
        """Take nothing more, and write the last progress."""
        self.reader.stop()
        self.has_halted.set()
        self.recorders.shutdown()
        self.lines.stop()
        self.reporter.stop()

    def judge(self, *, was_stopped: bool) -> Ending:
        """Return how the driver ended; each trial has an outcome of its own."""
        if self.has_ended:
            return Ending(Result.FINISHED)
        if was_stopped:
            return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; snapshots were saved")
        raise RunnerError("Ray ended the run before all trials had ended; see the log above.")

    def record_rest(self, ending: Ending) -> None:
        """Record the attempts in work, which end with the driver; those on the desk stay there."""
        self.reader.halt()
        self.has_halted.set()
        works = self.reader.works()
        for work in works:
            work.ending = self._ending_with(work, ending)
        for_each(self._try_to_finish, works)

    def _try_to_finish(self, work: Work) -> None:
        try:
            self._finish(work)
        except (TuneRestoreError, OSError) as error:
            logger.warning("Trial %s is left without an outcome: %s", work.trial_id, error)

    def _ending_with(self, work: Work, ending: Ending) -> Ending:
        if work.saved_status in _ENDED:
            return work.ending or ending_of(work.trial)
        if work.ending is not None and work.ending.result not in (Result.FINISHED, Result.FAILED):
            return work.ending
        if ending.result is Result.PAUSED:
            return Ending(Result.PAUSED, PAUSED, ending.error)
        if ending.error_type != INTERRUPTED:
            # no failure of this trial: it runs alone next, and counts then
            why = f"its shared driver ended: {ending.error_type}: {ending.error}"
        elif work.saved_status:
            why = "stopped; a snapshot was saved"
        else:
            why = "stopped before the trial ran"
        return Ending(Result.INTERRUPTED, INTERRUPTED, why)


def ending_of(trial: Trial) -> Ending:
    """Return how a trial ended by itself."""
    if trial.status == Trial.ERROR:
        return Ending(Result.FAILED, *error_of(trial))
    return Ending(Result.FINISHED)
