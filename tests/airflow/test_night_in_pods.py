"""The nightly DAG, set to Kubernetes, brings an experiment on S3 back with a pod a trial.

The cluster is emulated, its pods really train. It has room for two at a time, evicts one, answers 500
for a while, and the triggerer that follows them is killed. The end equals that of `Tuner.restore` on a
copy. The store's keys are known to a Secret of the cluster and to Airflow's connection alone.
"""

import base64
import json
import os
import secrets
import signal
import time

import pytest
from tests.e2e.test_ray_cluster import (
    DAG,
    TRIAL,
    assert_equal_to_theirs,
    kill_the_triggerer,
    restore_by_hand,
)
from tests.e2e.test_standalone import states, upload

from tests.support import ROOT
from tests.support.airflow.standalone import airflow
from tests.support.experiments.sweeps import copy_dags, killed_sweep
from tests.support.kubernetes.api import NAMESPACE, TOKEN
from tests.support.kubernetes.server import cluster
from tests.support.storage.servers import s3_server

TEMPLATE = ROOT / "docs" / "kubernetes" / "pod-template.yaml"
KEY, ENVIRONMENT = (f"canary-{secrets.token_hex(12)}" for _ in range(2))


@pytest.fixture(scope="module")
def s3():
    with s3_server(secret=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def dags(gate, tmp_path_factory):
    return copy_dags(tmp_path_factory.mktemp("dags"), gate)


@pytest.fixture(scope="module")
def api(s3, dags):
    """A cluster with the roles of our documentation; its image is this interpreter with our DAGs."""
    path = os.pathsep.join([str(ROOT), str(dags)])
    with cluster(PYTHONPATH=path) as api:
        keys = {name: base64.b64encode(value.encode()).decode() for name, value in s3.env.items()}
        api.secrets[NAMESPACE, "tune-restore-storage"] = keys
        api.kubelet.slots, api.kubelet.delay_seconds = 2, 2
        yield api


@pytest.fixture(scope="module")
def running(s3, api, dags, tmp_path_factory):
    config = api.kubeconfig(tmp_path_factory.mktemp("kube") / "config.json")
    kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config_path": config}}
    with airflow(
        tmp_path_factory.mktemp("airflow"),
        dags,
        AIRFLOW_CONN_SEAWEED=s3.airflow_connection,
        AIRFLOW_CONN_KUBERNETES_DEFAULT=json.dumps(kubernetes),
        AZURE_STORAGE_ACCOUNT_KEY=ENVIRONMENT,
        TUNE_RESTORE_LAUNCHER="kubernetes",
        TUNE_RESTORE_POD_TEMPLATE=str(TEMPLATE),
    ) as started:
        yield started


def test_a_night_in_pods_ends_as_tuner_restore(running, api, s3, gate, tmp_path):
    experiment = killed_sweep(tmp_path)
    for copy in ("nightly", "theirs"):
        upload(experiment, s3, f"{s3.bucket}/{copy}/slow")
    theirs = restore_by_hand(s3, tmp_path)
    run_id = running.trigger(DAG, {"prefix": f"s3://seaweed@{s3.bucket}/nightly", "stale_after": 0})
    victim = running.eventually(lambda: pod_that_reports(api))
    api.kubelet.evict(victim, grace=60)
    running.eventually(lambda: "deferred" in states(running.tasks(DAG, run_id)).get(TRIAL, []))
    triggerer = kill_the_triggerer()
    try:
        outage = api.fail(500)
        api.drop_streams()
        running.eventually(lambda: outage.hits)
        outage.until = time.monotonic() + 20
        gate.open()
        assert running.finish(DAG, run_id, 900) == "success", running.log_tail()
    finally:
        os.killpg(triggerer.pid, signal.SIGKILL)
        triggerer.wait()
    tasks = [task for task in running.tasks(DAG, run_id) if task["task_id"] == TRIAL]
    assert [task["state"] for task in tasks] == ["success"] * 4
    # one pod a trial, and one more for the one that was evicted
    trials = [pod["metadata"]["annotations"]["tune-restore/trial"] for pod in api.created]
    assert (len(set(trials)), len(trials)) == (4, 5)
    assert api.pod_names() == []
    evicted = next(p for p in api.created if p["metadata"]["name"] == victim)["metadata"]
    assert_told(running, run_id, tasks, evicted["annotations"]["tune-restore/trial"], s3)
    for task in tasks:
        assert "iteration 6, score=" in logs_of(running, run_id, task["map_index"])
    assert_no_secret_is_anywhere(running, api)
    assert theirs.wait(300) == 0
    assert_equal_to_theirs(s3)


def pod_that_reports(api) -> str | None:
    """Return a pod whose trial has reported a result."""
    for container in list(api.kubelet.containers.values()):
        if not container.over.is_set() and any(
            "::tune-restore-progress" in s for _, s in container.said
        ):
            return container.pod["metadata"]["name"]
    return None


def logs_of(running, run_id: str, index: int) -> str:
    """Return what a task has logged in all its tries, and in the triggerers that waited for it."""
    folder = f"dag_id={DAG}/run_id={run_id}/task_id={TRIAL}/map_index={index}"
    paths = sorted((running.home / "logs" / folder).rglob("*.log*"))
    return "\n".join(path.read_text() for path in paths if path.is_file())


def assert_told(running, run_id: str, tasks, trial_id: str, s3) -> None:
    """The eviction stands in the log of the try that it ended, and in the ledger."""
    index = next(t["map_index"] for t in tasks if trial_id in t["rendered_map_index"])
    log = logs_of(running, run_id, index)
    assert "was lost (node_lost): The pod was evicted" in log
    store = s3.filesystem()
    ledger = json.loads(store.cat(f"{s3.bucket}/nightly/slow/.tune_restore/ledger.json"))
    failures = {trial: history["failures"] for trial, history in ledger["trials"].items()}
    assert [failure["cause"] for failure in failures.pop(trial_id)] == ["node_lost"]
    assert not any(failures.values())


def assert_no_secret_is_anywhere(running, api) -> None:
    """Neither in pod specs, nor in what pods printed, nor in anything that Airflow keeps."""
    planted = (KEY, ENVIRONMENT, TOKEN)
    said = [line for c in api.kubelet.containers.values() for _, line in c.said]
    places = {
        "the pods": json.dumps(api.created).encode(),
        "their logs": "\n".join(said).encode(),
        **{p.as_posix(): p.read_bytes() for p in running.home.rglob("*") if p.is_file()},
    }
    assert b"tune-restore-storage" in places["the pods"]
    forms = [
        form for secret in planted for form in (secret.encode(), base64.b64encode(secret.encode()))
    ]
    held = [where for where, body in places.items() if any(form in body for form in forms)]
    assert held == []
