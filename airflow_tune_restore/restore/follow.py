"""One run of a whole experiment, and many who follow it: the first to come starts it, others attach.

Whoever follows learns of its own trial from storage alone: from the progress the run writes for it, and
from the outcome at its end. Nothing else is shared, so that it does not matter where anybody is.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    RecordUnreadableError,
    StorageError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.records import read_heartbeat
from airflow_tune_restore.protocol.request import (
    Result,
    RunnerOutcome,
    RunnerProgress,
)
from airflow_tune_restore.storage.base import ObjectStore

START_SECONDS = 120.0
"""A claimed run that has not shown a sign of life for this long never will."""

QUIET_SECONDS = 60.0
"""A run beats every 5 s; one that is silent this long by our own clock is dead. Longer than for the
runner of one trial: much more is lost with it."""

POLL_SECONDS = 2.0
OUTAGE_SECONDS = 600.0
"""How long a store may be out of reach before a follower gives up; the run itself goes on."""

logger = logging.getLogger(__name__)


@dataclass
class Follower:
    """Follows one trial of a whole experiment.

    Args:
        store: Rooted at the experiment directory.
        restore_id: The restore.
        trial_id: Trial id in the plan; `layout.WHOLE_EXPERIMENT` to follow the run itself.
        start: Claims and starts the next attempt of the run; raises KeyExistsError if it was too late.
        monotonic: The clock.
        sleep: Waits some seconds.

    Attributes:
        outcome: How the trial ended, once `progress` has come to its end.
    """

    store: ObjectStore
    restore_id: str
    trial_id: str
    start: Callable[[int], None]
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    outcome: RunnerOutcome | None = None
    _seen: int = 0
    _pulses: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    _unreadable: set[int] = field(default_factory=set)

    def progress(self) -> Iterator[RunnerProgress | None]:
        """Yield the reports of the trial until it ends; None whenever there is nothing new.

        Starts a run if none is alive. A trial that has ended for good is not run again; one that was
        stopped before goes on in the next run. A store that is out of reach for a while is waited for.

        Raises:
            StorageError: If the store was out of reach for `OUTAGE_SECONDS`.
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
                logger.warning(
                    "The run goes on; it cannot be looked at just now: %s", printable(str(error))
                )
            yield from reports
            if has_ended:
                return
            yield None
            self.sleep(POLL_SECONDS)

    def _look(self, stopped: int) -> tuple[list[RunnerProgress], bool]:
        """Return what is new and whether the trial has ended; start the run if there is none."""
        newest = self._newest()
        is_over = newest == 0 or self._is_over(newest)
        # in this order: a trial's last words come before its end, and its end before the run's
        self.outcome = AttemptRecords(self.store, self.restore_id, self.trial_id).outcome()
        reports = self._new_reports(newest)
        if self.outcome is not None and self.outcome.attempt > stopped:
            return reports, True
        if is_over:
            try:
                self.start(newest + 1)
                self._seen = 0
            except KeyExistsError:
                pass  # somebody else was faster: attach to that one
        return reports, False

    def _stopped_before(self) -> int:
        """Return the number of the run in which this trial was stopped before we came; 0 if in none."""
        past = AttemptRecords(self.store, self.restore_id, self.trial_id).outcome()
        if past is None or past.result in (Result.FINISHED, Result.FAILED):
            return 0
        return past.attempt

    def _newest(self) -> int:
        return AttemptRecords(self.store, self.restore_id, layout.WHOLE_EXPERIMENT).newest()

    def _is_over(self, attempt: int) -> bool:
        """Whether a run has said how it ended, or was silent for long enough while we watched."""
        if (
            AttemptRecords(self.store, self.restore_id, layout.WHOLE_EXPERIMENT).outcome(attempt)
            is not None
        ):
            return True
        now = self.monotonic()
        pulse = self._pulse(attempt)
        last, since = self._pulses.get(attempt, (None, now))
        if pulse != last:
            self._pulses[attempt] = (pulse, now)
            return False
        return now - since > (QUIET_SECONDS if pulse else START_SECONDS)

    def _pulse(self, attempt: int) -> bytes:
        key = layout.heartbeat_key(self.restore_id, layout.WHOLE_EXPERIMENT, attempt)
        return read_heartbeat(self.store, key) or b""

    def _new_reports(self, attempt: int) -> list[RunnerProgress]:
        if attempt in self._unreadable:
            return []
        try:
            tail = AttemptRecords(self.store, self.restore_id, self.trial_id).progress(attempt)
        except RecordUnreadableError as error:
            logger.warning("What the trial reports is not shown: %s", printable(str(error)))
            self._unreadable.add(attempt)
            return []
        if tail is None:
            return []
        new = tail.after(self._seen)
        self._seen = tail.count
        return new


def ask_to_stop(store: ObjectStore, restore_id: str, trial_id: str) -> None:
    """Ask the run to stop one trial; the others go on. With WHOLE_EXPERIMENT: to draw no more samples."""
    attempt = AttemptRecords(store, restore_id, layout.WHOLE_EXPERIMENT).newest()
    if attempt:
        store.put(layout.stop_key(restore_id, attempt, trial_id), json.dumps({}).encode())
