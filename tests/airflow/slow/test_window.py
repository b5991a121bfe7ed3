"""A window that closes in the middle, with all three launchers, under a real Airflow, Ray and S3.

All trials stand still when their window ends. One pod finds no node before. The next DAG run begins at
once, by the default `stale_after`, and the end equals that of `Tuner.restore` on a copy.
"""

import base64
import json
import os
from dataclasses import dataclass

import pytest

from tests.support import ROOT
from tests.support.experiments.sweeps import copy_sweep, statuses_in
from tests.support.kubernetes.api import IMAGE, NAMESPACE
from tests.support.kubernetes.server import cluster as kubernetes_cluster
from tests.support.ray.cluster import ray_cluster

SECONDS = 120
"""Long enough for most machines to get every trial to iteration 3. Whatever was reached, it is kept."""

EVERY = [1, 2, 3, 4, 5, 6]
TRIALS = 3
LAUNCHERS = ("local", "ray", "kubernetes")
TRIAL = "restore.trial"
CODE = '''
"""Restores an experiment until its window ends."""

from airflow.sdk import DAG

from airflow_tune_restore.task_group import TuneRestoreTaskGroup

with DAG(
    "{dag_id}",
    schedule=None,
    max_active_runs=1,
    params={{"prefix": "", "stale_after": 1800, "seconds": 3600}},
):
    TuneRestoreTaskGroup(
        "restore",
        prefix="{{{{ params.prefix }}}}",
        trainable="example_sweep:train",
        launcher="{launcher}",
        runtime_env={{"working_dir": {dags!r}}},
        stale_after="{{{{ params.stale_after }}}}",
        max_duration="{{{{ params.seconds }}}}",
        wait=False,
        trial_args={trial_args!r},
        env={{"EXAMPLE_SWEEP_REPAIRED": "1"}},
    )
'''


@pytest.fixture(scope="module")
def places(running, seaweed, dags, tmp_path_factory):
    """The DAGs, a Ray cluster, and a Kubernetes cluster with room for two pods."""
    template = ROOT / "docs" / "kubernetes" / "pod-template.yaml"
    for launcher in LAUNCHERS:
        pods = {"pod_template_file": str(template), "deferrable": True, "image": IMAGE}
        pods["startup_timeout_seconds"] = 600
        trial_args = {"retries": 1, **(pods if launcher == "kubernetes" else {})}
        code = CODE.format(
            dag_id=f"window_{launcher}", launcher=launcher, dags=str(dags), trial_args=trial_args
        )
        (running.dags / f"window_{launcher}.py").write_text(code)
    env = {**seaweed.env, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_TRAIN_V2_ENABLED": "0"}
    path = os.pathsep.join([str(ROOT), str(dags)])
    with ray_cluster(env, num_cpus=4) as started, kubernetes_cluster(PYTHONPATH=path) as api:
        running.connect("ray_jobs_default", started.connection)
        keys = {n: base64.b64encode(value.encode()).decode() for n, value in seaweed.env.items()}
        api.secrets[NAMESPACE, "tune-restore-storage"] = keys
        api.kubelet.slots = 2
        config = api.kubeconfig(tmp_path_factory.mktemp("kube") / "config.json")
        running.connect(
            "kubernetes_default",
            {"conn_type": "kubernetes", "extra": {"kube_config_path": config}},
        )
        yield api


@dataclass(frozen=True)
class Night:
    """The experiment of a launcher, and its DAG run whose window ends."""

    dag_id: str
    name: str
    url: str
    prefix: str
    run_id: str


@pytest.fixture(scope="module")
def nights(running, places, seaweed, gates, tmp_path_factory):
    """Begin all three at the same time."""
    begun = {}
    directory = tmp_path_factory.mktemp("windows")
    for launcher in LAUNCHERS:
        dag_id, name = f"window_{launcher}", f"paused_{launcher}"
        url = seaweed.upload(copy_sweep("killed", directory / name), f"{dag_id}/{name}")
        gates.close(name)
        prefix = f"s3://seaweed@{seaweed.bucket}/{dag_id}"
        conf = {"prefix": prefix, "stale_after": 0, "seconds": SECONDS}
        begun[launcher] = Night(dag_id, name, url, prefix, running.trigger(dag_id, conf))
    return begun


def state(seaweed, night: Night) -> list[tuple[str, int]]:
    place = f"{seaweed.bucket}/{night.dag_id}/{night.name}"
    store = seaweed.filesystem()
    return statuses_in(store.cat(max(store.glob(f"{place}/experiment_state-*.json"))))


def iterations(seaweed, night: Night) -> list[list[int]]:
    """Return the iterations in the result.json of each trial."""
    store = seaweed.filesystem()
    found = store.glob(f"{seaweed.bucket}/{night.dag_id}/{night.name}/*/result.json")
    lines = (store.cat(path).decode().splitlines() for path in found)
    return [[json.loads(line)["training_iteration"] for line in rows] for rows in lines]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_end_of_the_window_pauses_every_trial_and_fails_nothing(
    running, nights, seaweed, launcher
):
    night = nights[launcher]
    assert running.finish(night.dag_id, night.run_id) == "success", running.log_tail()
    states = running.states(night.dag_id, night.run_id)
    assert states[TRIAL] == ["skipped"] * TRIALS
    assert states["restore.commit"] == states["restore.done"] == ["success"]
    for index in range(TRIALS):
        log = running.whole_log(night.dag_id, night.run_id, TRIAL, index)
        assert "the window of this restore ended at" in log
    totals = running.xcom(night.dag_id, night.run_id, "restore.commit", "totals")
    assert totals["experiments"] == {"trials_paused": 1}
    assert (totals["trials_run"], totals["trials_paused"]) == (TRIALS, TRIALS)
    log = running.task_log(night.dag_id, night.run_id, "restore.done")
    assert "1 experiment: 1 paused; 3 trials paused" in log
    # one that was not reached in time stays as the dead driver left it
    assert {status for status, reached in state(seaweed, night) if 2 < reached < 6} <= {"PAUSED"}  # noqa: PLR2004


@pytest.fixture(scope="module")
def next_runs(running, nights, seaweed, gates):
    """Begin the next DAG runs, when the first ones have ended: `stale_after` is half an hour."""
    reached, begun, was_reached = {}, {}, {}
    for launcher, night in nights.items():
        running.finish(night.dag_id, night.run_id)
        reached[launcher] = iterations(seaweed, night)
        (output,) = running.xcom(night.dag_id, night.run_id, "restore.commit", "return_value")
        was_reached[launcher] = bool(output["state_file"])
    for launcher, night in nights.items():
        gates.open(night.name)
        # if a very slow machine reached no trial in time, the sweep is as its driver left it just now
        more = {} if was_reached[launcher] else {"stale_after": 0}
        begun[launcher] = running.trigger(night.dag_id, {"prefix": night.prefix, **more})
    return reached, begun


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_next_dag_run_goes_on_at_once_without_a_gap_or_a_double(
    running, nights, next_runs, seaweed, by_hand, launcher
):
    reached, begun = next_runs
    night, run_id = nights[launcher], begun[launcher]
    assert running.finish(night.dag_id, run_id) == "success", running.log_tail()
    assert running.states(night.dag_id, run_id)[TRIAL] == ["success"] * TRIALS
    assert state(seaweed, night) == [("TERMINATED", 6)] * 4
    assert all(rows == EVERY[: len(rows)] for rows in reached[launcher])
    assert iterations(seaweed, night) == [EVERY] * 4
    by_hand.assert_equal(night.url, seaweed.env)
