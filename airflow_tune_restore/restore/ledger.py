"""The failed attempts of every trial across nights, and which trials are in quarantine for them.

One object, `.tune_restore/ledger.json`, written only under the experiment's lease. It advises: results
never depend on it. One that makes no sense is therefore reported and taken for empty, rather than
standing in the way of a commit; what quarantine it held is found again by two more failures.
"""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated

import msgspec

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LinkRefusedError,
    RecordUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.record_fields import LINE_LENGTH
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import Result, RunnerExit, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.record_json import Count, decode, encode
from airflow_tune_restore.storage.base import ObjectStore

READ_LIMIT_BYTES = 64 * 1024**2
"""No more is written either: what would not be read again would be lost, quarantine and all."""

FIRST_MEMORY_BYTES = 4.0 * 1024**3
"""What a trial that ran out of memory is given first if it had asked for none."""

KEPT = 100
"""Failures kept of one trial, the newest."""

_UNEXPLAINED = frozenset({Cause.ACTOR_DIED.value, Cause.KILLED.value, Cause.UNKNOWN.value, ""})
_KILLED_WORDS = ("killed", "sigkill", "signal 9")
_CONCURRENCY = 16
_SAME_TWICE = 2
_HAVE_A_PLACE = frozenset({Cause.TRAINABLE.value, Cause.OUT_OF_MEMORY.value})
"""Causes that lie with the trial. A store that failed twice at the same line proves nothing."""


class FailedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that ended in a failure.

    Args:
        restore_id: The restore it belonged to.
        attempt: Its number there.
        cause: One of `Cause`.
        type: Type of the exception; "" if there was none.
        message: First line of its message.
        place: Innermost line of the user's code in its traceback; "" if none.
        iteration: Last `training_iteration` reported.
        ended_at: ISO 8601 UTC; "" if nobody saw the end.
        memory: Bytes of memory it had asked for; None if it had not.
    """

    restore_id: str
    attempt: Count
    cause: str
    type: str = ""
    message: str = ""
    place: str = ""
    iteration: Count = 0
    ended_at: str = ""
    memory: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        """Make fit to be shown what is only shown."""
        for name in ("restore_id", "cause", "type", "message", "place", "ended_at"):
            msgspec.structs.force_setattr(self, name, printable(getattr(self, name), LINE_LENGTH))

    @property
    def signature(self) -> tuple[object, ...] | None:
        """What makes two failures the same; None if it is never the same as another.

        With more memory, running out of it is another failure.
        """
        if self.cause not in _HAVE_A_PLACE or not self.place:
            return None
        return (self.type, self.place, self.iteration, self.memory)


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The failures of one trial.

    Args:
        failures: Those that count, oldest first.
        released: Those before the last release.
        released_at: When that was, ISO 8601 UTC; "" if never.
        quarantined: Why a commit put it in quarantine; "" if none did.
    """

    failures: tuple[FailedAttempt, ...] = ()
    released: tuple[FailedAttempt, ...] = ()
    released_at: str = ""
    quarantined: str = ""

    def __post_init__(self) -> None:
        """Make fit to be shown what is only shown."""
        for name in ("released_at", "quarantined"):
            msgspec.structs.force_setattr(self, name, printable(getattr(self, name), NOTE_LENGTH))

    def quarantine_reason(self, max_attempts: int | None) -> str:
        """Say why the trial is not run any more; "" if it is."""
        return self.quarantined or _verdict(self.failures, max_attempts)


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """All trials of an experiment that ever failed in a restore, by trial id."""

    trials: dict[str, History] = {}
    schema: Count = 1

    def __post_init__(self) -> None:
        """Leave out what is no name of a trial."""
        trials = {name: history for name, history in self.trials.items() if is_safe_name(name)}
        msgspec.structs.force_setattr(self, "trials", trials)

    def quarantined(self, max_attempts: int | None) -> dict[str, str]:
        """Return why trials are in quarantine, by trial id."""
        reasons = {
            trial_id: history.quarantine_reason(max_attempts)
            for trial_id, history in self.trials.items()
        }
        return {trial_id: reason for trial_id, reason in reasons.items() if reason}


def read_ledger(store: ObjectStore) -> tuple[Ledger, str]:
    """Return the ledger (an empty one if there is none), and a warning if it could not be understood."""
    try:
        body = store.get(layout.LEDGER, max_bytes=READ_LIMIT_BYTES)
    except KeyNotFoundError:
        return Ledger(), ""
    except (TooLargeError, LinkRefusedError) as error:
        return Ledger(), _not_understood(error)
    try:
        return decode(body, Ledger), ""
    except (ValueError, RecursionError) as error:
        return Ledger(), _not_understood(error)


def _not_understood(error: Exception) -> str:
    return (
        f"{layout.LEDGER} makes no sense ({printable(str(error))}) and is taken for empty: earlier "
        "failures do not count, and no trial is in quarantine"
    )


def record_failures(store: ObjectStore, plan: RestorePlan) -> Ledger:
    """Enter the failed attempts of a restore; done again it changes nothing. Needs the lease.

    A trial that was started over hands its failures on to the new one.
    """
    ledger, _ = read_ledger(store)
    trials = dict(ledger.trials)
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        read = pool.map(lambda t: read_failures(store, plan.restore_id, t.trial_id), plan.to_run)
        found = list(zip(plan.to_run, read, strict=True))
    for planned, failures in found:
        before = trials.get(planned.trial_id, History())
        after = _with_failures(before, plan.restore_id, failures)
        if after == History():
            continue
        trials[planned.trial_id] = after
        reason = after.quarantine_reason(plan.choices.max_attempts)
        if reason and not _has_finished(store, plan.restore_id, planned.trial_id):
            after = msgspec.structs.replace(after, quarantined=reason)
        trials[planned.final_trial_id] = after
    recorded = Ledger(trials=trials)
    if recorded != ledger:
        write_ledger(store, recorded)
    return recorded


def write_ledger(store: ObjectStore, ledger: Ledger) -> None:
    """Write the ledger, with as many failures of each trial as can be read again. Needs the lease."""
    for kept in (KEPT, _SAME_TWICE):
        body = encode(_with_newest(ledger, kept))
        if len(body) <= READ_LIMIT_BYTES:
            break
    store.put(layout.LEDGER, body)


def _with_newest(ledger: Ledger, kept: int) -> Ledger:
    trials = {
        trial_id: msgspec.structs.replace(
            history, failures=history.failures[-kept:], released=history.released[-kept:]
        )
        for trial_id, history in ledger.trials.items()
    }
    return msgspec.structs.replace(ledger, trials=trials)


def read_failures(store: ObjectStore, restore_id: str, trial_id: str) -> tuple[FailedAttempt, ...]:
    """Return the attempts of one restore that failed, oldest first.

    What was interrupted on request, refused or overtaken did not fail; a runner that died without an
    outcome, or lost its node, did.
    """
    found = (
        _read_failure(store, restore_id, trial_id, attempt)
        for attempt in AttemptRecords(store, restore_id, trial_id).numbers()
    )
    return tuple(failure for failure in found if failure is not None)


def explain(outcome: RunnerOutcome, end: RunnerExit | None) -> RunnerOutcome:
    """Return a failed outcome with the cause that its place knows, and the runner did not.

    A kernel that needs memory kills one process of a container, which may be the trial's worker, or one
    that the trial has started. The runner only sees that it died.
    """
    if end is None or not _is_unexplained(outcome):
        return outcome
    failure = classify_exit(end.exit_code, end.message)
    if failure is None or failure.cause is not Cause.OUT_OF_MEMORY:
        return outcome
    return replace(
        outcome,
        cause=Cause.OUT_OF_MEMORY.value,
        error=f"{end.message} ({outcome.error})".replace(" ()", ""),
    )


def _is_unexplained(outcome: RunnerOutcome) -> bool:
    """Whether a trial failed because a process was gone, and nobody there knew why."""
    error = outcome.error.lower()
    was_killed = outcome.cause in _UNEXPLAINED or any(words in error for words in _KILLED_WORDS)
    return outcome.result == Result.FAILED and was_killed


def seen_before(
    failures: Iterable[FailedAttempt], restore_id: str, attempt: int
) -> FailedAttempt | None:
    """Return an earlier failure that was the same as that of this attempt, if there is one."""
    known = list(failures)
    if not known or (known[-1].restore_id, known[-1].attempt) != (restore_id, attempt):
        return None
    signature = known[-1].signature
    same = [failure for failure in known[:-1] if failure.signature == signature]
    return same[-1] if signature is not None and same else None


def read_history(store: ObjectStore, restore_id: str, trial_id: str) -> History:
    """Return the history of a trial, with the failures of the restore under way."""
    history = read_ledger(store)[0].trials.get(trial_id, History())
    failures = read_failures(store, restore_id, trial_id)
    return _with_failures(history, restore_id, failures)


def memory_to_ask(plan: RestorePlan, trial_id: str, history: History) -> float | None:
    """Return how many bytes of memory the next attempt of a trial should ask for.

    Twice the most it ran out of, starting from what it asks for by itself, up to the plan's
    `max_memory_bytes`; never less than its own. A release does not take it back.

    Returns:
        None if it never ran out of memory, or for the one run of all trials: it has the machine.
    """
    if trial_id == layout.WHOLE_EXPERIMENT:
        return None
    own = plan.trial(trial_id).resources.get("memory")
    short = [f for f in history.released + history.failures if f.cause == Cause.OUT_OF_MEMORY]
    if not short:
        return None
    most = max((f.memory or 0.0 for f in short), default=0.0) or own
    wanted = most * 2 if most else FIRST_MEMORY_BYTES
    return max(min(wanted, plan.choices.max_memory_bytes), own or 0.0)


def _has_finished(store: ObjectStore, restore_id: str, trial_id: str) -> bool:
    outcome = AttemptRecords(store, restore_id, trial_id).outcome_or_interrupted()
    return outcome is not None and outcome.result == Result.FINISHED


def _verdict(failures: tuple[FailedAttempt, ...], max_attempts: int | None) -> str:
    counts = Counter(failure.signature for failure in failures)
    for failure in failures:
        times = counts[failure.signature]
        if failure.signature is not None and times >= _SAME_TWICE:
            return (
                f"{failure.type or failure.cause} at {failure.place} after iteration "
                f"{failure.iteration}, {times} times"
            )
    if max_attempts is not None and len(failures) >= max_attempts:
        return f"{len(failures)} failed attempts, of at most {max_attempts}"
    return ""


def _with_failures(
    history: History, restore_id: str, failures: tuple[FailedAttempt, ...]
) -> History:
    """Put a restore's failures in the place of what was entered for it before."""
    released = {(f.restore_id, f.attempt) for f in history.released}
    others = tuple(f for f in history.failures if f.restore_id != restore_id)
    new = tuple(f for f in failures if (f.restore_id, f.attempt) not in released)
    return msgspec.structs.replace(history, failures=(others + new)[-KEPT:])


def _read_failure(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int
) -> FailedAttempt | None:
    outcome = AttemptRecords(store, restore_id, trial_id).outcome_or_interrupted(attempt)
    if outcome is not None and outcome.result == Result.FAILED:
        if _is_unexplained(outcome):  # only then is there one to read
            outcome = explain(outcome, AttemptRecords(store, restore_id, trial_id).exit(attempt))
        return FailedAttempt(
            restore_id=restore_id,
            attempt=attempt,
            cause=outcome.cause or Cause.UNKNOWN.value,
            type=outcome.error_type,
            message=outcome.error,
            place=outcome.place,
            iteration=outcome.iteration,
            ended_at=outcome.ended_at,
            memory=_memory_asked(store, restore_id, trial_id, attempt),
        )
    if outcome is None:
        end = AttemptRecords(store, restore_id, trial_id).exit(attempt, infer_from_heartbeat=True)
    elif (
        outcome.result == Result.INTERRUPTED
    ):  # it had time to save, and was taken away all the same
        end = AttemptRecords(store, restore_id, trial_id).exit(attempt)
    else:
        return None
    failure = classify_exit(end.exit_code, end.message) if end is not None else None
    if end is None or failure is None:
        return None
    return FailedAttempt(
        restore_id=restore_id,
        attempt=attempt,
        cause=failure.cause.value,
        message=failure.message,
        iteration=outcome.iteration if outcome is not None else 0,
        ended_at=end.ended_at,
        memory=_memory_asked(store, restore_id, trial_id, attempt),
    )


def _memory_asked(store: ObjectStore, restore_id: str, trial_id: str, attempt: int) -> float | None:
    key = layout.request_key(restore_id, trial_id, attempt)
    try:
        memory = read_record(store, key, RunnerRequest.from_json).resources.get("memory")
    except (KeyNotFoundError, RecordUnreadableError):
        return None  # not ours, or not any more
    return memory if memory is None else float(memory)
