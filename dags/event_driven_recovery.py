"""Recovers sweeps minutes after they die, instead of at night.

The asset is watched in the triggerer: when a sweep below TUNE_RESTORE_PREFIX (in the environment of the
DAG processor) has been silent for TUNE_RESTORE_STALE_AFTER seconds (1800), this DAG is woken up.
The event is only a wake-up; the DAG looks by itself, and restores whatever it finds dead.
As it is, it restores the experiments of `example_sweep.py`; put your own trainable in.
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
    max_active_runs=4,  # who dies while another trains again need not wait; leases see to the rest
    doc_md=__doc__,
    tags=["ray", "tune"],
):
    TuneRestoreTaskGroup(
        prefix=PREFIX or "{{ var.value.get('tune_restore_prefix', '') }}",
        trainable="example_sweep:train",
        stale_after=STALE_AFTER,
        wait=False,
        resume_errored=True,
        max_attempts=10,  # a trial whose process dies each time would wake this DAG again each time
        max_active_trials=4,
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},  # the example's bug is fixed; yours needs no such line
    )
