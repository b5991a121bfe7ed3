"""What travels between the tasks of a restore as XCom: small, and never a secret.

Keys are a wire format: a mapped task reads what an older release of the plan task wrote. Only ever add.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

from airflow.sdk import Context, XComArg
from airflow.sdk.exceptions import XComNotFound

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.summary import printable
from airflow_tune_restore.storage.location import Location

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Item = TypeVar("_Item", bound="DataclassInstance")

RESTORES_KEY = "restores"
"""XCom key under which the plan task pushes the restores it has started."""

CONTINUE_SEARCH_KEY = "continue_search"
"""XCom key for the experiments of which only the search is left to continue: pushed by the plan."""

UNEXPECTED_KEY = "unexpected"
"""XCom key for what nobody foresaw, one line for each experiment that the plan lost to it."""

_NAME_LENGTH, _ID_LENGTH = 120, 80
"""Airflow keeps 250 characters of a map index's label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreXCom:
    """One started restore, for the commit.

    Args:
        experiment: Address of the experiment, with its connection id.
        restore_id: The restore.
    """

    experiment: str
    restore_id: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read an item (InvalidInputError if it is none)."""
        return _parse(cls, value, "restores")

    def to_xcom(self) -> dict[str, Any]:
        """Return the XCom form."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialXCom:
    """One trial to run; the rest stands in the plan.

    Args:
        experiment: Address of the experiment, with its connection id.
        restore_id: The restore it belongs to.
        trial_id: Its id in the plan; `*` for the samples that are drawn.
        experiment_name: Last part of the experiment's URI.
        action: `resume`, `restart` or `draw`.
        checkpoint: Checkpoint it starts from, if any; to be shown.
        iteration: Iteration it starts after.
        label: What the grid shows in place of the map index.
    """

    experiment: str
    restore_id: str
    trial_id: str
    experiment_name: str = ""
    action: str = ""
    checkpoint: str | None = None
    iteration: int = 0
    label: str = ""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read an item (InvalidInputError if it is none)."""
        return _parse(cls, value, "trial")

    @classmethod
    def build_continued_search(cls, address: Address, plan: RestorePlan) -> Self:
        """Build the item of the samples that the run of a whole experiment draws: it follows the run."""
        name = Location.parse(plan.experiment).name
        return cls(
            experiment=str(address),
            restore_id=plan.restore_id,
            trial_id=WHOLE_EXPERIMENT,
            experiment_name=printable(name),
            action=TrialAction.DRAW.value,
            label=f"{printable(name)[:_NAME_LENGTH]} new samples",
        )

    @classmethod
    def build(cls, address: Address, plan: RestorePlan, trial: TrialPlan) -> Self:
        """Build the item of one planned trial."""
        name = Location.parse(plan.experiment).name
        label = f"{printable(name)[:_NAME_LENGTH]} {printable(trial.trial_id)[:_ID_LENGTH]}"
        return cls(
            experiment=str(address),
            restore_id=plan.restore_id,
            trial_id=trial.trial_id,
            experiment_name=printable(name),
            action=trial.action.value,
            checkpoint=trial.checkpoint and printable(trial.checkpoint),
            iteration=trial.iteration,
            label=label,
        )

    def to_xcom(self) -> dict[str, Any]:
        """Return the XCom form."""
        return asdict(self)


def restore_id_for(dag_id: str, run_id: str, task_id: str, map_index: int, experiment: str) -> str:
    """Make the restore id of one experiment in one task: the same for every try of it."""
    identity = json.dumps([dag_id, run_id, task_id, map_index, experiment])
    return f"airflow-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def resolve_list(value: Any, context: Context) -> list[Any]:
    """Take what another task pushed (nothing if it never ran), a list, or one item."""
    if isinstance(value, XComArg):
        try:
            value = value.resolve(context)
        except XComNotFound:
            return []
    if value is None or value == "":
        return []
    return [value] if isinstance(value, Mapping | str) else list(value)


def _parse(kind: type[_Item], value: Any, argument: str) -> _Item:
    known = {f.name for f in fields(kind)}
    try:
        return kind(**{key: item for key, item in value.items() if key in known})
    except (AttributeError, TypeError):
        raise InvalidInputError(
            f"{argument}: {value!r} is no item of BuildRestorePlanOperator's output."
        ) from None
