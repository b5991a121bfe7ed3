"""One attempt as people see it: how far its trial has come, or how it ended. Odd records are left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LinkRefusedError,
    RecordUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.experiments.raw_row import MalformedStateError
from airflow_tune_restore.experiments.state import Keep, parse_pieces
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import classify_exit
from airflow_tune_restore.protocol.listed_records import ListedRecords
from airflow_tune_restore.protocol.request import (
    ProgressTail,
    Result,
    RunnerExit,
    RunnerOutcome,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.views.showable import finite

MOST_SNAPSHOT_BYTES = 1024 * 1024
"""A larger snapshot is not read: each look would read it again."""

_Record = TypeVar("_Record")

_STATES = {
    Result.FINISHED: "finished",
    Result.FAILED: "failed",
    Result.REFUSED: "failed",
    Result.INTERRUPTED: "interrupted",
    Result.FENCED: "interrupted",
    Result.PAUSED: "paused",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended.

    Args:
        state: `finished`, `failed`, `interrupted` or `paused`.
        iteration: The last one; None if it is unknown.
        value: The metric of the last result; None if it is unknown.
        ends_trial: Whether a later attempt does not run the trial on.
        was_not_begun: Whether no runner has begun it, and another attempt follows.
    """

    state: str
    iteration: int | None = None
    value: float | None = None
    error: str = ""
    cause: str = ""
    ends_trial: bool = False
    was_not_begun: bool = False

    def describe(self) -> dict[str, Any]:
        """Return it as part of a row."""
        iteration = {} if self.iteration is None else {"iteration": self.iteration}
        return iteration | {
            "state": self.state,
            "value": self.value,
            "error": self.error,
            "cause": self.cause,
        }


def read_end(records: AttemptRecords, attempt: int, metric: str | None) -> AttemptEnd:
    """Read how an attempt ended that left an outcome or an exit record; an unreadable one counts, too.

    `metric` names the number that is kept of the last result.
    """
    outcome = records.outcome_or_interrupted(attempt)
    if outcome is not None:
        return _of_outcome(outcome, metric)
    return _of_exit(records.exit(attempt) or RunnerExit(), has_begun=records.has_begun(attempt))


def _of_outcome(outcome: RunnerOutcome, metric: str | None) -> AttemptEnd:
    return AttemptEnd(
        state=_STATES[outcome.result],
        iteration=outcome.iteration if outcome.status else None,
        value=finite(outcome.metrics.get(metric or "")),
        error=outcome.describe_error(),
        cause=outcome.cause,
        ends_trial=outcome.ends_trial,
    )


def _of_exit(ended: RunnerExit, *, has_begun: bool) -> AttemptEnd:
    failure = classify_exit(ended.exit_code, ended.message)
    lines = ended.message.strip().splitlines()
    return AttemptEnd(
        state="failed" if failure is not None else "interrupted",
        error=failure.message if failure is not None else (lines[-1] if lines else ""),
        cause=failure.cause.value if failure is not None else "",
        was_not_begun=ended.exit_code is None and not has_begun,
    )


class Report(NamedTuple):
    """How far a trial has come, and its metric then."""

    iteration: int
    value: float | None

    @classmethod
    def of(cls, progress: RunnerProgress, metric: str | None) -> "Report":
        """Return what one report says."""
        return cls(progress.iteration, finite(progress.metrics.get(metric or "")))


def read_report(
    records: ListedRecords, attempt: int, metric: str | None, *, has_own_runner: bool
) -> Report | None:
    """Return how far a trial has come by its reports, or else by the snapshot of its own runner.

    A runner whose output is read writes no reports. None if neither is known.
    """
    tail = read_tail(records, attempt)
    if tail is not None and tail.reports:
        return Report.of(tail.reports[-1], metric)
    if not has_own_runner or not records.has_snapshot(attempt):
        return None
    return _unless_unreadable(lambda: _read_snapshot(records, attempt, metric))


def read_tail(records: ListedRecords, attempt: int) -> ProgressTail | None:
    """Return the newest reports in an attempt; None without any that can be read."""
    if not records.has_progress(attempt):
        return None
    return _unless_unreadable(lambda: records.progress(attempt))


def read_request(records: ListedRecords, attempt: int) -> RunnerRequest | None:
    """Return the request of an attempt; None if it cannot be read."""
    return _unless_unreadable(lambda: records.request(attempt))


def _read_snapshot(records: ListedRecords, attempt: int, metric: str | None) -> Report | None:
    key = layout.snapshot_key(records.restore_id, records.unit, attempt)
    body = records.store.get(key, max_bytes=MOST_SNAPSHOT_BYTES)
    trials = parse_pieces([body], Keep(shown=True, metric=metric)).trials
    return Report(trials[0].iteration, finite(trials[0].metric)) if len(trials) == 1 else None


def _unless_unreadable(read: Callable[[], _Record | None]) -> _Record | None:
    """Return a record that is only shown; None if it is not there, or not valid."""
    try:
        return read()
    except (
        KeyNotFoundError,
        LinkRefusedError,
        MalformedStateError,
        RecordUnreadableError,
        TooLargeError,
    ):
        return None
