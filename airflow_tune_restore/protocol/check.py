"""The check of a trainable: one request, and one answer per experiment. Standard library only.

The request is the runner's stdin. Answers and stages are lines on its stdout.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Self

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    RunnerError,
    TrainableMisfitError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import record_fields as kinds
from airflow_tune_restore.protocol.record_fields import Record

DEFAULT_CHECK_TIMEOUT = timedelta(minutes=10)
"""Importing Ray takes 10 s, and minutes on a busy machine or a slow disk."""

ANSWER_PREFIX = "::tune-restore-answer:: "
"""A line of a check that contains this ends with one `CheckAnswer`."""

STAGE_PREFIX = "::tune-restore-stage:: "
"""A line of a check that contains this ends with what the check does from now on, in words."""


class Problem(StrEnum):
    """The kind of error of one experiment."""

    MISFIT = "misfit"  # it was made with another trainable
    REFUSED = "refused"  # another input of the user does not fit it
    FAILED = "failed"  # it could not be checked; a later try may succeed


class MatchedBy(StrEnum):
    """The evidence that the experiment was made with the given trainable."""

    MODULE = "module"  # a pickle of the experiment names the module of the trainable
    NAME = "name"  # only the names are equal, which Ray compares


@dataclass(frozen=True, kw_only=True)
class ExperimentToCheck(Record):
    """One experiment of a check.

    Args:
        experiment: URI of the experiment directory; credentials come from the environment.
        trainable_name: The recorded name that the trainable must have.
        state: Name of the state file with its trials; "" if it never had one.
        search_alg, ignore_tuner, trust_name: As in `request.RunnerRequest`.
    """

    experiment: str
    trainable_name: str
    state: str = ""
    search_alg: str | None = None
    ignore_tuner: bool = False
    trust_name: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckRequest(Record):
    """Whether one trainable fits some experiments. `param_space` and `imports` as in `RunnerRequest`."""

    trainable: str
    param_space: str | None = None
    imports: list[str] = field(default_factory=list)
    experiments: list[ExperimentToCheck] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class CheckAnswer(Record):
    """The answer for one experiment.

    Args:
        problem: The kind of its error; None if the trainable fits.
        message: The error, in sentences; or a warning, if the trainable fits all the same.
        matched_by: The evidence that it is the trainable of the experiment.
    """

    experiment: str
    problem: Problem | None = None
    message: kinds.Note = ""
    matched_by: MatchedBy = MatchedBy.NAME

    def to_line(self) -> str:
        """Return the stdout line."""
        return ANSWER_PREFIX + self.to_json().decode()

    @classmethod
    def from_line(cls, line: str) -> Self | None:
        """Parse a stdout line; None if it is another output."""
        _, found, body = line.partition(ANSWER_PREFIX)
        try:
            return cls.from_json(body) if found else None
        except (ValueError, TypeError, RecursionError):
            return None  # the user's code may print anything, and two threads may share a line

    def error(self) -> TuneRestoreError | None:
        """Return the error of the experiment; None if the trainable fits."""
        match self.problem:
            case Problem.MISFIT:
                return TrainableMisfitError(self.message)
            case Problem.REFUSED:
                return InvalidInputError(self.message)
            case Problem.FAILED:
                return RunnerError(self.message)
            case _:
                return None


def problem_of(error: TuneRestoreError) -> Problem:
    """Return the kind of an error."""
    if isinstance(error, TrainableMisfitError):
        return Problem.MISFIT
    return Problem.REFUSED if isinstance(error, InvalidInputError) else Problem.FAILED
