"""A task of a trial as the RayExecutor's job runs it: the entrypoint of a Ray job, with its package.

`python -m tests.support.ray.task_of_job` runs the task that the variable TASK describes.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.jobs_api import RayJob, RayJobs
from airflow_tune_restore.launch.ray.package import directory_package
from airflow_tune_restore.protocol.ray_job import TASK_PREFIX
from tests.support.ray.cluster import RayCluster
from tests.support.waiting import eventually


@dataclasses.dataclass(frozen=True)
class TaskJob:
    """A job that was submitted.

    Args:
        cluster: Its cluster.
        name: Its submission id.
    """

    cluster: RayCluster
    name: str

    def find(self) -> RayJob:
        job = jobs_of(self.cluster).find(self.name)
        assert job is not None
        return job

    def log(self) -> str:
        return str(self.cluster.call(f"/api/jobs/{self.name}/logs")["logs"])

    def end(self) -> str:
        """Wait for its end, and return its state."""
        eventually(lambda: self.find().is_over)
        return self.find().status


def jobs_of(cluster: RayCluster) -> RayJobs:
    return RayJobs(Cluster(address=cluster.address, token=cluster.token))


def submit(
    cluster: RayCluster, scratch: Path, name: str, task: dict[str, Any], *,
    env: dict[str, str] | None = None, **resources: Any,
) -> TaskJob:  # fmt: skip
    """Submit `RestoreTrialOperator(task_id="trial", **task)` with a package, as the executor does."""
    package = scratch / "workload"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        'import runpy\nrunpy.run_module("tests.support.ray.task_of_job", run_name="__main__")\n'
    )
    jobs, packed = jobs_of(cluster), directory_package(package, is_module=True)
    jobs.upload_package(packed.name, packed.body)
    submitted = jobs.submit(
        {
            "entrypoint": "exec python -m workload",
            "submission_id": TASK_PREFIX + name,
            "runtime_env": {
                "py_modules": [packed.uri],
                "env_vars": {
                    "AIRFLOW_HOME": str(scratch / "airflow"),
                    "AIRFLOW_IS_EXECUTOR_CONTAINER": "true",
                    "TASK": json.dumps(task),
                    **(env or {}),
                },
            },
            "entrypoint_num_cpus": 1,
            **resources,
        }
    )
    assert submitted
    return TaskJob(cluster, TASK_PREFIX + name)


def main() -> None:
    """Run the task as Airflow's worker does; what it returns or raises is in the job's log."""
    from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
    from tests.support.airflow.context import make_context

    operator = RestoreTrialOperator(task_id="trial", **json.loads(os.environ["TASK"]))
    print("RETURNED", json.dumps(operator.execute(make_context())))


if __name__ == "__main__":
    main()
