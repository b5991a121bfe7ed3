"""The nightly DAG, set to Kubernetes, brings an experiment on S3 back with a pod a trial.

The cluster is emulated, its pods really train. It has room for two at a time, evicts one, answers 500
for a while, and the triggerer that follows them is killed. The end equals that of `Tuner.restore` on a
copy. The store's keys are known to a Secret of the cluster and to Airflow's connection alone. The sweep's
own recipe names the image, the only one that the cluster can pull.
"""

import base64
import json
import os
import time

import pytest

from tests.support import ROOT
from tests.support.airflow import canary
from tests.support.experiments.sweeps import copy_sweep
from tests.support.kubernetes.api import NAMESPACE, TOKEN
from tests.support.kubernetes.server import cluster

DAG = "nightly_in_pods"  # dags/nightly_recovery.py with TUNE_RESTORE_LAUNCHER=kubernetes
TRIAL = "restore.trial"
NAME = "in_pods"
IMAGE = "registry/team:1"


@pytest.fixture(scope="module")
def api(running, seaweed, dags, tmp_path_factory):
    """A cluster with the roles of our documentation; its image is this interpreter with our DAGs."""
    path = os.pathsep.join([str(ROOT), str(dags)])
    with cluster(PYTHONPATH=path) as api:
        keys = {n: base64.b64encode(value.encode()).decode() for n, value in seaweed.env.items()}
        api.secrets[NAMESPACE, "tune-restore-storage"] = keys
        api.kubelet.slots, api.kubelet.delay_seconds = 2, 2
        (variables,) = api.kubelet.images.values()
        api.kubelet.images = {IMAGE: variables}
        config = api.kubeconfig(tmp_path_factory.mktemp("kube") / "config.json")
        kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config_path": config}}
        running.connect("kubernetes_default", kubernetes)
        yield api


def test_a_night_in_pods_ends_as_tuner_restore(
    running, api, seaweed, canaries, gates, by_hand, tmp_path
):
    place = f"night_in_pods/{NAME}"
    sweep = copy_sweep("killed", tmp_path / NAME)
    (sweep / ".tune_restore").mkdir()
    recipe = {"schema": 1, "trainable": "example_sweep:train", "image": IMAGE}
    (sweep / ".tune_restore" / "recipe.json").write_text(json.dumps(recipe))
    ours = seaweed.upload(sweep, place)
    gates.close(NAME)
    prefix = f"s3://seaweed@{seaweed.bucket}/night_in_pods"
    run_id = running.trigger(DAG, {"prefix": prefix, "stale_after": 0})
    victim = running.eventually(lambda: pod_that_reports(api))
    api.kubelet.evict(victim, grace=600)
    running.eventually(lambda: "deferred" in running.states(DAG, run_id).get(TRIAL, []))
    running.restart_triggerer()
    outage = api.fail(500)
    api.drop_streams()
    running.eventually(lambda: outage.hits)
    outage.until = time.monotonic() + 5
    gates.open(NAME)
    assert running.finish(DAG, run_id) == "success", running.log_tail()
    tasks = [task for task in running.tasks(DAG, run_id) if task["task_id"] == TRIAL]
    assert [task["state"] for task in tasks] == ["success"] * 3
    # one pod a trial, and one more for the one that was evicted
    trials = [pod["metadata"]["annotations"]["tune-restore/trial"] for pod in api.created]
    assert (len(set(trials)), len(trials)) == (3, 4)
    assert {pod["spec"]["containers"][0]["image"] for pod in api.created} == {IMAGE}
    assert api.pod_names() == []
    evicted = next(p for p in api.created if p["metadata"]["name"] == victim)["metadata"]
    trial_id = evicted["annotations"]["tune-restore/trial"]
    for task in tasks:
        log = running.whole_log(DAG, run_id, TRIAL, task["map_index"])
        assert "iteration 6, score=" in log
        if trial_id in task["rendered_map_index"]:  # told in the log of the try that it ended
            assert "was lost (node_lost), in attempt 1: The pod was evicted" in log
    assert_entered(seaweed, place, trial_id)
    # neither in pod specs, nor in what pods printed, nor in anything that is kept
    said = [line for life in api.kubelet.pods.values() for _, line in life.said]
    places = {
        "the pods": json.dumps(api.created).encode(),
        "their logs": "\n".join(said).encode(),
        **canary.objects(seaweed, f"{seaweed.bucket}/{place}"),
        **canary.values(running.home / "airflow.db"),
        **canary.files(running.home),
    }
    assert b"tune-restore-storage" in places["the pods"]
    assert canary.leaks(places, (*canaries.all, TOKEN)) == []
    by_hand.assert_equal(ours, seaweed.env)


def pod_that_reports(api) -> str | None:
    """Return a pod whose trial has reported a result."""
    for life in list(api.kubelet.pods.values()):
        if not life.over.is_set() and any("::tune-restore-progress" in s for _, s in life.said):
            return life.name
    return None


def assert_entered(s3, place: str, trial_id: str) -> None:
    """The eviction stands in the ledger, and nothing else."""
    ledger = json.loads(s3.filesystem().cat(f"{s3.bucket}/{place}/.tune_restore/ledger.json"))
    failures = {trial: history["failures"] for trial, history in ledger["trials"].items()}
    assert [failure["cause"] for failure in failures.pop(trial_id)] == ["node_lost"]
    assert not any(failures.values())
