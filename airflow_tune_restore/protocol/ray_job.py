"""Names of our Ray jobs, which any process can compute. Standard library only."""

import hashlib
import json
import re

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerRequest

IN_CLUSTER = "auto"
"""The address of the cluster for a runner that is a job of that cluster."""

ADDRESS = "RAY_ADDRESS"
"""Variable in which Ray names the cluster of a job, to all of its processes."""

SUBMISSION_PREFIX = "tune-restore-"

TASK_PREFIX = "airflow-"
"""Of the job that runs a task of Airflow for our executor."""

_SAFE = re.compile(r"[^A-Za-z0-9_-]+")
_OF_MANY = {layout.WHOLE_EXPERIMENT: "all", layout.SHARED_DRIVER: "shared"}


def submission_id(experiment: str, restore_id: str, trial_id: str, attempt: int) -> str:
    """Return the id of an attempt's job, computed from the attempt: any process can find the job."""
    identity = json.dumps([experiment, restore_id, trial_id, attempt])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    name = _OF_MANY.get(trial_id) or _SAFE.sub("-", trial_id)[:32]
    return f"{SUBMISSION_PREFIX}{name}-{attempt}-{digest}"


def job_of(request: RunnerRequest) -> str | None:
    """Return the id of the job that runs an attempt; None if it was not submitted as one."""
    if request.address != IN_CLUSTER:
        return None
    return submission_id(request.experiment, request.restore_id, request.trial_id, request.attempt)
