"""The list of trials that a plan task returns, with one item per mapped task.

Where whole items would be too large for an XCom, each is a reference: the place of its experiment in the
XCom `outcomes`, and the id of the trial, as `12:a1b2c_00003`.
"""

import re
from collections.abc import Sequence
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.xcom_size import fits, unpack
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.xcom import TrialXCom

_REFERENCE = re.compile(r"[0-9]{1,9}:.+")


def build_items(trials: Sequence[TrialXCom], outcomes: Any) -> list[Any]:
    """Return one item per trial: whole ones while all fit into an XCom, else references to `outcomes`."""
    whole = [trial.to_xcom() for trial in trials]
    if fits(whole):
        return whole
    places = {item["experiment"]: place for place, item in enumerate(unpack(outcomes))}
    return [build_reference(places[trial.experiment], trial.trial_id) for trial in trials]


def build_reference(place: int, trial_id: str) -> str:
    """Return the reference to a trial of the experiment at a place in `outcomes`."""
    return f"{place}:{trial_id}"


def is_reference(item: Any) -> bool:
    """Whether an item is a reference, and not a whole one."""
    return isinstance(item, str) and _REFERENCE.fullmatch(item) is not None


def find_trial(reference: str, outcomes: OutcomeList) -> TrialXCom:
    """Return the item behind a reference (InvalidInputError if there is none)."""
    place, _, trial_id = reference.partition(":")
    listed = outcomes.items[int(place) :]
    if not listed or not listed[0].restore_id:
        raise InvalidInputError(
            f"trial={reference!r} is none of those that its plan has started. Clear the task of the "
            "plan, with its downstream tasks."
        )
    return TrialXCom.of_outcome(listed[0], trial_id)
