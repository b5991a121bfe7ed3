"""Every night: find failed Ray Tune experiments below a prefix, and restore them.

Prefix: the Param `prefix`. Its default is TUNE_RESTORE_PREFIX in the environment, else the Airflow
Variable `tune_restore_prefix`. An address may name a connection: `s3://conn_id@bucket/path`.
As written, the DAG restores the experiments of `example_sweep.py`. Put your own trainable into the Param.
With the Param `experiment`, a run restores this experiment alone. The page "Tune experiments" uses it.

Launcher: the Param `launcher`. Its default is TUNE_RESTORE_LAUNCHER in the environment, else the Airflow
Variable `tune_restore_launcher`, else `local` (this worker). With `ray`, the connection
`ray_jobs_default` names the cluster, and the jobs get this folder as their working directory.
With TUNE_RESTORE_LAUNCHER=kubernetes, each trial runs in a pod made from the template that
TUNE_RESTORE_POD_TEMPLATE names (see docs/kubernetes.md). Set this in the environment only, because
pods have operators of their own.
"""

import os
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_tune_restore.task_group import TuneRestoreTaskGroup

IN_PODS = os.environ.get("TUNE_RESTORE_LAUNCHER") == "kubernetes"
WITH_CODE = {"working_dir": str(Path(__file__).parent)}  # with ray: your code is uploaded
POD = {"pod_template_file": os.environ.get("TUNE_RESTORE_POD_TEMPLATE"), "deferrable": True}

with DAG(
    "nightly_recovery",
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["ray", "tune"],
    params={
        "experiment": Param(
            "",
            type="string",
            description="Address of one experiment. Empty: all below the prefix.",
        ),
        "prefix": Param(
            os.environ.get("TUNE_RESTORE_PREFIX", ""),
            type="string",
            description="Where experiments lie. Empty: the Variable tune_restore_prefix.",
        ),
        "trainable": Param(
            "example_sweep:train",
            type="string",
            description="package.module:attribute, importable by the workers.",
        ),
        "launcher": Param(
            os.environ.get("TUNE_RESTORE_LAUNCHER", ""),
            type="string",
            description="local or ray. Empty: the Variable tune_restore_launcher, else local.",
        ),
        "stale_after": Param(
            1800, type="number", description="Seconds of silence after which a sweep is dead."
        ),
        "resume_unfinished": Param(default=True, type="boolean"),
        "resume_errored": Param(default=True, type="boolean"),
        "restart_errored": Param(default=False, type="boolean"),
    },
):
    TuneRestoreTaskGroup(
        prefix="{{ params.experiment or params.prefix"
        " or var.value.get('tune_restore_prefix', '') }}",
        trainable="{{ params.trainable }}",
        launcher="kubernetes"
        if IN_PODS
        else "{{ params.launcher or var.value.get('tune_restore_launcher', 'local') }}",
        runtime_env=WITH_CODE,
        stale_after="{{ params.stale_after }}",
        wait=False,
        resume_unfinished="{{ params.resume_unfinished }}",
        resume_errored="{{ params.resume_errored }}",
        restart_errored="{{ params.restart_errored }}",
        max_active_trials=4,
        # nodes die, jobs are cancelled, pods are evicted; each retry continues from a snapshot
        trial_args={"retries": 3, **(POD if IN_PODS else {})},
        # the example's bug is fixed; a DAG of your own does not need this line
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
    )
