"""The nightly DAG brings an experiment on S3 back through a real Ray cluster, with what a night brings.

Authentication is on, the triggerer and a worker are killed, and a job is cancelled in the Ray dashboard.
The end equals that of `Tuner.restore` on a copy. Ray's token is known to the connection alone, the
store's keys to the cluster and to Airflow's connection.
"""

import json
import os
import signal

import pytest

from tests.support.airflow import canary
from tests.support.experiments.sweeps import copy_sweep
from tests.support.ray.cluster import ray_cluster

DAG = "nightly_recovery"
TRIAL = "restore.trial"
NAME = "on_ray"


@pytest.fixture(scope="module")
def cluster(running, seaweed):
    """CPUs enough for all trials to run at once; keys of the store in its environment."""
    env = {**seaweed.env, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_TRAIN_V2_ENABLED": "0"}
    with ray_cluster(env, num_cpus=4) as started:
        running.connect("ray_jobs_default", started.connection)
        yield started


def test_a_night_on_a_cluster_ends_as_tuner_restore(
    running, cluster, seaweed, canaries, gates, by_hand, tmp_path
):
    place = f"night_on_ray/{NAME}"
    ours = seaweed.upload(copy_sweep("killed", tmp_path / NAME), place)
    gates.close(NAME)
    prefix = f"s3://seaweed@{seaweed.bucket}/night_on_ray"
    run_id = running.trigger(DAG, {"prefix": prefix, "stale_after": 0, "launcher": "ray"})
    killed = kill_a_worker(running, cluster, run_id)
    running.eventually(lambda: len(jobs(cluster, "RUNNING")) >= 2)
    running.eventually(lambda: "deferred" in running.states(DAG, run_id)[TRIAL])
    running.restart_triggerer()
    cancelled = cancel_a_job(cluster, running)
    gates.open(NAME)
    assert running.finish(DAG, run_id) == "success", running.log_tail()
    tasks = [task for task in running.tasks(DAG, run_id) if task["task_id"] == TRIAL]
    assert [task["state"] for task in tasks] == ["success"] * 3
    tries = {task["map_index"]: task["try_number"] for task in tasks}
    assert tries[killed] > 1
    # a job was cancelled and went on in another one; no trial ever had two at once
    seen = jobs(cluster)
    trial_id = seen[cancelled]["metadata"]["trial_id"]
    assert [j["status"] for j in seen.values() if j["metadata"]["trial_id"] == trial_id] == [
        "STOPPED",
        "SUCCEEDED",
    ]
    assert len({j["metadata"]["trial_id"] for j in seen.values()}) == 3
    for index in tries:
        assert "iteration 6, score=" in running.whole_log(DAG, run_id, TRIAL, index)
    places = {
        "the jobs": json.dumps(seen).encode(),
        **canary.objects(seaweed, f"{seaweed.bucket}/{place}"),
        **canary.values(running.home / "airflow.db"),
        **canary.files(running.home),
    }
    assert canary.leaks(places, (*canaries.all, cluster.token)) == []
    by_hand.assert_equal(ours, seaweed.env)


def kill_a_worker(running, cluster, run_id: str) -> int:
    """Kill the process of a trial's task with `kill -9`, and return its map index."""

    def trials() -> list[dict]:
        return [task for task in running.tasks(DAG, run_id) if task["task_id"] == TRIAL]

    def at_work() -> list[dict]:
        return [task for task in trials() if task["state"] == "running" and task["pid"]]

    running.eventually(lambda: any(task["state"] for task in trials()), every=0.2)
    with cluster.silenced():  # a task has a process until the head has taken its job
        victim, *_ = running.eventually(at_work)
        os.kill(victim["pid"], signal.SIGKILL)
        running.eventually(lambda: victim["pid"] not in {task["pid"] for task in at_work()})
    return victim["map_index"]


def cancel_a_job(cluster, running) -> str:
    """Cancel a job as the dashboard's button does, once its trial has got somewhere."""
    victim = running.eventually(
        lambda: next((name for name, log in logs(cluster).items() if "iteration" in log), None)
    )
    cluster.call(f"/api/jobs/{victim}/stop", "POST")
    running.eventually(lambda: victim in jobs(cluster, "STOPPED"))
    return victim


def jobs(cluster, status: str = "") -> dict[str, dict]:
    """Return jobs by submission id, oldest first."""
    found = [job for job in cluster.call("/api/jobs/") if job["submission_id"]]
    found.sort(key=lambda job: job["start_time"])
    return {j["submission_id"]: j for j in found if status in ("", j["status"])}


def logs(cluster) -> dict[str, str]:
    return {
        name: cluster.call(f"/api/jobs/{name}/logs")["logs"] for name in jobs(cluster, "RUNNING")
    }
