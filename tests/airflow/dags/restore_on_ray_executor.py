"""A restore whose trials run as Ray jobs of the RayExecutor; all other tasks run beside the scheduler."""

from airflow.sdk import DAG, Param

from airflow_tune_restore.task_group import TuneRestoreTaskGroup

REPAIRED = {"EXAMPLE_SWEEP_REPAIRED": "1"}

with DAG(
    "restore_on_ray_executor",
    schedule=None,
    params={"prefix": Param("", type="string"), "ray_address": Param("", type="string")},
):
    TuneRestoreTaskGroup(
        prefix="{{ params.prefix }}",
        trainable="example_sweep:train",
        ray_address="{{ params.ray_address }}",
        runtime_env={"env_vars": REPAIRED},  # of trials on the cluster
        env=REPAIRED,  # of trials on a private Ray
        resume_errored=True,
        stale_after=0,
        wait=False,
        trial_args={"executor": "RayExecutor", "executor_config": {"num_cpus": 0.5}},
    )
