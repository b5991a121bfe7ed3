"""The choices of the user for one restore: one value from the operator or the shell to the plan."""

from dataclasses import dataclass, field

from airflow_tune_restore.restore.flags import ResumeFlags

DEFAULT_MAX_MEMORY_BYTES = 64.0 * 1024**3
"""Trials that run out of memory get twice as much, up to this limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChoices:
    """How the trials of an experiment are restored.

    Args:
        flags: Which trials are resumed or restarted.
        strategy: `auto`, `per_trial` or `whole_experiment`.
        fresh_budget: Whether resumed trials get their failure budget (`max_failures`) back.
        trim_results: Whether result rows after the checkpoint are dropped before a trial resumes.
        remember_scheduler: Whether ASHA and MedianStopping get the earlier results of all trials.
        allow_scratch: Whether a trial starts over if all its recorded checkpoints are gone.
        newest_checkpoint: Whether a trial resumes from its newest complete checkpoint, even if the state
            names an older one.
        ignore_tuner: Whether trials are restored from the state alone, without `tuner.pkl`.
        max_attempts: Failed attempts after which a trial is quarantined; None for no limit.
        max_memory_bytes: Most memory a trial gets after it ran out of memory.
    """

    flags: ResumeFlags = field(default_factory=ResumeFlags)
    strategy: str = "auto"
    fresh_budget: bool = False
    trim_results: bool = False
    remember_scheduler: bool = False
    allow_scratch: bool = False
    newest_checkpoint: bool = False
    ignore_tuner: bool = False
    max_attempts: int | None = None
    max_memory_bytes: float = DEFAULT_MAX_MEMORY_BYTES
