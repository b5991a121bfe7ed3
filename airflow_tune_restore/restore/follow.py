"""One run of a whole experiment, and many who follow it: the first to come starts it, others attach.

Whoever follows learns of its own trial from storage alone: from the progress the run writes for it, and
from the outcome at its end. Nothing else is shared, so that it does not matter where anybody is.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.attempts import list_attempts, read_outcome
from airflow_tune_restore.restore.request import (
    ProgressTail,
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


@dataclass
class Follower:
    """Follows one trial of a whole experiment.

    Args:
        store: Rooted at the experiment directory.
        restore_id: The restore.
        trial_id: Trial id in the plan; `layout.EVERY_TRIAL` to follow the run itself.
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

    def progress(self) -> Iterator[RunnerProgress | None]:
        """Yield the reports of the trial until it ends; None whenever there is nothing new.

        Starts a run if none is alive. A trial that has ended for good is not run again; one that was
        stopped before goes on in the next run.
        """
        stopped = self._stopped_before()
        while True:
            self.outcome = read_outcome(self.store, self.restore_id, self.trial_id)
            yield from self._new_reports()
            if self._has_ended(stopped):
                return
            newest = self._newest()
            if newest == 0 or self._is_over(newest):
                # its last words may have come between our two looks
                self.outcome = read_outcome(self.store, self.restore_id, self.trial_id)
                if self._has_ended(stopped):
                    yield from self._new_reports()
                    return
                try:
                    self.start(newest + 1)
                    self._seen = 0
                except KeyExistsError:
                    pass  # somebody else was faster: attach to that one
            yield None
            self.sleep(POLL_SECONDS)

    def _stopped_before(self) -> int:
        """Return the number of the run in which this trial was stopped before we came; 0 if in none."""
        past = read_outcome(self.store, self.restore_id, self.trial_id)
        if past is None or past.result in (Result.FINISHED, Result.FAILED):
            return 0
        return past.attempt

    def _has_ended(self, stopped: int) -> bool:
        return self.outcome is not None and self.outcome.attempt > stopped

    def _newest(self) -> int:
        return max(list_attempts(self.store, self.restore_id, layout.EVERY_TRIAL), default=0)

    def _is_over(self, attempt: int) -> bool:
        """Whether a run has said how it ended, or was silent for long enough while we watched."""
        if read_outcome(self.store, self.restore_id, layout.EVERY_TRIAL, attempt) is not None:
            return True
        now = self.monotonic()
        pulse = self._pulse(attempt)
        last, since = self._pulses.get(attempt, (None, now))
        if pulse != last:
            self._pulses[attempt] = (pulse, now)
            return False
        return now - since > (QUIET_SECONDS if pulse else START_SECONDS)

    def _pulse(self, attempt: int) -> bytes:
        key = layout.heartbeat_key(self.restore_id, layout.EVERY_TRIAL, attempt)
        try:
            return self.store.get(key, max_bytes=65536)
        except KeyNotFoundError:
            return b""

    def _new_reports(self) -> Iterator[RunnerProgress]:
        attempt = self._newest()
        if attempt == 0:
            return
        key = layout.progress_key(self.restore_id, self.trial_id, attempt)
        try:
            tail = ProgressTail.from_json(self.store.get(key, max_bytes=16 * 1024**2))
        except KeyNotFoundError:
            return
        yield from tail.after(self._seen)
        self._seen = tail.count


def ask_to_stop(store: ObjectStore, restore_id: str, trial_id: str) -> None:
    """Ask the run to stop one trial; the others go on. With EVERY_TRIAL: to draw no more samples."""
    attempt = max(list_attempts(store, restore_id, layout.EVERY_TRIAL), default=0)
    if attempt:
        store.put(layout.stop_key(restore_id, attempt, trial_id), json.dumps({}).encode())
