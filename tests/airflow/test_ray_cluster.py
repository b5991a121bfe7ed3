"""The nightly DAG brings an experiment on S3 back through a real Ray cluster, with what a night brings.

Authentication is on, the triggerer and a worker are killed, and a job is cancelled in the Ray dashboard.
The end equals that of `Tuner.restore` on a copy. Ray's token is known to the connection alone, the
store's keys to the cluster and to Airflow's connection.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tests.e2e.test_standalone import states, upload

from tests.support import ROOT
from tests.support.airflow.standalone import airflow
from tests.support.experiments.failed import environment
from tests.support.experiments.sweeps import copy_dags, killed_sweep
from tests.support.ray.cluster import ray_cluster
from tests.support.storage.servers import s3_server

DAG = "nightly_recovery"
TRIAL = "restore.trial"


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(s3):
    """Four CPUs, so that all four trials run at once; keys of the store in its environment."""
    env = {**s3.env, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_TRAIN_V2_ENABLED": "0"}
    with ray_cluster(env, num_cpus=4) as started:
        yield started


@pytest.fixture(scope="module")
def running(s3, cluster, gate, tmp_path_factory):
    with airflow(
        tmp_path_factory.mktemp("airflow"),
        copy_dags(tmp_path_factory.mktemp("dags"), gate),
        AIRFLOW_CONN_SEAWEED=s3.airflow_connection,
        AIRFLOW_CONN_RAY_JOBS_DEFAULT=json.dumps(cluster.connection),
        TUNE_RESTORE_LAUNCHER="ray",
    ) as started:
        yield started


def test_a_night_on_a_cluster_ends_as_tuner_restore(running, cluster, s3, gate, tmp_path):
    experiment = killed_sweep(tmp_path)
    for copy in ("nightly", "theirs"):
        upload(experiment, s3, f"{s3.bucket}/{copy}/slow")
    theirs = restore_by_hand(s3, tmp_path)
    run_id = running.trigger(DAG, {"prefix": f"s3://seaweed@{s3.bucket}/nightly", "stale_after": 0})
    killed = kill_a_worker(running, run_id)
    running.eventually(lambda: len(jobs(cluster, "RUNNING")) >= 2)
    triggerer = kill_the_triggerer()
    try:
        cancelled = cancel_a_job(cluster, running)
        gate.open()
        assert running.finish(DAG, run_id) == "success", running.log_tail()
    finally:
        os.killpg(triggerer.pid, signal.SIGKILL)
        triggerer.wait()
    tasks = running.tasks(DAG, run_id)
    assert states(tasks)[TRIAL] == ["success"] * 4
    tries = {task["map_index"]: task["try_number"] for task in tasks if task["task_id"] == TRIAL}
    assert tries[killed] > 1
    # a job was cancelled and went on in another one; no trial ever had two at once
    seen = jobs(cluster)
    trial_id = seen[cancelled]["metadata"]["trial_id"]
    assert [j["status"] for j in seen.values() if j["metadata"]["trial_id"] == trial_id] == [
        "STOPPED",
        "SUCCEEDED",
    ]
    assert len({j["metadata"]["trial_id"] for j in seen.values()}) == 4
    for index in tries:
        assert "iteration 6, score=" in whole_log(running, run_id, index)
    secrets = [s3.env["AWS_SECRET_ACCESS_KEY"], cluster.token]
    assert not any(secret in json.dumps(seen) for secret in secrets)
    files = [path for path in running.home.rglob("*") if path.is_file()]
    held = [path.name for path in files for s in secrets if s.encode() in path.read_bytes()]
    assert held == []
    assert theirs.wait(300) == 0
    assert_equal_to_theirs(s3)


def whole_log(running, run_id: str, index: int) -> str:
    """Return what all tries of a trial have logged, in workers and in triggerers (files of their own)."""
    folder = running.home / "logs" / f"dag_id={DAG}" / f"run_id={run_id}" / f"task_id={TRIAL}"
    files = sorted((folder / f"map_index={index}").glob("attempt=*"))
    return "\n".join(path.read_text() for path in files)


def kill_a_worker(running, run_id: str) -> int:
    """Kill the process of a trial's task with `kill -9`, and return its map index."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for task in running.tasks(DAG, run_id):
            if task["task_id"] == TRIAL and task["state"] == "running" and task["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(task["pid"], signal.SIGKILL)
                    return task["map_index"]
        time.sleep(0.05)
    raise TimeoutError(running.log_tail())


def kill_the_triggerer() -> "subprocess.Popen[bytes]":
    """Kill it with `kill -9` and start another one, as its supervisor would."""
    found = [pid for pid in children_of_tests() if command_of(pid)[-1:] == ["triggerer"]]
    pairs = Path(f"/proc/{found[0]}/environ").read_text().split("\0")
    env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    for pid in found:  # it and the process in which the triggers run
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(3)
    with Path(env["AIRFLOW_HOME"], "triggerer.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "airflow", "triggerer"],
            env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def cancel_a_job(cluster, running) -> str:
    """Cancel a job as the dashboard's button does, once its trial has got somewhere."""
    victim = running.eventually(
        lambda: next((name for name, log in logs(cluster).items() if "iteration" in log), None)
    )
    call(cluster, f"/api/jobs/{victim}/stop", "POST")
    running.eventually(lambda: victim in jobs(cluster, "STOPPED"))
    return victim


def python_with_ray(s3, *arguments: str) -> dict:
    """Return how tests.support.ray.tuner_restore is started where the sweep's code can be imported."""
    env = environment(EXAMPLE_SWEEP_REPAIRED="1", **s3.env)
    env["PYTHONPATH"] += os.pathsep + str(ROOT / "dags")
    command = [sys.executable, "-m", "tests.support.ray.tuner_restore", *arguments]
    return {"args": command, "env": env, "cwd": ROOT, "stderr": subprocess.DEVNULL}


def restore_by_hand(s3, directory: Path) -> "subprocess.Popen[bytes]":
    """Begin what Ray's users do: `Tuner.restore(...).fit()`."""
    case = {"uri": f"{s3.url}/theirs/slow", "trainable": "example_sweep:train"}
    cases = directory / "cases.json"
    cases.write_text(json.dumps([{**case, "flags": {"resume_errored": True}}]))
    return subprocess.Popen(**python_with_ray(s3, "restore", str(cases)), stdout=subprocess.DEVNULL)


def assert_equal_to_theirs(s3) -> None:
    uris = [f"{s3.url}/{copy}/slow" for copy in ("nightly", "theirs")]
    done = subprocess.run(
        **python_with_ray(s3, "describe", *uris), stdout=subprocess.PIPE, text=True, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("DESCRIBED ")]
    ours, theirs = json.loads(line.removeprefix("DESCRIBED "))
    for mine, his in zip(ours["trials"], theirs["trials"], strict=True):
        for trial in (mine, his):  # a trial that was stopped numbers its checkpoints on
            trial["last_result"].pop("checkpoint_dir_name")
        for name in ("trial_id", "dir", "config", "status", "last_result", "metric", "tag"):
            assert mine[name] == his[name], name
        numbers = [row["training_iteration"] for row in mine["rows"]]
        assert sorted(set(numbers)) == [1, 2, 3, 4, 5, 6]


def call(cluster, path: str, method: str = "GET"):
    headers = {"Authorization": f"Bearer {cluster.token}"}
    request = urllib.request.Request(cluster.address + path, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def jobs(cluster, status: str = "") -> dict[str, dict]:
    """Return jobs by submission id, oldest first."""
    found = [job for job in call(cluster, "/api/jobs/") if job["submission_id"]]
    found.sort(key=lambda job: job["start_time"])
    return {j["submission_id"]: j for j in found if status in ("", j["status"])}


def logs(cluster) -> dict[str, str]:
    return {
        name: call(cluster, f"/api/jobs/{name}/logs")["logs"] for name in jobs(cluster, "RUNNING")
    }


def children_of_tests() -> list[int]:
    """Return the ids of this process's descendants."""
    found, size = {os.getpid()}, 0
    every = {int(entry.name): parent_of(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
    while len(found) > size:
        size = len(found)
        found |= {pid for pid, parent in every.items() if parent in found}
    return sorted(found - {os.getpid()})


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []
