"""The operations of the DAG `tune_restore_admin` (dags/tune_restore_admin.py)."""

import json
from collections.abc import Sequence
from enum import StrEnum

from airflow_tune_restore.restore.plan import ADMIN_DAG


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
