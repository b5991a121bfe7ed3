"""Tasks of trials that run as jobs of a Ray cluster, as Airflow's RayExecutor runs them."""

import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.ray_job import job_of
from airflow_tune_restore.protocol.records import is_listed
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.airflow.context import make_context
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.cluster import ray_cluster
from tests.support.ray.task_of_job import TaskJob, jobs_of, submit
from tests.support.waiting import eventually

KIND = "errored"
HEALED = {"TUNE_TEST_HEALED": "1"}


@pytest.fixture(scope="module")
def cluster():
    env = {
        "PYTHONPATH": ROOT.as_posix(),
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        "RAY_TRAIN_V2_ENABLED": "0",
        "CUDA_VISIBLE_DEVICES": "5,6",
    }
    with ray_cluster(env, num_cpus=3) as started:
        yield started


@pytest.fixture
def experiment(copied) -> Path:
    return copied(KIND)


def plan(experiment: Path, **arguments) -> dict:
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=str(experiment), resume_errored=True, stale_after=0,
        trainable=TRAINABLES[KIND], **arguments,
    )  # fmt: skip
    (item,) = operator.execute(make_context())
    return {"trial": item, "trainable": TRAINABLES[KIND], "env": HEALED}


def records(experiment: Path, task: dict) -> AttemptRecords:
    item = task["trial"]
    return AttemptRecords(open_store(str(experiment)), item["restore_id"], item["trial_id"])


def returned(job) -> dict:
    assert job.end() == "SUCCEEDED", job.log()
    (line,) = [line for line in job.log().splitlines() if line.startswith("RETURNED ")]
    return json.loads(line.removeprefix("RETURNED "))


def test_a_trial_has_a_private_ray_inside_the_job(cluster, experiment, tmp_path):
    task = plan(experiment)
    result = returned(submit(cluster, tmp_path, "private", task))
    assert (result["status"], result["iteration"], result["attempt"]) == ("TERMINATED", 6, 1)
    assert result["metrics"]["started_from"] == 3
    assert records(experiment, task).request(1).address is None


def test_the_actors_of_a_trial_run_on_the_cluster_of_the_job(cluster, experiment, tmp_path):
    """Its job is the driver only. The runtime_env is that of the job and the task's."""
    task = plan(experiment)
    task |= {"ray_address": "auto", "runtime_env": {"env_vars": {**HEALED, "TASK": "changed"}}}
    result = returned(submit(cluster, tmp_path, "joins", task))
    assert (result["status"], result["iteration"], result["attempt"]) == ("TERMINATED", 6, 1)
    request = records(experiment, task).request(1)
    assert request.address not in (None, "auto")
    assert job_of(request) is None  # the page names no job that does not exist


def test_a_task_that_is_a_job_can_submit_a_job(cluster, experiment, tmp_path):
    task = plan(experiment) | {"launcher": "ray", "deferrable": False}
    env = {"AIRFLOW_CONN_RAY_JOBS_DEFAULT": json.dumps(cluster.connection)}
    result = returned(submit(cluster, tmp_path, "submits", task, env=env))
    assert (result["status"], result["iteration"], result["attempt"]) == ("TERMINATED", 6, 1)


def test_coupled_trials_run_to_their_end_in_the_job_that_started_them(
    cluster, experiment, tmp_path
):
    task = plan(experiment, strategy="whole_experiment")
    job = submit(cluster, tmp_path, "coupled", task)
    assert returned(job)["iteration"] == 6
    assert "Its task stays until the whole-experiment run has ended" in job.log()
    restore_id = task["trial"]["restore_id"]
    run = AttemptRecords(open_store(str(experiment)), restore_id, layout.WHOLE_EXPERIMENT)
    assert run.outcome(1).result == Result.FINISHED


def test_the_runner_of_a_task_that_was_killed_saves_a_snapshot(cluster, experiment, tmp_path, gate):
    """Ray does not kill what is left of a job whose entrypoint has exited (JobSupervisor, 2.60)."""
    task = plan(experiment)
    task["env"] = {**HEALED, **gate.env}
    job = submit(cluster, tmp_path, "killed", task)
    eventually(lambda: "iteration 4, " in job.log() or job.find().is_over)
    (pid,) = entrypoints(task["trial"]["restore_id"])
    os.kill(pid, signal.SIGKILL)
    assert job.end() == "FAILED"
    attempts = records(experiment, task)
    eventually(lambda: attempts.outcome(1))
    outcome = attempts.outcome(1)
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)
    key = layout.snapshot_key(attempts.restore_id, attempts.unit, 1)
    assert is_listed(attempts.store, key)


GPUS = """
import os, ray
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import ray_session

def look():
    return os.environ["CUDA_VISIBLE_DEVICES"]

request = RunnerRequest(
    experiment="e", restore_id="r", trial_id="t", attempt=1, trainable="m:t", trainable_name="t",
    action="resume",
)
ray_session.connect(request, {"CPU": 1.0, "GPU": 2.0})
seen = ray.get(ray.remote(num_cpus=1, num_gpus=1)(look).remote())
print("SEEN", os.environ["CUDA_VISIBLE_DEVICES"], seen, ray.cluster_resources()["GPU"])
"""


def test_a_private_ray_has_the_gpus_of_the_job_and_no_others(cluster):
    cluster.add_node(num_cpus=1, num_gpus=2)
    jobs = jobs_of(cluster)
    jobs.submit(
        {
            "entrypoint": f"python -c {shlex.quote(GPUS)}",
            "submission_id": "gpu",
            "entrypoint_num_cpus": 1,
            "entrypoint_num_gpus": 1,
        }
    )
    job = TaskJob(cluster, "gpu")
    assert job.end() == "SUCCEEDED", job.log()
    (line,) = [line for line in job.log().splitlines() if line.startswith("SEEN ")]
    _, of_job, of_trial, count = line.split()
    assert of_job in ("5", "6")
    assert (of_trial, count) == (of_job, "1.0")


def entrypoints(restore_id: str) -> list[int]:
    """Return the process ids of the entrypoints of a restore's tasks."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if b"workload" in command and restore_id.encode() in variables:
            found.append(int(entry.name))
    return found
