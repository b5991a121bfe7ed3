"""Attempts: one run of one trial in a restore, numbered from 1.

Creating an attempt's request claims its number; a runner that sees a higher one stops. The runner alone
writes heartbeat, snapshot and outcome of its attempt. Standard library only.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    RecordUnreadableError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.records import read_heartbeat, read_record
from airflow_tune_restore.protocol.request import Result, RunnerExit, RunnerOutcome, RunnerRequest
from airflow_tune_restore.protocol.typed import LAST_WORDS_LENGTH
from airflow_tune_restore.storage.base import ObjectStore

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


def read_request(store: ObjectStore, restore_id: str, trial_id: str, attempt: int) -> RunnerRequest:
    """Read what was claimed.

    Raises:
        KeyNotFoundError: If nobody claimed it.
        RecordUnreadableError: If what is there is no request, or that of another attempt.
    """
    key = layout.request_key(restore_id, trial_id, attempt)
    request = read_record(store, key, RunnerRequest.from_json)
    if (request.restore_id, request.trial_id, request.attempt) != (restore_id, trial_id, attempt):
        raise RecordUnreadableError(store.uri, key, "it is the request of another attempt")
    # as for a plan: whoever can write it may name an experiment that is not his
    return replace(request, experiment=store.uri)


def list_attempts(store: ObjectStore, restore_id: str, trial_id: str) -> list[int]:
    """Return the numbers of all attempts, ascending."""
    entries = store.list_dir(layout.attempts_dir(restore_id, trial_id))
    numbers = (layout.attempt_number(entry.name) for entry in entries if entry.is_dir)
    return sorted(number for number in numbers if number is not None)


def has_begun(store: ObjectStore, request: RunnerRequest) -> bool:
    """Whether the runner of an attempt has ever shown itself."""
    return _beat(store, request.restore_id, request.trial_id, request.attempt) is not None


def newest_started(store: ObjectStore, restore_id: str, trial_id: str) -> int | None:
    """Return the newest attempt whose runner has shown itself; later ones never got to run."""
    for attempt in reversed(list_attempts(store, restore_id, trial_id)):
        if _beat(store, restore_id, trial_id, attempt) is not None:
            return attempt
    return None


def read_outcome(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int | None = None
) -> RunnerOutcome | None:
    """Return how an attempt ended (the newest, unless one is named); None if it has not said."""
    if attempt is None:
        attempt = max(list_attempts(store, restore_id, trial_id), default=0)
    key = layout.outcome_key(restore_id, trial_id, attempt)
    try:
        outcome = read_record(store, key, RunnerOutcome.from_json)
    except KeyNotFoundError:
        return None
    if (outcome.restore_id, outcome.trial_id, outcome.attempt) != (restore_id, trial_id, attempt):
        raise RecordUnreadableError(store.uri, key, "it is the outcome of another attempt")
    return outcome


def read_outcome_or_interrupted(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int | None = None
) -> RunnerOutcome | None:
    """As `read_outcome`, for what is only told: garbage counts as interrupted and holds up nothing."""
    try:
        return read_outcome(store, restore_id, trial_id, attempt)
    except RecordUnreadableError as error:
        return RunnerOutcome(
            restore_id=restore_id,
            trial_id=trial_id,
            attempt=attempt or 0,
            result=Result.INTERRUPTED,
            status="",
            final_trial_id=trial_id,
            error=str(error),
        )


def record_exit(
    store: ObjectStore, request: RunnerRequest, exit_code: int | None, message: str
) -> RunnerExit:
    """Keep what was seen of a runner that left no outcome, or was taken away: the ledger counts it."""
    end = RunnerExit(
        exit_code=exit_code, message=message[-LAST_WORDS_LENGTH:], ended_at=store.now().isoformat()
    )
    key = layout.exit_key(request.restore_id, request.trial_id, request.attempt)
    store.put(key, end.to_json())
    return end


def read_exit(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int
) -> RunnerExit | None:
    """Return what was seen of the end of an attempt without outcome; None if nobody saw it.

    An attempt that was never heard of (no heartbeat, no end) did not run: None, too.
    """
    seen = read_recorded_exit(store, restore_id, trial_id, attempt)
    if seen is not None:
        return seen
    beat = _beat(store, restore_id, trial_id, attempt)
    return RunnerExit() if beat is not None else None


def read_recorded_exit(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int
) -> RunnerExit | None:
    """Return what somebody has written down of an attempt's end, whether or not it has an outcome."""
    key = layout.exit_key(restore_id, trial_id, attempt)
    try:
        return read_record(store, key, RunnerExit.from_json)
    except KeyNotFoundError:
        return None
    except RecordUnreadableError as error:  # that it ended is known, if not how
        return RunnerExit(message=str(error))


def wait_until_over(
    store: ObjectStore,
    restore_id: str,
    trial_id: str,
    attempt: int,
    *,
    patience_seconds: float = math.inf,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Block until an attempt has an outcome, or its runner was silent for `QUIET_SECONDS`.

    An attempt without any heartbeat never got to run. Claim the next attempt (or release the lease)
    before calling this: a runner writes its first heartbeat before it looks for newer attempts, so one
    of the two sees the other.

    Returns:
        False if its runner still lived after `patience_seconds`.
    """
    alive = wait_until_all_over(
        store,
        [AttemptId(restore_id, trial_id, attempt)],
        patience_seconds=patience_seconds,
        monotonic=monotonic,
        sleep=sleep,
    )
    return not alive


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
        beat = _beat(store, *attempt)
        has_outcome = beat is not None and read_outcome_or_interrupted(store, *attempt) is not None
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


def _beat(store: ObjectStore, restore_id: str, trial_id: str, attempt: int) -> bytes | None:
    return read_heartbeat(store, layout.heartbeat_key(restore_id, trial_id, attempt))
