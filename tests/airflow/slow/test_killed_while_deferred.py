"""A user fails a trial whose task waits in the triggerer for its own job: that job ends, and no other.

A triggerer that restarts, in whatever way, stops nothing. Before Airflow 3.3 nobody tells a trigger which
of the two it is.
"""

import signal

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.sweeps import copy_sweep
from tests.support.ray.cluster import ray_cluster

DAG = "jobs_of_their_own"
TRIAL = "restore.trial"
CODE = """
from airflow.sdk import DAG

from airflow_tune_restore.task_group import TuneRestoreTaskGroup

with DAG("jobs_of_their_own", schedule=None):
    TuneRestoreTaskGroup(
        experiments="{{ dag_run.conf['experiment'] }}",
        trainable="example_sweep:train",
        strategy="per_trial",
        launcher="ray",
        runtime_env={"working_dir": DAGS},
        stale_after=0,
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
    )
"""
NAME = "killed_while_deferred"


@pytest.fixture(scope="module")
def cluster(running):
    """CPUs enough for all trials to run at once."""
    with ray_cluster({"TUNE_GLOBAL_CHECKPOINT_S": "1"}, num_cpus=4) as started:
        running.connect("ray_jobs_default", started.connection)
        yield started


def test_a_trial_that_is_failed_stops_its_job_and_a_triggerer_that_restarts_stops_none(
    running, cluster, gates, tmp_path
):
    experiment = copy_sweep("killed", tmp_path / NAME)
    gates.close(NAME)
    (running.dags / "jobs_of_their_own.py").write_text(
        CODE.replace("DAGS", repr(str(running.dags)))
    )
    run_id = running.trigger(DAG, {"experiment": str(experiment)})
    running.eventually(lambda: running.states(DAG, run_id).get(TRIAL) == ["deferred"] * 3)
    running.eventually(lambda: sum("iteration" in log for log in logs(cluster).values()) >= 1)
    running.eventually(lambda: waits_of(running, run_id) == 3)
    jobs = statuses(cluster)
    for number, waits in ((signal.SIGTERM, 6), (signal.SIGKILL, 9)):
        running.restart_triggerer(number)
        running.eventually(lambda waits=waits: waits_of(running, run_id) == waits)
        assert statuses(cluster) == jobs == dict.fromkeys(jobs, "RUNNING")

    (victim, trial_id) = next(
        (task["map_index"], task["rendered_map_index"].split()[1])
        for task in running.tasks(DAG, run_id)
        if task["task_id"] == TRIAL
    )
    path = f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/{TRIAL}/{victim}"
    running.call("PATCH", path, {"new_state": "failed"})
    running.eventually(lambda: "STOPPED" in statuses(cluster).values())
    gates.open(NAME)
    assert running.finish(DAG, run_id) == "failed"
    assert sorted(statuses(cluster).values()) == ["STOPPED", "SUCCEEDED", "SUCCEEDED"]
    outcomes = f".tune_restore/*/trials/{trial_id}/attempts/000001/outcome.json"
    assert list(experiment.glob(outcomes))  # it saved a snapshot, which the commit took
    found = read_experiment(open_store(str(experiment))).trials
    assert sorted(trial.status.value == "TERMINATED" for trial in found) == [False] + [True] * 3


def statuses(cluster) -> dict[str, str]:
    """Return the status of each job by submission id."""
    found = cluster.call("/api/jobs/")
    return {job["submission_id"]: job["status"] for job in found if job["submission_id"]}


def logs(cluster) -> dict[str, str]:
    return {name: cluster.call(f"/api/jobs/{name}/logs")["logs"] for name in statuses(cluster)}


def waits_of(running, run_id: str) -> int:
    """Return how often a triggerer began to wait for a trial of the run: each has a log of its own."""
    return len(
        list((running.home / "logs").glob(f"dag_id={DAG}/run_id={run_id}/**/*.trigger.*.log"))
    )
