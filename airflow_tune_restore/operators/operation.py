"""The operations of the DAG `tune_restore_admin` (dags/tune_restore_admin.py)."""

import json
from collections.abc import Sequence
from enum import StrEnum

from airflow.sdk import Context

ADMIN_DAG = "tune_restore_admin"


class Operation(StrEnum):
    """The values of its Param `operation`."""

    LIST = "list quarantine"
    RELEASE = "release a trial"
    UNDO = "undo the last commit"
    RESTORE = "restore only these trials"


def describe_release(address: str, trial_ids: Sequence[str]) -> str:
    """Return how to release trials from quarantine in Airflow: the DAG, and its Params as JSON."""
    params = {
        "operation": Operation.RELEASE,
        "experiment": address,
        "trials": list(trial_ids),
    }
    return f"DAG {ADMIN_DAG} with {json.dumps(params)}"


def name_holder(context: Context) -> str:
    """Return who holds a lease, for people: the DAG run, and the user who triggered it."""
    ti, user = context["ti"], context["dag_run"].triggering_user_name
    return f"DAG {ti.dag_id}, run {ti.run_id}" + (f", triggered by {user}" if user else "")
