"""The items of the XComs between the tasks of a restore. They are small and never hold a secret.

Keys are a wire format: a mapped task may read the XCom of an older release. Only ever add keys.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Self

from airflow.sdk import Context, XComArg

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import unpack
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.printable import counted, printable
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.version_compat import XComNotFound

OUTCOMES_KEY = "outcomes"
"""XCom key of the plan task: what became of each experiment that it was given."""

TOTALS_KEY = "totals"
"""XCom key of the commit task: the numbers of experiments and trials, and of those that wait."""

EXPERIMENTS_KEY = "experiments"
"""XCom key of the commit task: one line per experiment that was found, with what became of it."""

_NAME_LENGTH, _ID_LENGTH = 120, 80
"""Airflow stores 250 characters of a map index label."""


class Outcome(StrEnum):
    """The end of one experiment in the plan task."""

    RESTORED = "restored"  # a restore was started
    CONTINUE_SEARCH = "continue_search"  # only its search is left; a later task continues it
    LEFT_ALONE = "left_alone"  # it is running, another restore works on it, or nothing is to do
    WAITING = "waiting"  # this DAG run has no room for it; the next one takes it
    MISFIT = "misfit"  # it was made with another trainable
    UNKNOWN = "unknown"  # no trainable is given for it
    REFUSED = "refused"  # it cannot be restored before a person has done something
    NOT_STARTED = "not_started"  # a person was asked, and its restore was not started


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemXCom:
    """The base of the items of lists in XComs. `experiment` is an address with its connection id."""

    experiment: str
    _source: ClassVar[str] = ""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Parse the XCom form (InvalidInputError if it is not valid)."""
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{key: item for key, item in value.items() if key in known})
        except (AttributeError, TypeError, ValueError):
            raise InvalidInputError(
                f"{cls._source}: {value!r} is not an item of BuildRestorePlanOperator's output."
            ) from None

    def to_xcom(self) -> dict[str, Any]:
        """Return the XCom form."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: str(v) if isinstance(v, Outcome) else v for name, v in values}

    def to_short_xcom(self) -> dict[str, Any]:
        """Return the XCom form without the values that `parse` knows by itself."""
        usual = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in self.to_xcom().items() if value != usual[key]}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeXCom(ItemXCom):
    """The outcome of one experiment that the plan task was given: the input of the commit.

    Args:
        restore_id: Id of the restore that was started; None without one.
        reason: Why it is not restored; "" if it is. With a restore that an earlier try of the plan task
            started: why none of its trials runs.
        by_name: Whether it was taken because the name of its trainable fits, and for no other evidence,
            beside experiments in other directories.
        waiting: How many of its trials wait for a later DAG run.
        rest: How many of the trials that are restored have no task of their own.
    """

    outcome: Outcome = Outcome.RESTORED
    restore_id: str | None = None
    reason: str = ""
    by_name: bool = False
    waiting: int = 0
    rest: int = 0
    _source: ClassVar[str] = "outcomes"

    def __post_init__(self) -> None:
        """Check what the commit needs (ValueError)."""
        object.__setattr__(self, "outcome", Outcome(self.outcome))
        if self.outcome is Outcome.RESTORED and not self.restore_id:
            raise ValueError(self.restore_id)

    @property
    def is_refused(self) -> bool:
        """Whether a person is needed. The started restore of one that could not go on is committed."""
        return self.outcome is Outcome.REFUSED or bool(
            self.outcome is Outcome.RESTORED and self.reason
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialXCom(ItemXCom):
    """One trial to run; the plan holds the rest.

    Args:
        restore_id: The restore that it is a part of.
        trial_id: Its id in the plan; `layout.WHOLE_EXPERIMENT` for the continued search, and for the
            trials of a whole-experiment run that have no task of their own.
        experiment_name: Last part of the experiment's URI.
        action: `resume`, `restart`, `draw`, or `run` for trials without a task of their own.
        checkpoint: Checkpoint it starts from, or None; for display.
        iteration: Iteration it starts after.
        label: The grid shows it instead of the map index.
    """

    restore_id: str
    trial_id: str
    experiment_name: str = ""
    action: str = ""
    checkpoint: str | None = None
    iteration: int = 0
    label: str = ""
    _source: ClassVar[str] = "trial"

    @classmethod
    def build(cls, address: Address, plan: RestorePlan, trial: TrialPlan | None) -> Self:
        """Build the item of one planned trial; with None, of all else that the run does."""
        name = printable(Location.parse(plan.experiment).name)
        trial_id = trial.trial_id if trial else WHOLE_EXPERIMENT
        checkpoint = trial.checkpoint if trial else None
        return cls(
            experiment=str(address),
            restore_id=plan.restore_id,
            trial_id=trial_id,
            experiment_name=name,
            action=(trial.action if trial else _action_of_rest(plan)).value,
            checkpoint=checkpoint and printable(checkpoint),
            iteration=trial.iteration if trial else 0,
            label=_label(name, trial_id, len(plan.rest)),
        )

    @classmethod
    def of_outcome(cls, item: OutcomeXCom, trial_id: str) -> Self:
        """Build the item of one trial without what is only shown, if its plan was not read."""
        name = printable(Location.parse(Address.parse(item.experiment).uri).name)
        return cls(
            experiment=item.experiment,
            restore_id=str(item.restore_id),
            trial_id=trial_id,
            experiment_name=name,
            label=_label(name, trial_id, item.rest),
        )


def _action_of_rest(plan: RestorePlan) -> TrialAction:
    return TrialAction.RUN if plan.rest else TrialAction.DRAW


def _label(name: str, trial_id: str, rest: int) -> str:
    shown = printable(trial_id)[:_ID_LENGTH]
    if trial_id == WHOLE_EXPERIMENT:
        shown = counted(rest, "other trial") if rest else "new samples"
    return f"{name[:_NAME_LENGTH]} {shown}"


def restore_id_for(context: Context, experiment: str) -> str:
    """Return the restore id of one experiment in one task: the same in every try."""
    ti = context["ti"]
    index = ti.map_index if ti.map_index is not None else -1
    identity = json.dumps([ti.dag_id, ti.run_id, ti.task_id, index, experiment])
    return f"airflow-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def resolve_xcom(value: Any, context: Context) -> Any:
    """Return the XCom of another task (None if it never ran), or the value itself."""
    if not isinstance(value, XComArg):
        return value
    try:
        return value.resolve(context)
    except XComNotFound:
        return None


def resolve_list(value: Any, context: Context) -> list[Any]:
    """Return a list from the XCom of another task (empty if it never ran), a list, or one item."""
    value = unpack(resolve_xcom(value, context))
    if value is None or value == "":
        return []
    return [value] if isinstance(value, Mapping | str) else list(value)
