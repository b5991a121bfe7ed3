"""A sweep, and its recovery in the same DAG run if it fails.

The sweep runs in a child process of the task, like any script. When it has ended, the plan task reads its
experiment, also if the sweep failed. Trials that failed or were interrupted are resumed, one task per
trial, and the DAG run succeeds if they finish. If all trials finished, there is nothing to restore, and
nothing runs.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from airflow.sdk import DAG, Param, task

from airflow_tune_restore.task_group import TuneRestoreTaskGroup

SCRIPT = Path(__file__).with_name("example_sweep.py")

with DAG(
    "sweep_with_recovery",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["ray", "tune"],
    params={
        "storage_path": Param(
            os.environ.get("TUNE_RESTORE_PREFIX")
            or Path(tempfile.gettempdir(), "tune_restore_example").as_posix(),
            type="string",
            description="Local directory or s3:// URL; credentials come from the environment.",
        ),
    },
):

    @task(retries=0)
    def sweep(storage_path: str, name: str) -> None:
        """Run the sweep. If it fails, the task fails."""
        subprocess.run(  # noqa: S603  the script beside this file
            [sys.executable, SCRIPT, "--storage-path", storage_path, "--name", name], check=True
        )

    name = "sweep_{{ dag_run.run_after | ts_nodash }}"
    recovery = TuneRestoreTaskGroup(
        group_id="recovery",
        experiments="{{ params.storage_path }}/" + name,
        trainable="example_sweep:train",
        resume_errored=True,
        stale_after=0,  # the sweep's task has ended, so its driver is dead
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},  # stands for the fixed code
        plan_args={"trigger_rule": "all_done"},
    )
    sweep("{{ params.storage_path }}", name) >> recovery.plan
