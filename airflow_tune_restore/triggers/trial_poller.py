"""Reads results from a restore's storage for all triggers that wait for its trials, a few per round."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_tune_restore.exceptions import (
    RecordUnreadableError,
    StorageError,
    TuneRestoreError,
)
from airflow_tune_restore.hooks.experiment_storage import share_hook
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import RunnerProgress
from airflow_tune_restore.triggers.shared_poller import SharedPoller, Watch
from airflow_tune_restore.version_compat import in_thread

if TYPE_CHECKING:
    from airflow_tune_restore.storage.base import ObjectStore

ROUND_SECONDS = 3.0
TRIALS_PER_ROUND = 15

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class TrialWatch(Watch):
    """A trial that one trigger waits for."""

    trial_id: str
    attempt: int  # the one that runs it, or the attempt of the whole-experiment run
    ends_with_outcome: bool  # its outcome ends the wait, and not the end of a job
    seen: int = 0  # results that were read
    reports: list[RunnerProgress] = field(default_factory=list)  # that were not taken yet
    lines: list[str] = field(default_factory=list)  # printed in a shared driver, not taken yet
    lines_seen: int = 0  # that were read
    has_ended: bool = False  # it has its outcome
    is_behind: bool = False  # results were missed; the rest is shown at the end
    read_at: float = 0.0  # when it was last read (monotonic)

    def take_reports(self) -> list[RunnerProgress]:
        """Return the results that were not taken yet."""
        reports, self.reports = self.reports, []
        return reports

    def take_lines(self) -> list[str]:
        """Return the lines that were not taken yet."""
        lines, self.lines = self.lines, []
        return lines


class TrialPoller(SharedPoller[TrialWatch]):
    """Polls one restore, and renews its lease: a job that waits for resources cannot."""

    def __init__(self, experiment: str, restore_id: str) -> None:
        super().__init__(experiment, restore_id)
        self._experiment = experiment
        self._restore_id = restore_id
        self._hook = share_hook()
        self._store: ObjectStore | None = None
        self._renewed = time.monotonic()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            await self._round()

    async def _round(self) -> None:
        waiting = [trial for trial in self._watches if not (trial.has_ended or trial.broken)]
        waiting.sort(key=lambda trial: trial.read_at)
        chosen = waiting[:TRIALS_PER_ROUND]
        try:
            await in_thread(self._read, chosen)
        except TuneRestoreError as error:
            self._warn(error)
        for trial in chosen:
            trial.read_at = time.monotonic()
            if trial.reports or trial.lines or trial.has_ended or trial.broken:
                trial.changed.set()

    def _read(self, trials: list[TrialWatch]) -> None:
        if self._store is None:
            self._store = self._hook.open(self._experiment)
        store = self._store
        if time.monotonic() - self._renewed > lease.RENEW_SECONDS:
            self._renewed = time.monotonic()
            lease.keep_alive(store, self._restore_id)
        for trial in trials:
            records = AttemptRecords(store, self._restore_id, trial.trial_id)
            try:
                # in this order: the last results of a trial are written before its outcome
                has_ended = trial.ends_with_outcome and _has_outcome(records, trial.attempt)
                if not trial.is_behind:
                    self._read_progress(records, trial)
                trial.has_ended = has_ended
            except TuneRestoreError as error:
                self._warn(error)
            except Exception as error:  # noqa: BLE001  it ends the trigger of this trial alone
                trial.broken = error

    def _read_progress(self, records: AttemptRecords, trial: TrialWatch) -> None:
        try:
            tail = records.progress(trial.attempt)
        except RecordUnreadableError as error:
            trial.is_behind = True
            self._warn(error)
            return
        if tail is None:
            return
        trial.lines += tail.lines_after(trial.lines_seen)
        trial.lines_seen = max(trial.lines_seen, tail.line_count)
        trial.is_behind = tail.first > trial.seen  # then all are shown in order at the end
        if not trial.is_behind:
            trial.reports += tail.after(trial.seen)
            trial.seen = max(trial.seen, tail.count)

    def _warn(self, error: TuneRestoreError) -> None:
        if isinstance(error, StorageError):  # the credentials may have changed
            self._store = None
            self._hook.reconnect()
        logger.warning(
            "Restore %s cannot be read just now: %s", self._restore_id, printable(str(error))
        )


def _has_outcome(records: AttemptRecords, attempt: int) -> bool:
    try:
        return records.outcome(attempt) is not None
    except RecordUnreadableError:
        return True  # its task reads it, and raises the error
