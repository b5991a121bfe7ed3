"""Follow one trial of a whole-experiment run: the first follower starts the run, the others attach.

A follower only reads records in storage. So followers and the run may be on different machines.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from airflow_tune_restore.exceptions import KeyExistsError, RecordUnreadableError, StorageError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.records import read_heartbeat
from airflow_tune_restore.protocol.request import RunnerOutcome, RunnerProgress
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.storage.base import ObjectStore

START_SECONDS = 120.0
"""A claimed run that has had no heartbeat for this long died before it started."""

QUIET_SECONDS = 60.0
"""A run writes a heartbeat every 5 s. Without a new one for this long, by the follower's clock, it died.
Longer than for the runner of one trial, because more is lost with it."""

SHOWN_REPORTS = 1000
"""Of the reports of the run itself so many are yielded, then as many of each tenth, each hundredth …: one
task may follow thousands of trials."""

POLL_SECONDS = 2.0
OUTAGE_SECONDS = 600.0
"""How long a store may be unreachable before a follower fails; the run itself continues."""

logger = logging.getLogger(__name__)


@dataclass
class Follower:
    """Follows one trial of a whole-experiment run, or the run itself (`layout.WHOLE_EXPERIMENT`).

    `start` claims and starts an attempt of the run; it raises KeyExistsError if the attempt is taken.
    After `progress` has ended, `outcome` is the outcome of the trial.
    """

    store: ObjectStore
    restore_id: str
    trial_id: str
    start: Callable[[int], None]
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    outcome: RunnerOutcome | None = None
    _seen: int = 0
    _read: int = 0
    _shown: int = 0
    _last: int | None = None
    _beats: dict[int, tuple[bytes | None, float]] = field(default_factory=dict)
    _unreadable: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._run = AttemptRecords(self.store, self.restore_id, layout.WHOLE_EXPERIMENT)
        self._trial = AttemptRecords(self.store, self.restore_id, self.trial_id)

    def progress(self) -> Iterator[RunnerProgress | None]:
        """Yield the reports of the trial until it ends, and None after each look.

        Of many reports of the run itself, not all are yielded (`SHOWN_REPORTS`).
        Starts a run if none is alive. A finished or failed trial is not run again. A trial that was
        stopped before continues in the next run.

        Raises:
            StorageError: If the store was unreachable for `OUTAGE_SECONDS`.
            LeaseLostError: If no run is alive, and the restore has ended.
            RestorePausedError: If no run is alive, and the window of the restore has ended.
        """
        stopped = self._stopped_before()
        reached = self.monotonic()
        while True:
            reports: list[RunnerProgress] = []
            has_ended = False
            try:
                reports, has_ended = self._look(stopped)
                reached = self.monotonic()
            except StorageError as error:
                if self.monotonic() - reached > OUTAGE_SECONDS:
                    raise
                why = printable(str(error))
                logger.warning("The run continues, but its records are unreadable now: %s", why)
            yield from filter(self._is_shown, reports)
            if has_ended:
                return
            yield None
            self.sleep(POLL_SECONDS)

    def _is_shown(self, _report: RunnerProgress) -> bool:
        if self.trial_id != layout.WHOLE_EXPERIMENT:
            return True
        self._read += 1
        step: int = 10 ** (self._shown // SHOWN_REPORTS)
        is_shown = self._read % step == 0
        self._shown += is_shown
        return is_shown

    def _look(self, stopped: int) -> tuple[list[RunnerProgress], bool]:
        """Return the new reports, and whether the trial has ended. Start a run if none is alive."""
        newest = self._run.newest()
        is_over = newest == 0 or self._is_over(newest)
        # in this order: a run writes the last report of a trial, then its outcome, then its own outcome
        self.outcome = self._trial.outcome()
        reports = self._new_reports(newest)
        if self.outcome is not None and self.outcome.attempt > stopped:
            return reports, True
        if is_over:
            lease.keep_alive(self.store, self.restore_id)  # or each run would end itself, for ever
            try:
                self.start(newest + 1)
                self._seen = 0
            except RestorePausedError as error:
                raise replace(error, trial_id=self.trial_id, iteration=self._last) from None
            except KeyExistsError:
                pass  # another follower has just started it: attach to that run
        return reports, False

    def _stopped_before(self) -> int:
        """Return the attempt of the run in which this trial was stopped before; 0 if it was not."""
        past = self._trial.outcome()
        if past is None or past.ends_trial:
            return 0
        return past.attempt

    def _is_over(self, attempt: int) -> bool:
        """Whether a run has an outcome, or has had no new heartbeat for too long."""
        if self._run.outcome(attempt) is not None:
            return True
        began = self.monotonic()
        key = layout.heartbeat_key(self.restore_id, layout.WHOLE_EXPERIMENT, attempt)
        beat = read_heartbeat(self.store, key)
        last, since = self._beats.setdefault(attempt, (beat, self.monotonic()))
        if beat != last:
            self._beats[attempt] = (beat, self.monotonic())
            return False
        # from the end of one look to the begin of another: this process may freeze in a look
        return began - since > (QUIET_SECONDS if beat else START_SECONDS)

    def _new_reports(self, attempt: int) -> list[RunnerProgress]:
        if attempt in self._unreadable:
            return []
        try:
            tail = self._trial.progress(attempt)
        except RecordUnreadableError as error:
            logger.warning("The reports of the trial cannot be shown: %s", printable(str(error)))
            self._unreadable.add(attempt)
            return []
        if tail is None:
            return []
        new = tail.after(self._seen)
        if tail.reports and self.trial_id != layout.WHOLE_EXPERIMENT:
            self._last = tail.reports[-1].iteration
        self._seen = tail.count
        return new


def ask_to_stop(store: ObjectStore, restore_id: str, trial_id: str) -> None:
    """Ask the run to stop one trial; with `layout.WHOLE_EXPERIMENT`, to draw no more samples."""
    if attempt := AttemptRecords(store, restore_id, layout.WHOLE_EXPERIMENT).newest():
        store.put(layout.stop_key(restore_id, attempt, trial_id), json.dumps({}).encode())
