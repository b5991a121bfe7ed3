"""How one attempt ended, for people: from its outcome, or from the exit of its runner."""

from dataclasses import dataclass
from typing import Any

from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import classify_exit
from airflow_tune_restore.protocol.request import Result, RunnerExit, RunnerOutcome
from airflow_tune_restore.views.showable import finite

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
