"""Follow one trial of a whole-experiment run: the first follower starts the run, the others attach.

A follower only reads records in storage. So followers and the run may be on different machines.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat

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
class Heartbeats:
    """The heartbeats of a unit, as this process sees them: clocks of other machines do not count."""

    records: AttemptRecords
    monotonic: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[bytes | None, float]] = field(default_factory=dict)

    def is_over(self, attempt: int) -> bool:
        """Whether a run has an outcome, or has had no new heartbeat for too long."""
        if self.records.outcome(attempt) is not None:
            return True
        has_begun, seconds = self.quiet(attempt)
        return seconds > (QUIET_SECONDS if has_begun else START_SECONDS)

    def quiet(self, attempt: int) -> tuple[bool, float]:
        """Return whether an attempt has begun, and for how many seconds it has had no new heartbeat."""
        began = self.monotonic()
        records = self.records
        key = layout.heartbeat_key(records.restore_id, records.unit, attempt)
        beat = read_heartbeat(records.store, key)
        last, since = self._seen.setdefault(attempt, (beat, self.monotonic()))
        if beat != last:
            self._seen[attempt] = (beat, self.monotonic())
            return beat is not None, 0.0
        # from the end of one look to the begin of another: this process may freeze in a look
        return beat is not None, max(0.0, began - since)


@dataclass
class Reports:
    """The reports of a trial, each returned once. `last` is the newest iteration, or None.

    `lines` are those that it printed in a shared driver; whoever shows them clears them.
    """

    records: AttemptRecords
    last: int | None = None
    lines: list[str] = field(default_factory=list)
    _seen: int = 0
    _lines_seen: int = 0
    _unreadable: set[int] = field(default_factory=set)

    def new(self, attempt: int) -> list[RunnerProgress]:
        """Return the reports of an attempt since the last call."""
        if attempt in self._unreadable:
            return []
        try:
            tail = self.records.progress(attempt)
        except RecordUnreadableError as error:
            logger.warning("The reports of the trial cannot be shown: %s", printable(str(error)))
            self._unreadable.add(attempt)
            return []
        if tail is None:
            return []
        new = tail.after(self._seen)
        if tail.reports:
            self.last = tail.reports[-1].iteration
        self._seen = tail.count
        self.lines += tail.lines_after(self._lines_seen)
        self._lines_seen = max(self._lines_seen, tail.line_count)
        return new

    def start_over(self) -> None:
        """Return the reports of the next run from its first."""
        self._seen = 0


def look_until_ended(
    look: Callable[[], tuple[list[RunnerProgress], bool]],
    pauses: Iterable[float],
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[RunnerProgress | None]:
    """Look again and again; yield the new reports of each look, and then None, until one sees the end.

    Raises:
        StorageError: If the store was unreachable for `OUTAGE_SECONDS`.
    """
    reached = monotonic()
    for pause in pauses:
        reports: list[RunnerProgress] = []
        has_ended = False
        try:
            reports, has_ended = look()
            reached = monotonic()
        except StorageError as error:
            if monotonic() - reached > OUTAGE_SECONDS:
                raise
            why = printable(str(error))
            logger.warning("The run continues, but its records are unreadable now: %s", why)
        yield from reports
        if has_ended:
            return
        yield None
        sleep(pause)


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
    _read: int = 0
    _shown: int = 0

    def __post_init__(self) -> None:
        self._run = AttemptRecords(self.store, self.restore_id, layout.WHOLE_EXPERIMENT)
        self._trial = AttemptRecords(self.store, self.restore_id, self.trial_id)
        self._heartbeats = Heartbeats(self._run, self.monotonic)
        self._reports = Reports(self._trial)

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
        looks = look_until_ended(
            lambda: self._look(stopped),
            repeat(POLL_SECONDS),
            monotonic=self.monotonic,
            sleep=self.sleep,
        )
        return filter(self._is_shown, looks)

    def _is_shown(self, report: RunnerProgress | None) -> bool:
        if report is None or self.trial_id != layout.WHOLE_EXPERIMENT:
            return True
        self._read += 1
        step: int = 10 ** (self._shown // SHOWN_REPORTS)
        is_shown = self._read % step == 0
        self._shown += is_shown
        return is_shown

    def _look(self, stopped: int) -> tuple[list[RunnerProgress], bool]:
        """Return the new reports, and whether the trial has ended. Start a run if none is alive."""
        newest = self._run.newest()
        is_over = newest == 0 or self._heartbeats.is_over(newest)
        # in this order: a run writes the last report of a trial, then its outcome, then its own outcome
        self.outcome = self._trial.outcome()
        reports = self._reports.new(newest)
        if self.outcome is not None and self.outcome.attempt > stopped:
            return reports, True
        if is_over:
            lease.keep_alive(self.store, self.restore_id)  # or each run would end itself, for ever
            try:
                self.start(newest + 1)
                self._reports.start_over()
            except RestorePausedError as error:
                is_trial = self.trial_id != layout.WHOLE_EXPERIMENT
                last = self._reports.last if is_trial else None
                raise replace(error, trial_id=self.trial_id, iteration=last) from None
            except KeyExistsError:
                pass  # another follower has just started it: attach to that run
        return reports, False

    def _stopped_before(self) -> int:
        """Return the attempt of the run in which this trial was stopped before; 0 if it was not."""
        past = self._trial.outcome()
        if past is None or past.ends_trial:
            return 0
        return past.attempt


def ask_to_stop(store: ObjectStore, restore_id: str, trial_id: str) -> None:
    """Ask the run to stop one trial; with `layout.WHOLE_EXPERIMENT`, to draw no more samples."""
    if attempt := AttemptRecords(store, restore_id, layout.WHOLE_EXPERIMENT).newest():
        store.put(layout.stop_key(restore_id, attempt, trial_id), json.dumps({}).encode())
