"""A sweep whose retries restore it: one task, and no other recovery.

The task runs the script of the sweep. If a trial fails, or if the driver dies, Airflow tries the task
again, and the try restores the sweep: trials that failed or were cut off continue from their checkpoints,
the others stay as they are. The task succeeds when all trials have finished.
"""

import os
import shlex
import tempfile
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_tune_restore.operators.run_tune_sweep import RunTuneSweepOperator

SCRIPT = shlex.quote(Path(__file__).with_name("example_sweep.py").as_posix())

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
            description="Local directory, or s3://my_aws_conn@bucket/prefix.",
        ),
    },
):
    RunTuneSweepOperator(
        task_id="sweep",
        # the script fails as long as it is not repaired; `env` reaches its retries, too
        entrypoint=f"EXAMPLE_SWEEP_REPAIRED=0 python {SCRIPT}",
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
        experiment="{{ params.storage_path }}/sweep_{{ dag_run.run_after | ts_nodash }}",
        trainable="example_sweep:train",
        retries=3,
        retry_delay=timedelta(seconds=10),
    )
