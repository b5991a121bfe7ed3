"""What a restore will do, trial by trial. Pure values; tomorrow's processes read their JSON."""

from dataclasses import dataclass
from enum import StrEnum
from shlex import quote
from typing import Annotated, Any

import msgspec

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.experiment import NO_STATE_FILE, StateFile
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.names import (
    is_resource,
    is_safe_name,
    is_segment,
    is_trainable_name,
)
from airflow_tune_restore.protocol.numbers import MAX_COUNT, is_count
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.request import RUN_ACTIONS, TrialAction
from airflow_tune_restore.restore.flags import ResumeFlags

PLAN_SCHEMA = 1
DEFAULT_MAX_MEMORY_BYTES = 64.0 * 1024**3
"""Trials that run out of memory are given twice as much, up to this."""


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
"""Checked when a record is read."""


class Strategy(StrEnum):
    """How the trials are run."""

    PER_TRIAL = "per_trial"
    WHOLE_EXPERIMENT = "whole_experiment"


class TrialPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one trial, and why. A Struct, because there are thousands of them.

    Args:
        trial_id: Ray's id in the state the plan was made from.
        status: Its status there.
        trial_dir: Its directory name in the experiment directory; None if it never started.
        action: What happens.
        checkpoint: Directory name of the checkpoint it starts from; None to start from scratch.
        checkpoint_repaired: Whether that is another one than the state names.
        iteration: `training_iteration` it starts after; 0 from scratch.
        reason: The same in words.
        resources: What it asks for, as `{"CPU": 1.0}`.
        new_trial_id: Id of the trial that takes its row; for `restart` only.
        quarantined: Whether it would be run, had it not failed too often.

    """

    trial_id: str
    status: TrialStatus
    trial_dir: str | None
    action: TrialAction
    checkpoint: str | None
    checkpoint_repaired: bool
    iteration: Count
    reason: str
    resources: dict[str, float]
    new_trial_id: str | None = None
    quarantined: bool = False

    def __post_init__(self) -> None:
        """Make fit to be shown what is only shown: it is made of what stands in the experiment."""
        msgspec.structs.force_setattr(self, "reason", printable(self.reason, NOTE_LENGTH))

    @property
    def final_trial_id(self) -> str:
        """Return the id its row carries after the restore."""
        return self.new_trial_id or self.trial_id


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """One experiment's plan. `trials` stand in the order Ray would take them: newest result first.

    Args:
        restore_id: Id of the restore this plan belongs to.
        experiment: URI of the experiment directory, without credentials.
        base: The state it was made from.
        trainable_name: The recorded name the trainable must have.
        flags: The user's choice.
        strategy: How the trials run.
        strategy_reason: Why.
        samples_left: Samples the searcher has not drawn; None if unknown.
        searcher_lost: Why nobody can draw them: their searcher is lost, and the user has named none; ""
            otherwise.
        metric: Recorded metric, if any.
        mode: `min` or `max`, if recorded.
        trials: One entry a row.
        warnings: What the user should know: lost RunConfig, unreadable files, repairs.
        fresh_budget: Whether resumed trials get their failure budget back.
        trim_results: Whether result rows past the checkpoint are dropped before resuming.
        remember_scheduler: Whether ASHA and MedianStopping are told what all trials reported before.
        continues_search: Whether the run also draws the samples that are left.
        max_attempts: Failed attempts after which a trial is quarantined; None for no limit.
        max_memory_bytes: Most that a trial is given after it ran out of memory.
        ignore_tuner: Whether trials are restored from the state alone, whatever `tuner.pkl` holds.

    """

    restore_id: str
    experiment: str
    base: StateFile
    trainable_name: str
    flags: ResumeFlags
    strategy: Strategy
    strategy_reason: str
    samples_left: Count | None
    metric: str | None
    mode: str | None
    trials: tuple[TrialPlan, ...]
    warnings: tuple[str, ...] = ()
    fresh_budget: bool = False
    trim_results: bool = False
    remember_scheduler: bool = False
    continues_search: bool = False
    searcher_lost: str = ""
    max_attempts: Count | None = None
    max_memory_bytes: Annotated[float, msgspec.Meta(ge=0)] = DEFAULT_MAX_MEMORY_BYTES
    ignore_tuner: bool = False
    schema: Count = PLAN_SCHEMA

    def __post_init__(self) -> None:
        """Make fit to be shown what is only shown: it is made of what stands in the experiment."""
        object.__setattr__(self, "strategy_reason", printable(self.strategy_reason, NOTE_LENGTH))
        object.__setattr__(self, "searcher_lost", printable(self.searcher_lost))
        warnings = tuple(printable(warning, NOTE_LENGTH) for warning in self.warnings)
        object.__setattr__(self, "warnings", warnings)

    @property
    def is_whole_experiment(self) -> bool:
        """Whether one runner runs everything, instead of one a trial."""
        return self.strategy is Strategy.WHOLE_EXPERIMENT

    @property
    def has_work(self) -> bool:
        """Whether a runner is started at all."""
        return bool(self.to_run) or self.continues_search

    @property
    def only_continues_search(self) -> bool:
        """Whether nothing happens but that samples are drawn."""
        return self.continues_search and not self.changes_trials

    @property
    def changes_trials(self) -> bool:
        """Whether any trial there is does not stay as it is."""
        return any(trial.action is not TrialAction.KEEP for trial in self.trials)

    @property
    def to_run(self) -> tuple[TrialPlan, ...]:
        """The trials a runner is started for."""
        return tuple(trial for trial in self.trials if trial.action in RUN_ACTIONS)

    @property
    def quarantined(self) -> tuple[TrialPlan, ...]:
        """The trials that are kept as they are because they failed too often."""
        return tuple(trial for trial in self.trials if trial.quarantined)

    def trial(self, trial_id: str) -> TrialPlan:
        """Return the entry of one trial (InvalidInputError if the plan has none)."""
        for trial in self.trials:
            if trial.trial_id == trial_id:
                return trial
        raise InvalidInputError(f"The plan of {self.experiment} has no trial {trial_id!r}.")

    def to_json(self) -> bytes:
        """Encode; the same plan gives the same bytes."""
        return encode(self)

    @classmethod
    def from_json(cls, body: bytes) -> "RestorePlan":
        """Decode what `to_json` wrote, by this version or an older one.

        Raises:
            ValueError: If it is no plan, or names something that leads outside.
        """
        plan: RestorePlan = decode(body, cls)
        _check_names(plan)
        return plan


def _check_names(plan: RestorePlan) -> None:
    """Hold a plan that was stored to the same rules as the state it was made from."""
    is_unstarted = plan.base == NO_STATE_FILE and not plan.trials
    names = [] if is_unstarted else [plan.base.name]
    segments: list[str] = []
    for trial in plan.trials:
        names += [trial.trial_id, trial.final_trial_id]
        segments += [name for name in (trial.trial_dir, trial.checkpoint) if name is not None]
    unsafe = [name for name in names if not is_safe_name(name) or name == layout.WHOLE_EXPERIMENT]
    unsafe += [name for name in segments if not is_segment(name)]
    if unsafe:
        raise ValueError(f"{unsafe[0][:80]!r} leads outside or cannot be a name")
    if not is_unstarted and not layout.is_state_file(plan.base.name):
        raise ValueError("its state file cannot be one")
    if not is_trainable_name(plan.trainable_name):
        raise ValueError("its trainable cannot be one")
    if not is_count(plan.base.size_bytes):
        raise ValueError("its state file cannot be of that size")
    asked = (asks for trial in plan.trials for asks in trial.resources.items())
    if not all(is_resource(name, amount) for name, amount in asked):
        raise ValueError("one of its trials asks for what is no amount of a resource")
    if len({trial.trial_id for trial in plan.trials}) != len(plan.trials):
        raise ValueError("two of its trials have one id")


def describe_quarantine(experiment: str, trial_ids: list[str]) -> str:
    """Say which trials are in quarantine, and how to let them out."""
    named = ", ".join(trial_ids[:5]) + (", …" if len(trial_ids) > 5 else "")  # noqa: PLR2004
    return (
        f"{len(trial_ids)} quarantined ({named}); "
        f"`tune-restore release {quote(experiment)} TRIAL` lets one run again"
    )


def encode(record: Any) -> bytes:
    """Encode one of our records as JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def decode(body: bytes, kind: type[Any]) -> Any:
    """Decode one of our records, ignoring fields a newer version added.

    Raises:
        ValueError: If it is something else, or may hold more values than we write: that is msgspec's
            `DecodeError`, too. RecursionError if it nests too deeply.
    """
    bounded_json.check_values(body)
    return msgspec.json.decode(body, type=kind)
