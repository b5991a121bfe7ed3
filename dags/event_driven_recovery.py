"""Recovers sweeps minutes after they die, instead of at night.

The triggerer watches an asset. When a sweep below TUNE_RESTORE_PREFIX (in the environment of the DAG
processor) has written nothing for TUNE_RESTORE_STALE_AFTER seconds (1800), the asset starts this DAG.
The event is only a wake-up: the DAG scans by itself, and restores every experiment that it finds dead.
As written, it restores the experiments of `example_sweep.py`. Replace the trainable by your own.
"""

import os

from airflow.sdk import DAG, Asset, AssetWatcher

from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from airflow_tune_restore.triggers.failed_experiment import FailedTuneExperimentTrigger

PREFIX = os.environ.get("TUNE_RESTORE_PREFIX", "")
STALE_AFTER = float(os.environ.get("TUNE_RESTORE_STALE_AFTER", "1800"))
POLL = float(os.environ.get("TUNE_RESTORE_POLL", "60"))

failed_sweeps = Asset(
    "failed_sweeps",
    watchers=[
        AssetWatcher(
            name="failed_sweeps",
            trigger=FailedTuneExperimentTrigger(
                prefix=PREFIX, stale_after=STALE_AFTER, poke_interval=POLL
            ),
        )
    ]
    if PREFIX
    else [],
)

with DAG(
    "event_driven_recovery",
    schedule=[failed_sweeps],
    catchup=False,
    max_active_runs=4,  # a sweep that dies need not wait for another restore; leases keep them apart
    doc_md=__doc__,
    tags=["ray", "tune"],
):
    TuneRestoreTaskGroup(
        prefix=PREFIX or "{{ var.value.get('tune_restore_prefix', '') }}",
        trainable="example_sweep:train",
        stale_after=STALE_AFTER,
        wait=False,
        resume_errored=True,
        max_attempts=10,  # a trial whose process dies each time would start this DAG again each time
        max_active_trials=4,
        # the example's bug is fixed; a DAG of your own does not need this line
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
    )
