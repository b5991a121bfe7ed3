"""The submission of an attempt as a Ray job: its command and its resources."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.launch.ray.package import deliver
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.ray_job import submission_id
from airflow_tune_restore.protocol.request import RunnerRequest, TrialAction

if TYPE_CHECKING:
    from airflow_tune_restore.launch.ray.jobs_api import RayJobs

STOP_WAIT_SECONDS = 60
"""Grace period of a stopped job, to save its snapshot; Ray's default is 3 s."""

SCRIPT_STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT"}
"""A job that is stopped gets the signal in all its processes (`JobSupervisor.run`, 2.60). Ray Tune saves
the script's last snapshot after SIGINT; after SIGTERM a driver exits without one."""

DRIVER_MEMORY_BYTES = 512 * 1024**2
"""Memory that a driver requests by default.

A driver that requests nothing runs on the head node. It is memory and not CPUs, because drivers could
hold all the CPUs that their own trials wait for.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverResources:
    """Resources that the driver itself requests, memory in bytes; its trials request their own."""

    num_cpus: float = 0.0
    memory: int = DRIVER_MEMORY_BYTES
    resources: Mapping[str, float] = field(default_factory=dict)


def build_submission(
    jobs: "RayJobs",
    request: RunnerRequest,
    *,
    runtime_env: Mapping[str, Any],
    env: Mapping[str, str],
    driver: DriverResources,
) -> dict[str, Any]:
    """Upload the code of an attempt and return the body of the request that submits its job.

    `env` must hold no secret: Ray shows the runtime_env of a job to everyone who may list jobs.
    """
    key = layout.request_key(request.restore_id, request.trial_id, request.attempt)
    command = ["-m", "airflow_tune_restore.runner", "run", "--experiment", request.experiment]
    delivered = deliver(jobs, runtime_env)
    delivered["env_vars"] = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS),
        **(SCRIPT_STOP if request.action is TrialAction.SWEEP else {}),
        **(delivered.get("env_vars") or {}),
        **env,
    }
    resources = {
        "entrypoint_num_cpus": driver.num_cpus,
        "entrypoint_memory": int(driver.memory),
        "entrypoint_resources": dict(driver.resources),
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
        **{name: value for name, value in resources.items() if value},
    }
