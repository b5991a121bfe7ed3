"""The choices of the user for one restore: one value from the operator or the shell to the plan."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

import msgspec

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.numbers import MAX_COUNT, is_amount, is_count
from airflow_tune_restore.restore.flags import ResumeFlags

DEFAULT_MAX_MEMORY_BYTES = 64.0 * 1024**3
"""Trials that run out of memory get twice as much, up to this limit."""


class Strategy(StrEnum):
    """How the trials are run."""

    PER_TRIAL = "per_trial"  # each has a driver of its own
    SHARED_DRIVER = "shared_driver"  # they share a driver, and stay independent
    WHOLE_EXPERIMENT = "whole_experiment"


AUTO = "auto"
"""The strategy that fits the experiment."""
_STRATEGIES = (AUTO, *Strategy)
_StrategyName = Annotated[str, msgspec.Meta(pattern=rf"\A({'|'.join(_STRATEGIES)})\Z")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChoices:
    """How the trials of an experiment are restored. Part of the stored plan.

    Args:
        flags: Which trials are resumed or restarted.
        strategy: `auto`, `per_trial`, `shared_driver` or `whole_experiment`. `per_trial` runs trials one
            by one even if they depend on each other. `shared_driver` lets trials share a driver that do
            not, however long they run.
        fresh_budget: Whether resumed trials get their failure budget (`max_failures`) back. Ray does not
            give it back.
        trim_results: Whether result rows after the checkpoint are dropped before a trial resumes. Ray
            keeps them, so these iterations are in the file twice.
        remember_scheduler: Whether ASHA and MedianStopping get the earlier results of all trials, in a
            whole-experiment run. Ray restores them empty, so a hopeless trial may train to its end.
        allow_scratch: Whether a trial starts over if all its recorded checkpoints are gone.
        newest_checkpoint: Whether a trial resumes from its newest complete checkpoint, even if the state
            names an older one, which Ray would use.
        ignore_tuner: Whether trials are restored from the state alone: for a `tuner.pkl` that belongs to
            another run, or that needs a module that is gone. Callbacks, stopper, scheduler, searcher,
            failure and checkpoint settings are lost.
        trust_name: Whether the name of the trainable is enough. Ray compares nothing else. Otherwise an
            experiment is refused if its pickles or parameters show that another trainable of this name
            made it.
        trials: Ids of the only trials that the flags are applied to; empty for all. The other trials
            stay exactly as they are recorded, and the search is not continued.
        max_attempts: Failed attempts, over all restores, after which a trial is quarantined; None for no
            limit. The same exception twice at the same place and iteration always quarantines it.
        max_memory_bytes: Most memory that a trial gets after it ran out of memory. On a cluster it gets
            twice as much each time.

    Raises:
        InvalidInputError: If `strategy` is not one of the four, a trial has no id, or a number is out of
            its bounds.
    """

    flags: ResumeFlags = field(default_factory=ResumeFlags)
    strategy: _StrategyName = AUTO
    fresh_budget: bool = False
    trim_results: bool = False
    remember_scheduler: bool = False
    allow_scratch: bool = False
    newest_checkpoint: bool = False
    ignore_tuner: bool = False
    trust_name: bool = False
    trials: tuple[str, ...] = ()
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)] | None = None
    max_memory_bytes: Annotated[float, msgspec.Meta(ge=0)] = DEFAULT_MAX_MEMORY_BYTES

    def __post_init__(self) -> None:
        if self.strategy not in _STRATEGIES:
            known = ", ".join(map(repr, map(str, _STRATEGIES)))
            raise InvalidInputError(f"strategy={self.strategy!r} is not one of {known}.")
        object.__setattr__(self, "trials", tuple(dict.fromkeys(self.trials)))
        if not all(self.trials):
            raise InvalidInputError(
                f"trials={list(self.trials)!r} (--trial) holds an empty trial id."
            )
        if self.max_attempts == 0 or not (self.max_attempts is None or is_count(self.max_attempts)):
            raise InvalidInputError(
                f"max_attempts={self.max_attempts!r} (--max-attempts) is not a whole number from 1 to "
                f"{MAX_COUNT}."
            )
        if not is_amount(self.max_memory_bytes):
            raise InvalidInputError(
                f"max_memory={self.max_memory_bytes!r} (--max-memory) is not a finite number of bytes "
                "from 0."
            )
