"""The ledger: failed attempts of every trial over all restores, and which trials are in quarantine.

One object, `.tune_restore/ledger.json`, written only under the experiment's lease. Results never depend
on it. So an unreadable ledger is reported and counts as empty, and the commit goes on; two more failures
of a trial put it in quarantine again.
"""

from dataclasses import replace

import msgspec

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LinkRefusedError,
    RecordUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import Result, RunnerExit, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.history import KEPT, SAME_TWICE, FailedAttempt, History
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.record_json import Count, decode, encode
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

READ_LIMIT_BYTES = 64 * 1024**2
"""No more is written either: a larger ledger could not be read again."""

FIRST_MEMORY_BYTES = 4.0 * 1024**3
"""Memory for a trial that ran out of memory and had requested none."""

_UNEXPLAINED = frozenset({Cause.ACTOR_DIED.value, Cause.KILLED.value, Cause.UNKNOWN.value, ""})
_KILLED_WORDS = ("killed", "sigkill", "signal 9")


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """All trials of an experiment that ever failed in a restore, by trial id."""

    trials: dict[str, History] = {}
    schema: Count = 1

    def __post_init__(self) -> None:
        trials = {name: history for name, history in self.trials.items() if is_safe_name(name)}
        msgspec.structs.force_setattr(self, "trials", trials)

    def quarantined(self, max_attempts: int | None) -> dict[str, str]:
        """Return why trials are in quarantine, by trial id."""
        return {
            trial_id: reason
            for trial_id, history in self.trials.items()
            if (reason := history.quarantine_reason(max_attempts))
        }


_LEDGER = msgspec.json.Decoder(Ledger)


def read_ledger(store: ObjectStore) -> tuple[Ledger, str]:
    """Return the ledger (an empty one if there is none), and a warning if it is unreadable."""
    try:
        return decode(store.get(layout.LEDGER, max_bytes=READ_LIMIT_BYTES), _LEDGER), ""
    except KeyNotFoundError:
        return Ledger(), ""
    except (TooLargeError, LinkRefusedError, ValueError, RecursionError) as error:
        return Ledger(), (
            f"{layout.LEDGER} is unreadable ({printable(str(error))}) and counts as empty: earlier "
            "failures do not count, and no trial is in quarantine"
        )


def record_failures(store: ObjectStore, plan: RestorePlan, records: RestoreRecords) -> Ledger:
    """Add the failed attempts of a restore. Repeated, it changes nothing. Needs the lease.

    The failures of a restarted trial also count for the trial that replaced it.
    """
    ledger, _ = read_ledger(store)
    trials = dict(ledger.trials)
    to_run = plan.to_run
    read = for_each(lambda trial: _failures_in(records.of(trial.trial_id), plan.pause_at), to_run)
    for planned, failures in zip(to_run, read, strict=True):
        before = trials.get(planned.trial_id, History())
        after = before.with_failures(plan.restore_id, failures)
        if after == History():
            continue
        trials[planned.trial_id] = after
        reason = after.quarantine_reason(plan.choices.max_attempts)
        outcome = records.of(planned.trial_id).outcome_or_interrupted()
        if reason and not (outcome is not None and outcome.result == Result.FINISHED):
            after = msgspec.structs.replace(after, quarantined=reason)
        trials[planned.final_trial_id] = after
    recorded = Ledger(trials=trials)
    if recorded != ledger:
        write_ledger(store, recorded)
    return recorded


def write_ledger(store: ObjectStore, ledger: Ledger) -> None:
    """Write the ledger, with fewer failures per trial if it were too large. Needs the lease."""
    for kept in (KEPT, SAME_TWICE):
        trials = {
            trial_id: msgspec.structs.replace(
                history, failures=history.failures[-kept:], released=history.released[-kept:]
            )
            for trial_id, history in ledger.trials.items()
        }
        body = encode(msgspec.structs.replace(ledger, trials=trials))
        if len(body) <= READ_LIMIT_BYTES:
            break
    store.put(layout.LEDGER, body)


def read_failures(
    store: ObjectStore, restore_id: str, trial_id: str, pause_at: str = ""
) -> tuple[FailedAttempt, ...]:
    """Return the attempts of one restore that failed, oldest first.

    Attempts that were interrupted on request, refused or superseded did not fail. Those whose runner died
    without an outcome, or lost its node, did; but not after `pause_at`, the end of their window.
    """
    return _failures_in(AttemptRecords(store, restore_id, trial_id), pause_at)


def _failures_in(records: AttemptRecords, pause_at: str) -> tuple[FailedAttempt, ...]:
    read = (_read_failure(records, number, pause_at) for number in records.numbers())
    return tuple(filter(None, read))


def explain(outcome: RunnerOutcome, end: RunnerExit | None) -> RunnerOutcome:
    """Return a failed outcome with the cause from the exit of its pod or process, if that explains more.

    When a container runs out of memory, the kernel kills one of its processes: the trial's worker, or one
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
    """Whether a trial failed because a process died, for a reason that the runner could not see."""
    error = outcome.error.lower()
    was_killed = outcome.cause in _UNEXPLAINED or any(words in error for words in _KILLED_WORDS)
    return outcome.result == Result.FAILED and was_killed


def read_history(store: ObjectStore, plan: RestorePlan, trial_id: str) -> History:
    """Return the history of a trial: its failures as the plan recorded them, and those of its restore.

    Nobody writes the ledger while the restore holds the lease. Plans of older versions have no record.
    """
    known = read_ledger(store)[0].trials if plan.failures is None else plan.failures
    failures = read_failures(store, plan.restore_id, trial_id, plan.pause_at)
    return known.get(trial_id, History()).with_failures(plan.restore_id, failures)


def memory_to_ask(plan: RestorePlan, trial_id: str, history: History) -> float | None:
    """Return how many bytes of memory the next attempt of a trial should request.

    Twice the most that it ran out of, starting from its own request, up to `max_memory_bytes` of the
    choices; never less than its own request. A release does not reset it. None if it never ran out of
    memory, or for a whole-experiment run, which has the whole machine.
    """
    if trial_id in layout.RUNS_OF_MANY:
        return None
    own = plan.trial(trial_id).resources.get("memory")
    short = [f for f in history.released + history.failures if f.cause == Cause.OUT_OF_MEMORY]
    if not short:
        return None
    most = max(f.memory or 0.0 for f in short) or own
    wanted = most * 2 if most else FIRST_MEMORY_BYTES
    return max(min(wanted, plan.choices.max_memory_bytes), own or 0.0)


def _read_failure(records: AttemptRecords, attempt: int, pause_at: str) -> FailedAttempt | None:
    outcome = records.outcome_or_interrupted(attempt)
    if outcome is not None and outcome.result == Result.FAILED:
        if _is_unexplained(outcome):  # only then is an exit recorded beside an outcome
            outcome = explain(outcome, records.exit(attempt))
        return FailedAttempt(
            restore_id=records.restore_id,
            attempt=attempt,
            cause=outcome.cause or Cause.UNKNOWN.value,
            type=outcome.error_type,
            message=outcome.error,
            place=outcome.place,
            iteration=outcome.iteration,
            ended_at=outcome.ended_at,
            memory=_requested_memory(records, attempt),
        )
    if outcome is not None and outcome.result != Result.INTERRUPTED:
        return None
    if _was_shared(records, attempt):
        return None  # another trial may have ended the driver: this one runs alone next, and counts then
    # an interrupted runner had time to save, but may have lost its node all the same
    end = records.exit(attempt, infer_from_heartbeat=outcome is None)
    if end is not None and _ended_with_window(end, pause_at):
        return None
    if end is None or (failure := classify_exit(end.exit_code, end.message)) is None:
        return None
    return FailedAttempt(
        restore_id=records.restore_id,
        attempt=attempt,
        cause=failure.cause.value,
        message=failure.message,
        iteration=outcome.iteration if outcome is not None else 0,
        ended_at=end.ended_at,
        memory=_requested_memory(records, attempt),
    )


def _ended_with_window(end: RunnerExit, pause_at: str) -> bool:
    """Whether a runner exited after the end of its window: whatever stopped it, it was to stop."""
    ended = window.parse_end(end.ended_at)
    return ended is not None and window.is_over(pause_at, ended)


def _requested_memory(records: AttemptRecords, attempt: int) -> float | None:
    request = _request(records, attempt)
    return request.resources.get("memory") if request is not None else None


def _was_shared(records: AttemptRecords, attempt: int) -> bool:
    request = _request(records, attempt)
    return request is not None and request.is_shared


def _request(records: AttemptRecords, attempt: int) -> RunnerRequest | None:
    try:
        return records.request(attempt)
    except (KeyNotFoundError, RecordUnreadableError):
        return None
