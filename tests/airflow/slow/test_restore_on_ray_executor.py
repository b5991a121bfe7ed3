"""A failed sweep on S3 is restored by a DAG whose trials run as Ray jobs of the RayExecutor.

On the oldest, this and the newest Airflow. The trials end as with `Tuner.restore`. Only Airflow's
connection has the store's keys.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.matrix.environments import NEWEST_AIRFLOW, OLDEST_AIRFLOW, airflow_python
from tests.support import ROOT
from tests.support.airflow.standalone import airflow
from tests.support.experiments.sweeps import DAGS, copy_sweep
from tests.support.ray.cluster import ray_cluster

DAG = "restore_on_ray_executor"
TRIAL = "restore.trial"
EXECUTORS = "LocalExecutor,airflow_tune_restore.executors.ray_executor.RayExecutor"


@pytest.fixture(scope="module")
def dags_on_ray(tmp_path_factory) -> Path:
    """The DAG and the code of the sweep, in the scheduler's folder and on the Ray image."""
    directory = tmp_path_factory.mktemp("dags_on_ray")
    shutil.copy(ROOT / "tests" / "airflow" / "dags" / f"{DAG}.py", directory)
    shutil.copy(DAGS / "example_sweep.py", directory)
    return directory


@pytest.fixture(scope="module", params=[OLDEST_AIRFLOW, "this", NEWEST_AIRFLOW])
def python(request) -> str:
    """The interpreter of Airflow, and of the nodes."""
    return sys.executable if request.param == "this" else airflow_python(request.param)


@pytest.fixture(scope="module")
def ray_nodes(python, dags_on_ray, tmp_path_factory):
    """A cluster whose image has Airflow, this package, and the DAGs. It has no database."""
    env = {
        "PYTHONPATH": f"{ROOT}:{dags_on_ray}",
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("on_ray")),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_on_ray),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nonexistent/none.db",
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        "RAY_TRAIN_V2_ENABLED": "0",
    }
    with ray_cluster(env, 5, python) as started:
        yield started


@pytest.fixture(scope="module")
def on_ray(python, ray_nodes, dags_on_ray, s3, tmp_path_factory):
    """Airflow, with the executor and a connection to the store."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__EXECUTOR": EXECUTORS,
        "AIRFLOW__RAY_EXECUTOR__ADDRESS": ray_nodes.address,
        "AIRFLOW__RAY_EXECUTOR__TOKEN": ray_nodes.token,
        "AIRFLOW__RAY_EXECUTOR__DELETE_JOBS": "False",
    }
    home = tmp_path_factory.mktemp("airflow_on_ray")
    with airflow(home, dags_on_ray, python=python, **settings) as started:
        started.connect("seaweed", json.loads(s3.airflow_connection))
        yield started


@pytest.mark.parametrize(
    "ray_address", ["", "auto"], ids=["on a private Ray", "on the job's own cluster"]
)
def test_a_restore_whose_trials_are_ray_jobs_ends_as_tuner_restore(
    on_ray, ray_nodes, s3, by_hand, tmp_path, ray_address
):
    place = f"on_ray_executor/{tmp_path.name}"
    ours = s3.upload(copy_sweep("killed", tmp_path / "killed"), f"{place}/killed")
    before = set(tasks_on(ray_nodes))
    conf = {"prefix": f"s3://seaweed@{s3.bucket}/{place}", "ray_address": ray_address}
    run_id = on_ray.trigger(DAG, conf)
    assert on_ray.finish(DAG, run_id) == "success", on_ray.log_tail()
    trials = [task for task in on_ray.tasks(DAG, run_id) if task["task_id"] == TRIAL]
    assert [(task["state"], task["try_number"]) for task in trials] == [("success", 1)] * 3
    # exactly the trials were jobs, and each was one; a job ends just after its task
    of_run = [name for name in tasks_on(ray_nodes) if name not in before]
    on_ray.eventually(lambda: "RUNNING" not in {tasks_on(ray_nodes)[n]["status"] for n in of_run})
    ended = [tasks_on(ray_nodes)[name] for name in of_run]
    assert [(job["status"], job["metadata"]["task_id"]) for job in ended] == [
        ("SUCCEEDED", TRIAL)
    ] * len(trials)
    by_hand.assert_equal(ours, s3.env)


def tasks_on(cluster) -> dict[str, dict]:
    """Return the jobs of Airflow's tasks."""
    found = {str(job["submission_id"]): job for job in cluster.call("/api/jobs/")}
    return {name: job for name, job in found.items() if name.startswith("airflow-")}
