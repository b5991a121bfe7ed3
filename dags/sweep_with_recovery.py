"""A sweep, and its recovery in the same DAG run if it fails.

The sweep runs in a child process of the task, as any script would. Whatever became of it, its experiment
is looked at when it has ended: trials that failed or were cut off are resumed one task each, and
the DAG run succeeds if they finish. If all went well there is nothing to restore, and nothing is run.
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
        """Run the sweep; the task fails with it."""
        subprocess.run(  # noqa: S603  our own script
            [sys.executable, SCRIPT, "--storage-path", storage_path, "--name", name], check=True
        )

    name = "sweep_{{ dag_run.run_after | ts_nodash }}"
    recovery = TuneRestoreTaskGroup(
        group_id="recovery",
        experiments="{{ params.storage_path }}/" + name,
        trainable="example_sweep:train",
        resume_errored=True,
        stale_after=0,  # the sweep's task has ended, so its driver is dead
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},  # the next night's code
        plan_args={"trigger_rule": "all_done"},
    )
    sweep("{{ params.storage_path }}", name) >> recovery.plan
