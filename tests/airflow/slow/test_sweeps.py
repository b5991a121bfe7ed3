"""A sweep as one task, as Ray jobs and in pods: killed twice, and followed by whoever is left."""

import base64
import os
import signal

import pytest

from tests.support import ROOT
from tests.support.airflow.sweeps import FIRST, RUNNER, SCRIPT, SECOND, DyingSweep, result_tables
from tests.support.kubernetes.api import NAMESPACE
from tests.support.kubernetes.server import cluster as kubernetes_cluster
from tests.support.ray.cluster import ray_cluster


@pytest.fixture(scope="module")
def cluster(running, seaweed):
    """A Ray cluster with keys of the store in its environment."""
    env = {**seaweed.env, "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    with ray_cluster(env, num_cpus=4) as started:
        running.connect("ray_jobs_default", started.connection)
        yield started


@pytest.fixture
def api(running, seaweed, dags, tmp_path):
    """A cluster whose image is this interpreter with the test's DAGs."""
    path = os.pathsep.join([str(ROOT), str(dags)])
    with kubernetes_cluster(PYTHONPATH=path, TUNE_GLOBAL_CHECKPOINT_S="1") as api:
        keys = {n: base64.b64encode(value.encode()).decode() for n, value in seaweed.env.items()}
        api.secrets[NAMESPACE, "tune-restore-storage"] = keys
        config = api.kubeconfig(tmp_path / "config.json")
        kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config_path": config}}
        running.connect("kubernetes_default", kubernetes)
        yield api


def jobs(cluster, name):
    """Return the jobs of an experiment, oldest first."""
    found = [j for j in cluster.call("/api/jobs/") if f"/{name} " in j["entrypoint"]]
    return sorted(found, key=lambda job: job["start_time"])


def test_as_ray_jobs_it_ends_as_one_that_nobody_killed(running, seaweed, gates, cluster):
    killed = DyingSweep(running, seaweed, gates, "ray", "killed_on_ray")
    spared = DyingSweep(running, seaweed, gates, "ray", "spared_on_ray")
    killed.close(FIRST, SECOND)
    killed.begin()
    spared.begin()
    killed.wait_before(FIRST)
    running.restart_triggerer()
    killed.kill(SCRIPT)
    killed.open(FIRST)
    killed.wait_before(SECOND)
    killed.kill(RUNNER)
    killed.open(SECOND)
    killed.finish()
    spared.finish()
    assert (killed.tries(), spared.tries()) == (3, 1)
    assert "SIGKILL ended the script" in killed.log()
    assert len(jobs(cluster, "killed_on_ray")) == 3  # noqa: PLR2004
    ours, theirs = result_tables(killed, spared)
    assert ours == theirs


def test_a_worker_that_is_killed_attaches_and_a_cleared_task_attaches_or_restores(
    running, seaweed, gates, cluster
):
    """A cleared task runs again within a second: before its trigger has stopped the job, or after it."""
    sweep = DyingSweep(running, seaweed, gates, "ray", "cleared_on_ray")
    sweep.close(FIRST)
    with cluster.silenced():  # a task has a process until the head has taken its job
        sweep.begin()
        worker = running.eventually(lambda: at_work(sweep), every=0.2)
        os.kill(worker, signal.SIGKILL)
    sweep.wait_before(FIRST)
    (job,) = jobs(cluster, sweep.name)
    running.eventually(lambda: "deferred" in running.states(sweep.dag_id, sweep.run_id)["sweep"])
    tries = sweep.tries()
    body = {"dry_run": False, "task_ids": ["sweep"], "dag_run_id": sweep.run_id}
    body |= {"only_failed": False, "reset_dag_runs": True}
    running.call("POST", f"/api/v2/dags/{sweep.dag_id}/clearTaskInstances", body)
    running.eventually(
        lambda: sweep.tries() > tries or jobs(cluster, sweep.name)[0]["status"] == "STOPPED"
    )
    sweep.open(FIRST)
    sweep.finish()
    first, *_ = found = jobs(cluster, sweep.name)
    assert first["submission_id"] == job["submission_id"]
    assert [each["status"] for each in found].count("SUCCEEDED") == 1
    (ours,) = result_tables(sweep)
    assert [row["status"] for row in ours] == ["TERMINATED"] * 2


def at_work(sweep):
    """Return the process of the sweep's task, once it has one."""
    for task in sweep.running.tasks(sweep.dag_id, sweep.run_id):
        if task["state"] == "running" and task["pid"]:
            return task["pid"]
    return None


def test_in_pods_it_ends_as_one_that_nobody_killed(running, seaweed, gates, api):
    killed = DyingSweep(running, seaweed, gates, "kubernetes", "killed_in_pods")
    spared = DyingSweep(running, seaweed, gates, "local", "spared_pods")
    killed.close(FIRST, SECOND)
    killed.begin()
    spared.begin()
    killed.wait_before(FIRST)
    killed.kill(SCRIPT)
    killed.open(FIRST)
    killed.wait_before(SECOND)
    (pod,) = api.pod_names()
    api.kubelet.evict(pod, grace=1)
    killed.open(SECOND)
    killed.finish()
    spared.finish()
    assert (killed.tries(), spared.tries()) == (3, 1)
    assert "SIGKILL ended the script" in killed.log()
    ours, theirs = result_tables(killed, spared)
    assert ours == theirs
