"""Attempts: one run of one trial in a restore, numbered from 1.

Creating an attempt's request claims its number; a runner that sees a higher one stops. The runner alone
writes heartbeat, snapshot and outcome of its attempt. Standard library only.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    RecordUnreadableError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.record_fields import LAST_WORDS_LENGTH
from airflow_tune_restore.protocol.records import read_heartbeat, read_record
from airflow_tune_restore.protocol.request import (
    ProgressTail,
    Result,
    RunnerExit,
    RunnerOutcome,
    RunnerRequest,
)
from airflow_tune_restore.storage.base import ObjectStore

MAX_PROGRESS_BYTES = 4 * 1024**2
"""Size limit of the newest reports of one trial: 200 reports of up to forty metrics."""

_CONCURRENCY = 16
QUIET_SECONDS = 20.0
"""A runner beats every 5 s; one that is silent this long by our own clock is dead."""


class AttemptId(NamedTuple):
    """What names an attempt.

    Args:
        restore_id: The restore.
        trial_id: Trial id in the plan; `layout.WHOLE_EXPERIMENT` for the one run of all.
        attempt: Its number, from 1.
    """

    restore_id: str
    trial_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AttemptRecords:
    """What is stored of the attempts of one trial, or of the whole-experiment run, in one restore.

    Args:
        store: Rooted at the experiment directory.
        restore_id: The restore.
        unit: Trial id in the plan; `layout.WHOLE_EXPERIMENT` for the whole-experiment run.
    """

    store: ObjectStore
    restore_id: str
    unit: str

    @classmethod
    def of(cls, store: ObjectStore, request: RunnerRequest) -> "AttemptRecords":
        """Return the records that the attempt of a request belongs to."""
        return cls(store, request.restore_id, request.trial_id)

    def numbers(self) -> list[int]:
        """Return the numbers of all attempts, ascending."""
        entries = self.store.list_dir(layout.attempts_dir(self.restore_id, self.unit))
        numbers = (layout.attempt_number(entry.name) for entry in entries if entry.is_dir)
        return sorted(number for number in numbers if number is not None)

    def newest(self) -> int:
        """Return the highest number of an attempt; 0 if there is no attempt."""
        return max(self.numbers(), default=0)

    def newest_started(self) -> int | None:
        """Return the newest attempt whose runner wrote a heartbeat; None if no runner did."""
        return next(filter(self.has_begun, reversed(self.numbers())), None)

    def has_begun(self, attempt: int) -> bool:
        """Whether the runner of an attempt ever wrote a heartbeat."""
        return _heartbeat(self.store, self._id(attempt)) is not None

    def request(self, attempt: int) -> RunnerRequest:
        """Read the request that claimed an attempt.

        Raises:
            KeyNotFoundError: If the attempt is not claimed.
            RecordUnreadableError: If the record is not a request, or that of another attempt.
        """
        key = layout.request_key(*self._id(attempt))
        request = read_record(self.store, key, RunnerRequest.from_json)
        self._check_belongs(request, attempt, key, "request")
        # as for a plan: a writer of the store could name an experiment that is not theirs
        return replace(request, experiment=self.store.uri)

    def outcome(self, attempt: int | None = None) -> RunnerOutcome | None:
        """Return how an attempt ended (the newest by default); None without an outcome.

        Raises:
            RecordUnreadableError: If the record is not an outcome, or that of another attempt.
        """
        if attempt is None:
            attempt = self.newest()
        key = layout.outcome_key(*self._id(attempt))
        try:
            outcome = read_record(self.store, key, RunnerOutcome.from_json)
        except KeyNotFoundError:
            return None
        self._check_belongs(outcome, attempt, key, "outcome")
        return outcome

    def outcome_or_interrupted(self, attempt: int | None = None) -> RunnerOutcome | None:
        """Return the outcome; an unreadable one counts as interrupted and stops no other trial."""
        try:
            return self.outcome(attempt)
        except RecordUnreadableError as error:
            return RunnerOutcome(
                restore_id=self.restore_id,
                trial_id=self.unit,
                attempt=attempt or 0,
                result=Result.INTERRUPTED,
                status="",
                final_trial_id=self.unit,
                error=str(error),
            )

    def exit(self, attempt: int, *, infer_from_heartbeat: bool = False) -> RunnerExit | None:
        """Return how the process of an attempt was seen to exit; None if that was not recorded.

        With `infer_from_heartbeat`, an attempt that ran has an exit, though without a recorded cause.
        """
        try:
            return read_record(
                self.store, layout.exit_key(*self._id(attempt)), RunnerExit.from_json
            )
        except KeyNotFoundError:
            return RunnerExit() if infer_from_heartbeat and self.has_begun(attempt) else None
        except RecordUnreadableError as error:  # it did exit; only the cause is lost
            return RunnerExit(message=str(error))

    def record_exit(self, attempt: int, exit_code: int | None, message: str) -> None:
        """Record the exit of a runner that left no outcome or was taken away; the ledger counts it."""
        ended = RunnerExit(
            exit_code=exit_code,
            message=message[-LAST_WORDS_LENGTH:],
            ended_at=self.store.now().isoformat(),
        )
        self.store.put(layout.exit_key(*self._id(attempt)), ended.to_json())

    def progress(self, attempt: int) -> ProgressTail | None:
        """Return the newest reports of the trial in an attempt; None before its first result.

        Raises:
            RecordUnreadableError: If the record is not valid. It is only shown, so it must stop nothing.
        """
        key = layout.progress_key(*self._id(attempt))
        try:
            return read_record(
                self.store, key, ProgressTail.from_json, max_bytes=MAX_PROGRESS_BYTES
            )
        except KeyNotFoundError:
            return None

    def wait_until_over(
        self,
        attempt: int,
        *,
        patience_seconds: float = math.inf,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> bool:
        """Block until an attempt has an outcome, or its heartbeat did not change for `QUIET_SECONDS`.

        An attempt without any heartbeat never ran. Claim the next attempt (or release the lease) before
        calling this: a runner writes its first heartbeat before it looks for newer attempts, so one of
        the two sees the other.

        Returns:
            False if its runner still lived after `patience_seconds`.
        """
        alive = wait_until_all_over(
            self.store,
            [self._id(attempt)],
            patience_seconds=patience_seconds,
            monotonic=monotonic,
            sleep=sleep,
        )
        return not alive

    def _id(self, attempt: int) -> AttemptId:
        return AttemptId(self.restore_id, self.unit, attempt)

    def _check_belongs(
        self, record: RunnerRequest | RunnerOutcome, attempt: int, key: str, kind: str
    ) -> None:
        if (record.restore_id, record.trial_id, record.attempt) != self._id(attempt):
            raise RecordUnreadableError(self.store.uri, key, f"it is the {kind} of another attempt")


def wait_until_all_over(
    store: ObjectStore,
    attempts: Sequence[AttemptId],
    *,
    patience_seconds: float = math.inf,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[AttemptId]:
    """Do as `wait_until_over` for many attempts, in the time that one takes.

    Args:
        store: Rooted at the experiment directory.
        attempts: One of each trial.
        patience_seconds: How long living runners are waited for.
        monotonic: The clock.
        sleep: Waits some seconds.

    Returns:
        Those whose runners still lived after `patience_seconds`.
    """

    def look(attempt: AttemptId) -> tuple[bytes | None, bool, float]:
        beat = _heartbeat(store, attempt)
        records = AttemptRecords(store, attempt.restore_id, attempt.trial_id)
        has_outcome = (
            beat is not None and records.outcome_or_interrupted(attempt.attempt) is not None
        )
        return beat, has_outcome, monotonic()

    started = monotonic()
    beats: dict[AttemptId, bytes] = {}
    changed_at: dict[AttemptId, float] = {}
    watched = list(attempts)
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        while True:
            alive = []
            for attempt, (beat, has_outcome, at) in zip(
                watched, pool.map(look, watched), strict=True
            ):
                if beat is None or has_outcome:
                    continue
                if beats.get(attempt) != beat:
                    beats[attempt], changed_at[attempt] = beat, at
                if at - changed_at[attempt] < QUIET_SECONDS:
                    alive.append(attempt)
            if not alive or monotonic() - started > patience_seconds:
                return alive
            watched = alive
            sleep(1.0)


def _heartbeat(store: ObjectStore, attempt: AttemptId) -> bytes | None:
    return read_heartbeat(store, layout.heartbeat_key(*attempt))
