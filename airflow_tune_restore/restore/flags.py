"""Which trials a restore runs: Ray's three flags, or its form by status."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.trial import UNFINISHED, TrialStatus


class ResumeType(StrEnum):
    """The choice for trials of one kind (ray.tune.tune_config.ResumeConfig.ResumeType, 2.60)."""

    SKIP = "skip"
    RESUME = "resume"
    RESTART = "restart"


def _parse_resume_type(name: str, value: object) -> ResumeType:
    """Parse a string or an enum member, of this package or Ray's (InvalidInputError if it is neither).

    `Tuner.restore` accepts a string and then returns an empty result grid (Ray 2.60).
    """
    text = value.value if isinstance(value, Enum) else value
    if isinstance(text, str) and text in set(ResumeType):
        return ResumeType(text)
    raise InvalidInputError(f"{name}={value!r} is not one of 'skip', 'resume', 'restart'.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeFlags:
    """The choice for finished (TERMINATED), unfinished and errored trials.

    `cut_short` is for trials that `fail_fast` marked TERMINATED when another trial failed. Ray cannot
    distinguish them from finished ones. They stay as they are by default.
    """

    finished: ResumeType = ResumeType.SKIP
    unfinished: ResumeType = ResumeType.RESUME
    errored: ResumeType = ResumeType.SKIP
    cut_short: ResumeType = ResumeType.SKIP

    @classmethod
    def from_flags(
        cls,
        *,
        resume_unfinished: bool = True,
        resume_errored: bool = False,
        restart_errored: bool = False,
        resume_cut_short: bool = False,
    ) -> "ResumeFlags":
        """Build from Ray's three flags, and one of this package; resume wins over restart, as in Ray."""
        otherwise = ResumeType.RESTART if restart_errored else ResumeType.SKIP
        return cls(
            unfinished=ResumeType.RESUME if resume_unfinished else ResumeType.SKIP,
            errored=ResumeType.RESUME if resume_errored else otherwise,
            cut_short=ResumeType.RESUME if resume_cut_short else ResumeType.SKIP,
        )

    @classmethod
    def parse(cls, choices: dict[str, Any]) -> "ResumeFlags":
        """Build from `{"finished": …, "unfinished": …, "errored": …, "cut_short": …}`.

        Missing keys have Ray's defaults (InvalidInputError for other keys or values).
        """
        unknown = set(choices) - {"finished", "unfinished", "errored", "cut_short"}
        if unknown:
            raise InvalidInputError(
                f"Unknown kind of trial {sorted(unknown)}; use finished, unfinished, errored or "
                "cut_short."
            )
        return cls(**{name: _parse_resume_type(name, value) for name, value in choices.items()})

    @property
    def keeps_terminated_rows(self) -> bool:
        """Whether finished trials are run, too, so that their rows are needed."""
        return self.finished is not ResumeType.SKIP

    def choice_for(self, status: TrialStatus, *, is_cut_short: bool = False) -> ResumeType:
        """Return what to do with a trial of this stored status."""
        if is_cut_short and self.cut_short is not ResumeType.SKIP:
            return self.cut_short
        if status is TrialStatus.ERROR:
            return self.errored
        if status in UNFINISHED:
            return self.unfinished
        return self.finished
