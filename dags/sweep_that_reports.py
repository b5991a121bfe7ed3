"""A sweep whose task reports its own failure, and the DAG that then restores only that experiment.

`sweep_that_reports` runs a sweep. When its task has failed without a further retry,
`TriggerRecoveryNotifier` starts `recover_experiment` with the experiment's address in its conf. You can
also start that DAG by hand.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from airflow.sdk import DAG, Param, task

from airflow_tune_restore.notifications.trigger_recovery import TriggerRecoveryNotifier
from airflow_tune_restore.task_group import TuneRestoreTaskGroup

SCRIPT = Path(__file__).with_name("example_sweep.py")
STORAGE_PATH = (
    os.environ.get("TUNE_RESTORE_PREFIX")
    or Path(tempfile.gettempdir(), "tune_restore_example").as_posix()
)
NAME = "sweep_{{ dag_run.run_after | ts_nodash }}"

with DAG(
    "sweep_that_reports",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["ray", "tune"],
    params={
        "storage_path": Param(
            STORAGE_PATH,
            type="string",
            description="Local directory or s3:// URL; credentials come from the environment.",
        ),
    },
):

    @task(
        retries=0,
        on_failure_callback=TriggerRecoveryNotifier(
            dag_id="recover_experiment",
            experiment="{{ params.storage_path }}/" + NAME,
            extra_conf={"stale_after": 0},  # the task has ended, and so has its child, the driver
        ),
    )
    def sweep(storage_path: str, name: str) -> None:
        """Run the sweep. If it fails, the task fails."""
        subprocess.run(  # noqa: S603  the script beside this file
            [sys.executable, SCRIPT, "--storage-path", storage_path, "--name", name], check=True
        )

    sweep("{{ params.storage_path }}", NAME)

with DAG(
    "recover_experiment",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["ray", "tune"],
    params={
        "experiment": Param("", type="string", description="Address of the experiment."),
        "stale_after": Param(
            1800, type="number", description="Seconds of silence after which it is dead."
        ),
    },
):
    TuneRestoreTaskGroup(
        prefix="{{ params.experiment }}",  # waits in the triggerer until it is dead
        trainable="example_sweep:train",
        stale_after="{{ params.stale_after }}",
        deferrable=True,
        resume_errored=True,
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},  # stands for the fixed code
        # only this experiment, not those below it
        max_depth=0,
        timeout=6 * 3600,
        soft_fail=True,
    )
