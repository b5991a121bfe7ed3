"""Follow one trial that a shared driver runs: the first task starts the driver, the others attach.

A follower only reads records in storage. So followers and the driver may be on different machines.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from airflow_tune_restore.exceptions import KeyExistsError
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk
from airflow_tune_restore.protocol.request import RunnerOutcome, RunnerProgress
from airflow_tune_restore.restore.follow import (
    POLL_SECONDS,
    QUIET_SECONDS,
    Heartbeats,
    Reports,
    look_until_ended,
)
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.restore.shared_driver import (
    drivers,
    leave_ended_driver,
)
from airflow_tune_restore.storage.base import ObjectStore

_FIRST_PAUSE, _GROWTH = 0.5, 1.1  # trials that share are short: their ends are soon seen


@dataclass
class SharedFollower:
    """Follows the shared attempt of one trial, which lies on the desk (`shared_driver.hand_over`).

    `start` claims and starts a driver of a number; it raises KeyExistsError if the number is taken.
    After `progress` has ended, `outcome` is that of the trial. None: it runs alone, and `alone_because`
    says why. `driver` is the number of the newest driver; 0 before the first look.
    """

    store: ObjectStore
    restore_id: str
    trial_id: str
    start: Callable[[int], None]
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    outcome: RunnerOutcome | None = None
    alone_because: str = ""
    driver: int = 0

    def __post_init__(self) -> None:
        self._drivers = drivers(self.store, self.restore_id)
        self._trial = AttemptRecords(self.store, self.restore_id, self.trial_id)
        self._of_driver = Heartbeats(self._drivers, self.monotonic)
        self._of_trial = Heartbeats(self._trial, self.monotonic)
        self._reports = Reports(self._trial)

    def progress(self) -> Iterator[RunnerProgress | None]:
        """Yield the reports of the trial until its attempt is over, and None after each look.

        Starts a driver if none is alive and the trial was not begun.

        Raises:
            StorageError: If the store was unreachable for `OUTAGE_SECONDS`.
            LeaseLostError: If no driver is alive, and the restore has ended.
            RestorePausedError: If no driver is alive, and the window of the restore has ended.
        """
        return look_until_ended(
            self._look, _growing_pauses(), monotonic=self.monotonic, sleep=self.sleep
        )

    def take_lines(self) -> list[str]:
        """Return the lines that the trial has printed since the last call."""
        lines, self._reports.lines = self._reports.lines, []
        return lines

    def _look(self) -> tuple[list[RunnerProgress], bool]:
        """Return the new reports, and whether the attempt is over. Start a driver if none is alive."""
        newest = self.driver = self._drivers.newest()
        has_begun, quiet_seconds = self._of_trial.quiet(SHARED_ATTEMPT)
        is_over = newest == 0 or self._of_driver.is_over(newest)
        # in this order: a driver writes the last report of a trial, then its outcome, then its own
        self.outcome = self._trial.outcome(SHARED_ATTEMPT)
        reports = self._reports.new(SHARED_ATTEMPT)
        if self.outcome is not None:
            return reports, True
        # a driver that died after it began the trial may have a living successor, which does not run it
        is_lost = has_begun and quiet_seconds > QUIET_SECONDS
        if is_over or is_lost:
            self.alone_because = leave_ended_driver(
                *(self.store, self.restore_id, self.trial_id), None if is_lost else newest
            )
            if self.alone_because:
                self.outcome = self._trial.outcome(SHARED_ATTEMPT)  # it lived after all
            else:
                self._start_next(newest + 1)
        return reports, bool(self.alone_because)

    def _start_next(self, number: int) -> None:
        Desk(self.store, self.restore_id).hand_over(self.trial_id, SHARED_ATTEMPT)
        lease.keep_alive(self.store, self.restore_id)  # or each driver would end itself, for ever
        try:
            self.start(number)
            self.driver = number
        except RestorePausedError as error:
            last = self._reports.last
            raise replace(error, trial_id=self.trial_id, iteration=last) from None
        except KeyExistsError:
            pass  # another task has just started it: attach to that driver


def _growing_pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * _GROWTH, POLL_SECONDS)
