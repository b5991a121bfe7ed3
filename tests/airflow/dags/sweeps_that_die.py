"""A sweep as one task, once for each launcher. A test kills its driver."""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_tune_restore.operators.run_tune_sweep import RunTuneSweepOperator

HERE = Path(__file__).parent
TEMPLATE = "the pod template"  # the fixture `dags` puts its path here

PLACES = {
    "local": {"entrypoint": f"python {HERE / 'dying_sweep.py'}"},
    "ray": {"entrypoint": "python dying_sweep.py", "runtime_env": {"working_dir": str(HERE)}},
    "kubernetes": {
        "entrypoint": f"python {HERE / 'dying_sweep.py'}",
        "pod_template_file": TEMPLATE,
        "concurrent_trials": 2,
        "deferrable": True,
    },
}

for launcher, arguments in PLACES.items():
    with DAG(
        f"sweep_that_dies_{launcher}",
        schedule=None,
        params={"experiment": Param("", type="string")},
    ):
        RunTuneSweepOperator(
            task_id="sweep",
            experiment="{{ params.experiment }}",
            trainable="dying_sweep:train",
            launcher=launcher,
            retries=3,
            retry_delay=timedelta(seconds=1),
            **arguments,
        )
