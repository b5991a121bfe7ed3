"""The XComs of a DAG run's plan tasks -> its restores, as the page shows them. Pure."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import MAX_UNPACKED_BYTES, unpack
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.trial_items import find_trial, is_reference
from airflow_tune_restore.operators.xcom import OUTCOMES_KEY, OutcomeXCom, TrialXCom
from airflow_tune_restore.plugin.places import Places
from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.storage.location import Location

__all__ = ["OUTCOMES_KEY", "RETURN_KEY", "PlanTask", "describe_run", "nearest_plan"]

RETURN_KEY = "return_value"
_SHOWN = 1000
"""Restores of one run that are shown."""


class PlanTask(NamedTuple):
    """An XCom of a task, as it is in the database."""

    task_id: str
    value: Any


def nearest_plan(plans: Sequence[PlanTask], task_id: str) -> list[PlanTask]:
    """Return the plan task whose task group is that of a task, or the nearest around it."""
    here = task_id.split(".")[:-1]

    def shared(plan: PlanTask) -> int:
        groups = plan.task_id.split(".")[:-1]
        return -1 if groups != here[: len(groups)] else len(groups)

    return sorted(plans, key=shared, reverse=True)[:1]


def describe_run(
    places: Places, plans: Sequence[PlanTask], item: tuple[Any, int] | None = None
) -> dict[str, Any]:
    """Return the restores of a run. `item` is the list of a mapped task's trials, and its place in it."""
    restores: list[dict[str, Any]] = []
    for plan in plans:
        try:
            outcomes = read_outcomes(plan.value)
        except InvalidInputError as error:
            restores.append(_unreadable(printable(plan.task_id), error))
            continue
        trial = _trial_of(item, outcomes)
        if trial is not None:
            mine = [each for each in outcomes.items if each.restore_id == trial.restore_id]
            described = [_describe(places, each) for each in mine]
            return {"restores": described, "trial": printable(str(trial.trial_id)), "hidden": 0}
        restores += [_describe(places, each) for each in outcomes.items]
    hidden = max(0, len(restores) - _SHOWN)
    return {"restores": restores[:_SHOWN], "trial": None, "hidden": hidden}


def read_outcomes(value: Any) -> OutcomeList:
    """Parse the XCom `outcomes` (InvalidInputError if it is not valid)."""
    decoded = _decoded(value)
    unpacked = unpack(decoded)
    if not isinstance(unpacked, list):
        raise InvalidInputError(
            "The XCom of the plan task is not in Airflow's database: another XCom backend keeps it. The "
            "page of each experiment has its restores."
        )
    return OutcomeList(tuple(OutcomeXCom.parse(item) for item in unpacked))


def _trial_of(item: tuple[Any, int] | None, outcomes: OutcomeList) -> TrialXCom | None:
    """Return the trial of a mapped task; None if the list does not tell it."""
    if item is None:
        return None
    try:
        listed = unpack(_decoded(item[0]))
        found = listed[item[1]] if isinstance(listed, list) and item[1] < len(listed) else None
        if is_reference(found):
            return find_trial(str(found), outcomes)
        return TrialXCom.parse(found)
    except InvalidInputError:
        return None


def _decoded(value: Any) -> Any:
    """Return an XCom as JSON values. Airflow's database gives it as text, or decoded."""
    if not isinstance(value, str):
        return value
    try:
        text = value.encode()
        if len(text) > MAX_UNPACKED_BYTES:
            raise ValueError(len(text))
        bounded_json.check_values(text)
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInputError("The XCom of the plan task is not JSON.") from None


def _describe(places: Places, item: OutcomeXCom) -> dict[str, Any]:
    found, problem, name, place = None, "", "", ""
    try:
        address = Address.parse(item.experiment)
        name, place = Location.parse(address.uri).name, str(address)
        found = places.find(address)
        if found is None:
            problem = f"below no configured prefix: {place}"
    except InvalidInputError as error:
        problem = str(error)
    return {
        "prefix": found.prefix if found else None,
        "path": found.path if found else None,
        "name": printable(name),
        "place": printable(place, NOTE_LENGTH),
        "restore_id": item.restore_id and printable(str(item.restore_id)),
        "outcome": item.outcome.value,
        "reason": printable(str(item.reason), NOTE_LENGTH),
        "problem": printable(problem, NOTE_LENGTH),
    }


def _unreadable(task_id: str, error: InvalidInputError) -> dict[str, Any]:
    return {
        "prefix": None,
        "path": None,
        "name": task_id,
        "place": "",
        "restore_id": None,
        "outcome": "",
        "reason": "",
        "problem": printable(str(error), NOTE_LENGTH),
    }
