"""The context of a driver that independent trials share: the attempts in work, and how each ended."""

import logging
import time
from collections.abc import Callable, Iterable
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
from airflow_tune_restore.storage.in_flight import for_each

POLL_SECONDS = 0.05
"""How often an empty driver looks whether an attempt was taken."""

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
        fail_fast: As recorded. It is off while trials share a driver.
        retry_at: When the end of a trial is tried again that could not be saved (monotonic).
    """

    reader: DeskReader
    reporter: Reporter
    lines: WorkerLines
    leaving: Callable[[RunnerRequest], AbstractContextManager[None]]
    first: list[Work] = field(default_factory=list)
    fail_fast: bool | str = False
    retry_at: float = 0.0

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
        self.finish(work for work in new if work.ending is not None)
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

    def finish(self, works: Iterable[Work]) -> None:
        """Record the ends of attempts; one that cannot be written is tried again with the next call."""
        for_each(self._finish, list(works))

    def _finish(self, work: Work) -> None:
        if work.ending is None:
            return
        self.lines.leave(work.trial_id)
        try:
            self.reporter.flush()
            self._write(work, work.ending)
        except (TuneRestoreError, OSError) as error:
            logger.warning(
                "The outcome of trial %s could not be written: %s", *(work.trial_id, error)
            )
        else:
            self.reporter.forget(work.trial_id)
            self.reader.end(work)

    def _write(self, work: Work, ending: Ending) -> None:
        outcome = build_outcome(work.request, ending, trial=work.trial, started_at=work.started_at)
        if work.saved_iteration is not None:
            outcome = replace(outcome, iteration=work.saved_iteration)
        with self.leaving(work.request):
            write_outcome(self.store, outcome)

    def close(self) -> None:
        """Take nothing more, and write the last progress."""
        self.reader.stop()
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
        works = self.reader.works()
        for work in works:
            work.ending = self._ending_with(work, ending)
        for_each(self._finish, works)

    def _ending_with(self, work: Work, ending: Ending) -> Ending:
        if work.ending is not None:
            return work.ending
        if work.saved_status in _ENDED:
            return ending_of(work.trial)
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
