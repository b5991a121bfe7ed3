"""The attempts of one trial (or of the whole-experiment run) in a restore, and the records of each.

Rules:

1. Attempts are numbered from 1. The exclusive create of a request claims its number, for ever.
2. Only the runner of an attempt writes its heartbeat, progress, snapshots and outcome. The process that
   follows the runner writes an exit record if the runner left no outcome.
3. The first heartbeat is created exclusively, so an attempt has at most one runner.
4. A runner stops if it finds a newer attempt, or the record of a commit of its restore. It looks before
   its first heartbeat, so an attempt that was superseded before it started writes nothing. It looks
   again after each heartbeat.
5. A newer attempt is claimed before the heartbeats of earlier ones are read. By rules 4 and 5, at least
   one of two runners sees the other. A commit that took a runner for dead creates its record, and reads
   the heartbeat again for as long.
6. An attempt is over if it has an outcome, or if its heartbeat did not change for `QUIET_SECONDS` by the
   reader's own monotonic clock. The clocks of stores and of other machines do not count.
7. An attempt without a heartbeat never ran.

Standard library only.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import NamedTuple

from airflow_tune_restore.exceptions import KeyNotFoundError, RecordUnreadableError
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
from airflow_tune_restore.storage.in_flight import for_each

MAX_PROGRESS_BYTES = 4 * 1024**2
"""Size limit of the newest reports of one trial: 200 reports of up to forty metrics."""

QUIET_SECONDS = 20.0
"""A runner writes a heartbeat every 5 s. After this long without a new one it is dead."""


class AttemptId(NamedTuple):
    """The id of an attempt; `trial_id` may be `layout.WHOLE_EXPERIMENT`, `attempt` starts at 1."""

    restore_id: str
    trial_id: str
    attempt: int


class Watched(NamedTuple):
    """Attempts without an outcome: those that still live, and those whose runners count as dead."""

    alive: list[AttemptId]
    silent: list[AttemptId]


@dataclass(frozen=True, slots=True)
class AttemptRecords:
    """Reads the records of all attempts of one trial, or of the whole-experiment run, in one restore.

    Args:
        store: Rooted at the experiment directory.
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
        """Return the highest number of an attempt; 0 without attempts."""
        return max(self.numbers(), default=0)

    def newest_started(self) -> int | None:
        """Return the newest attempt whose runner wrote a heartbeat; None if no runner did."""
        return next(filter(self.has_begun, reversed(self.numbers())), None)

    def has_begun(self, attempt: int) -> bool:
        """Whether the runner of an attempt ever wrote a heartbeat."""
        return _heartbeat(self.store, self._id(attempt)) is not None

    def request(self, attempt: int) -> RunnerRequest:
        """Read the request that claimed an attempt (KeyNotFoundError if none did).

        Raises:
            RecordUnreadableError: If the record is not a request, or belongs to another attempt.
        """
        key = layout.request_key(*self._id(attempt))
        request = read_record(self.store, key, RunnerRequest.from_json)
        self._check_belongs(request, attempt, key, "request")
        # a writer of the store could name an experiment of another user, as in a plan
        return replace(request, experiment=self.store.uri)

    def outcome(self, attempt: int | None = None) -> RunnerOutcome | None:
        """Return how an attempt ended (the newest by default); None without an outcome.

        Raises:
            RecordUnreadableError: If the record is not an outcome, or belongs to another attempt.
        """
        attempt = self.newest() if attempt is None else attempt
        key = layout.outcome_key(*self._id(attempt))
        try:
            outcome = read_record(self.store, key, RunnerOutcome.from_json)
        except KeyNotFoundError:
            return None
        self._check_belongs(outcome, attempt, key, "outcome")
        return outcome

    def outcome_or_interrupted(self, attempt: int | None = None) -> RunnerOutcome | None:
        """Return the outcome; an unreadable one counts as interrupted, so that other trials go on."""
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
        """Return the exit record of an attempt; None if it has none.

        With `infer_from_heartbeat`, an attempt that has a heartbeat counts as exited without a cause.
        """
        key = layout.exit_key(*self._id(attempt))
        try:
            return read_record(self.store, key, RunnerExit.from_json)
        except KeyNotFoundError:
            return RunnerExit() if infer_from_heartbeat and self.has_begun(attempt) else None
        except RecordUnreadableError as error:  # it did exit; only its cause is unknown
            return RunnerExit(message=str(error))

    def record_exit(self, attempt: int, exit_code: int | None, message: str) -> None:
        """Record the exit of a runner that left no outcome, so that the ledger counts it."""
        ended = RunnerExit(
            exit_code=exit_code,
            message=message[-LAST_WORDS_LENGTH:],
            ended_at=self.store.now().isoformat(),
        )
        self.store.put(layout.exit_key(*self._id(attempt)), ended.to_json())

    def progress(self, attempt: int) -> ProgressTail | None:
        """Return the newest reports of the trial in an attempt; None before its first result.

        Progress is only shown: ignore a RecordUnreadableError.
        """
        key, most = layout.progress_key(*self._id(attempt)), MAX_PROGRESS_BYTES
        try:
            return read_record(self.store, key, ProgressTail.from_json, max_bytes=most)
        except KeyNotFoundError:
            return None

    def wait_until_over(self, attempt: int) -> None:
        """Block until an attempt is over (rule 6).

        Claim the next attempt, or release the lease, before you call this (rule 5).
        """
        wait_until_all_over(self.store, [self._id(attempt)])

    def _id(self, attempt: int) -> AttemptId:
        return AttemptId(self.restore_id, self.unit, attempt)

    def _check_belongs(
        self, record: RunnerRequest | RunnerOutcome, attempt: int, key: str, kind: str
    ) -> None:
        if (record.restore_id, record.trial_id, record.attempt) != self._id(attempt):
            raise RecordUnreadableError(self.store.uri, key, f"it is the {kind} of another attempt")


def find_ended(store: ObjectStore, restore_id: str, units: Iterable[str]) -> set[str]:
    """Return those of these trials whose newest outcome is an end of their own: finished, or failed."""

    def has_ended(unit: str) -> bool:
        outcome = AttemptRecords(store, restore_id, unit).outcome_or_interrupted()
        return outcome is not None and outcome.ends_trial

    units = list(units)
    return set(compress(units, for_each(has_ended, units)))


def wait_until_all_over(
    store: ObjectStore,
    attempts: Sequence[AttemptId],
    *,
    patience_seconds: float = math.inf,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Wait for many attempts, at most one per trial, as `AttemptRecords.wait_until_over` does for one.

    Returns:
        The attempts whose runners were still alive after `patience_seconds`, and those that ended
        without an outcome.
    """

    def look(attempt: AttemptId) -> tuple[bytes | None, bool, float, float]:
        began = monotonic()
        beat = _heartbeat(store, attempt)
        ended = monotonic()
        records = AttemptRecords(store, attempt.restore_id, attempt.trial_id)
        has_outcome = (
            beat is not None and records.outcome_or_interrupted(attempt.attempt) is not None
        )
        return beat, has_outcome, began, ended

    started = monotonic()
    beats: dict[AttemptId, bytes] = {}
    changed_at: dict[AttemptId, float] = {}
    watched = list(attempts)
    silent: list[AttemptId] = []
    while True:
        alive: list[AttemptId] = []
        for attempt, (beat, has_outcome, began, ended) in zip(
            watched, for_each(look, watched), strict=True
        ):
            if beat is None or has_outcome:
                continue
            if beats.get(attempt) != beat:
                beats[attempt], changed_at[attempt] = beat, ended
            # from the end of one look to the begin of another: this process may freeze in a look
            is_alive = began - changed_at[attempt] < QUIET_SECONDS
            (alive if is_alive else silent).append(attempt)
        if not alive or monotonic() - started > patience_seconds:
            return Watched(alive, silent)
        watched = alive
        sleep(1.0)


def _heartbeat(store: ObjectStore, attempt: AttemptId) -> bytes | None:
    return read_heartbeat(store, layout.heartbeat_key(*attempt))
