"""A sweep whose task reports its failure when its retries are used up, and the DAG that then restores it.

`sweep_that_reports` runs a sweep. A retry restores it. When the last try has failed, too,
`TriggerRecoveryNotifier` starts `recover_experiment` with the experiment's address in its conf. You can
also start that DAG by hand, when the cause of the failures is gone.
"""

import os
import shlex
import tempfile
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_tune_restore.notifications.trigger_recovery import TriggerRecoveryNotifier
from airflow_tune_restore.operators.run_tune_sweep import RunTuneSweepOperator
from airflow_tune_restore.task_group import TuneRestoreTaskGroup

SCRIPT = shlex.quote(Path(__file__).with_name("example_sweep.py").as_posix())
STORAGE_PATH = (
    os.environ.get("TUNE_RESTORE_PREFIX")
    or Path(tempfile.gettempdir(), "tune_restore_example").as_posix()
)
EXPERIMENT = "{{ params.storage_path }}/sweep_that_reports_{{ dag_run.run_after | ts_nodash }}"

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
            description="Local directory, or s3://my_aws_conn@bucket/prefix.",
        ),
    },
):
    RunTuneSweepOperator(
        task_id="sweep",
        entrypoint=f"python {SCRIPT}",  # without the repair, its retry fails, too
        experiment=EXPERIMENT,
        trainable="example_sweep:train",
        retries=1,
        retry_delay=timedelta(seconds=10),
        on_failure_callback=TriggerRecoveryNotifier(
            dag_id="recover_experiment",
            experiment=EXPERIMENT,
            extra_conf={"stale_after": 0},  # the task has ended, and so has the driver
        ),
    )

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
