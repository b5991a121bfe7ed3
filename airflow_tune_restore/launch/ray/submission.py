"""A runner as a Ray job: what is submitted for an attempt."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.launch.ray.package import deliver
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerRequest

if TYPE_CHECKING:
    from airflow_tune_restore.launch.ray.jobs_api import RayJobs

IN_CLUSTER = "auto"
"""The address of the cluster for a runner that is a job in it."""

STOP_WAIT_SECONDS = 60
"""How long a job that was told to stop may take to save its snapshot; Ray's default is 3 s."""

DRIVER_MEMORY_BYTES = 512 * 1024**2
"""What a driver asks for unless told otherwise.

Asking for anything at all keeps drivers off the head node. Memory, not CPUs: drivers that hold the CPUs
their own trials wait for would wait for ever.
"""

_SAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverResources:
    """What the driver itself asks for, beside its trials.

    Args:
        num_cpus: CPUs.
        memory: Bytes.
        resources: Custom resources.
    """

    num_cpus: float = 0.0
    memory: int = DRIVER_MEMORY_BYTES
    resources: Mapping[str, float] = field(default_factory=dict)


SUBMISSION_PREFIX = "tune-restore-"


def submission_id(experiment: str, restore_id: str, trial_id: str, attempt: int) -> str:
    """Make the id of an attempt's job: whoever claims or finds the attempt knows it."""
    identity = json.dumps([experiment, restore_id, trial_id, attempt])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    name = "all" if trial_id == layout.WHOLE_EXPERIMENT else _SAFE.sub("-", trial_id)[:32]
    return f"{SUBMISSION_PREFIX}{name}-{attempt}-{digest}"


def build_submission(
    jobs: "RayJobs",
    request: RunnerRequest,
    *,
    runtime_env: Mapping[str, Any],
    env: Mapping[str, str],
    driver: DriverResources,
) -> dict[str, Any]:
    """Upload the code of an attempt and return what is posted to start its job.

    `env` must hold no secret: Ray shows the runtime_env of a job to whoever may list jobs.
    """
    key = layout.request_key(request.restore_id, request.trial_id, request.attempt)
    command = ["-m", "airflow_tune_restore.runner", "run", "--experiment", request.experiment]
    delivered = deliver(jobs, runtime_env)
    delivered["env_vars"] = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS),
        **(delivered.get("env_vars") or {}),
        **env,
    }
    return {
        "entrypoint": shlex.join(["exec", "python", *command, "--request", key]),
        "submission_id": submission_id(
            request.experiment, request.restore_id, request.trial_id, request.attempt
        ),
        "runtime_env": delivered,
        "metadata": {
            "restore_id": request.restore_id,
            "trial_id": request.trial_id,
            "attempt": str(request.attempt),
        },
        **{
            name: value
            for name, value in (
                ("entrypoint_num_cpus", driver.num_cpus),
                ("entrypoint_memory", int(driver.memory)),
                ("entrypoint_resources", dict(driver.resources)),
            )
            if value
        },
    }
