"""Trials as jobs of a real Ray cluster: two nodes, authentication on, experiments on a real S3 server.

The operators run here as Airflow's workers run them; what waits in a triggerer runs in an event loop.
"""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from tests.support.airflow.context import make_context
from tests.support.airflow.names import TaskDeferred
from tests.support.experiments.built import make_experiment, make_row
from tests.support.ray.jobs import (
    attach_twice,
    jobs_of,
    plan,
    rows,
    run_deferred,
    run_trigger,
    trial,
    wait_deferred,
)
from tests.support.waiting import PATIENCE_SECONDS, eventually

LOGS = (".log", ".out", ".err")
EVERY = [1, 2, 3, 4, 5, 6]


def test_trials_are_jobs_on_both_nodes_and_wait_in_the_triggerer(
    cluster, copied_to_s3, s3, capfd, monkeypatch
):
    # the address names a connection that holds the store's keys
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", s3.airflow_connection)
    address = copied_to_s3("limited").replace("s3://", "s3://seaweed@")
    items, restores = plan(address, "limited", "both-nodes", strategy="per_trial")
    assert len(items) == 3
    contexts = [make_context(map_index=i) for i in range(3)]
    operators = [
        trial(item, "limited", env={"TUNE_TEST_STEP_SECONDS": "4"}, entrypoint_num_cpus=0.5)
        for item in items
    ]
    capfd.readouterr()
    results = run_deferred(operators, contexts)
    shown = capfd.readouterr().out
    assert shown.count("iteration 6, score=") == 3
    assert [result["iteration"] for result in results] == [6, 6, 6]
    assert set(map(tuple, rows(address).values())) == {tuple(EVERY)}
    jobs = jobs_of(cluster, restores[0]["restore_id"])
    assert [job["status"] for job in jobs] == ["SUCCEEDED"] * 3
    link = contexts[0]["ti"].pushed["ray_job_url"]
    assert link == f"{cluster.address}/#/jobs/{jobs[0]['submission_id']}"
    # drivers and trials were on both nodes
    assert len({job["driver_node_id"] for job in jobs}) == 2
    ids = {job["job_id"] for job in jobs}
    actors = cluster.call("/logical/actors")["data"]["actors"].values()
    ran_on = {
        actor["address"]["nodeId"]
        for actor in actors
        if actor["jobId"] in ids and "Func" in actor["actorClass"]
    }
    assert len(ran_on) == 2, actors
    # keys of the store stay where they are
    metadata = json.dumps(jobs)
    assert s3.endpoint in metadata
    assert s3.env["AWS_SECRET_ACCESS_KEY"] not in metadata
    assert cluster.token not in metadata
    key = s3.env["AWS_SECRET_ACCESS_KEY"].encode()
    logs = [path for path in cluster.scratch.rglob("*") if path.suffix in LOGS]
    assert len(logs) > 10
    assert [path.name for path in logs if key in path.read_bytes()] == []


def test_a_retry_attaches_to_the_living_job_and_to_one_that_was_claimed(cluster, copied, gate):
    address = str(copied("errored"))
    items, restores = plan(address, "errored", "reattach")
    restore_id = restores[0]["restore_id"]
    first, second = attach_twice(address, items[0], "errored", env=gate.env)
    gate.open()
    assert first.submission_id == second.submission_id
    assert second.attempt == 1
    event = run_trigger(second)
    done = trial(items[0], "errored").execute_complete(make_context(try_number=2), event)
    assert (done["attempt"], done["iteration"]) == (1, 6)
    assert len(jobs_of(cluster, restore_id)) == 1
    assert EVERY in rows(address).values()


def test_a_killed_task_stops_its_job_which_saves_a_snapshot(cluster, copied, gate):
    address = str(copied("errored"))
    items, restores = plan(address, "errored", "killed")
    restore_id, store = restores[0]["restore_id"], open_store(address)
    trial_id = items[0]["trial_id"]
    progress = Path(address, layout.progress_key(restore_id, trial_id, 1))
    trigger, _ = wait_deferred(
        trial(items[0], "errored", env=gate.env), make_context(), until=progress.exists
    )
    asyncio.run(trigger.on_kill())
    # the task is cleared at once: it waits for the snapshot, and goes on from there
    trigger, event = wait_deferred(trial(items[0], "errored"), make_context(try_number=2))
    assert trigger.attempt == 2
    outcome = AttemptRecords(store, restore_id, trial_id).outcome(1)
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)
    done = trial(items[0], "errored").execute_complete(make_context(try_number=2), event)
    assert done["iteration"] == 6
    assert [job["status"] for job in jobs_of(cluster, restore_id)] == ["STOPPED", "SUCCEEDED"]
    assert EVERY in rows(address).values()


def test_a_worker_that_is_killed_while_it_follows_stops_the_job(cluster, copied, gate):
    address = str(copied("errored"))
    items, restores = plan(address, "errored", "followed")
    restore_id, trial_id = restores[0]["restore_id"], items[0]["trial_id"]
    operator = trial(items[0], "errored", deferrable=False, env=gate.env)
    failed = []

    def follow():
        try:
            operator.execute(make_context())
        except AirflowException as error:
            failed.append(str(error))

    thread = threading.Thread(target=follow)
    thread.start()
    progress = Path(address, layout.progress_key(restore_id, trial_id, 1))
    eventually(progress.exists)
    operator.on_kill()
    operator.on_kill()
    eventually(lambda: jobs_of(cluster, restore_id)[0]["status"] == "STOPPED")
    gate.open()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    # had Airflow not killed the process, it would have gone on with the next attempt
    assert len(jobs_of(cluster, restore_id)) <= 2


def test_a_trainable_that_does_not_fit_is_refused_by_the_runner(cluster, copied):
    address = str(copied("errored"))
    items, _ = plan(address, "errored", "refused")
    operator = trial(items[0], "errored", deferrable=False)
    operator.trainable = "tests.trainables:other"
    with pytest.raises(AirflowFailException, match="was not started"):
        operator.execute(make_context())


def test_a_connection_says_what_is_wrong_with_it(cluster, monkeypatch):
    def test(**changes):
        monkeypatch.setenv("AIRFLOW_CONN_RAY_OTHER", json.dumps({**cluster.connection, **changes}))
        return RayJobsHook("ray_other").test_connection()

    assert test()[0] is True
    assert "runs Ray 2." in test()[1]
    for changes, words in [
        ({"password": "wrong" * 10}, "rejected the token"),
        ({"password": ""}, "requires a token, and none was given"),
        ({"host": "http://127.0.0.1:9"}, "not reachable"),
        ({"host": f"http://{cluster.gcs}"}, "did not return a valid HTTP response"),
        ({"host": cluster.address.replace("http", "https")}, "does not use TLS"),
        ({"host": "ray://127.0.0.1:10001"}, "uses HTTP"),
        ({"host": ""}, "has no host"),
        ({"extra": {"runtime_env": "[1]"}}, "is not a JSON object"),
    ]:
        works, said = test(**changes)
        assert not works
        assert words in said
    assert cluster.token not in test(host="http://127.0.0.1:9")[1]


def test_what_looks_dead_lives_while_a_job_of_the_cluster_names_it(cluster, tmp_path):
    make_experiment(tmp_path / "sweep-with-a-driver", [make_row(status="ERROR")])

    def find():
        sensor = FailedTuneExperimentSensor(
            task_id="find",
            prefix=str(tmp_path),
            stale_after=0,
            ray_conn_id="ray_jobs_default",
            wait=False,
        )
        return [item["name"] for item in sensor.execute(make_context())]

    jobs = RayJobsHook().jobs()
    command = "python -c 'import time; time.sleep(600)' --name=sweep-with-a-driver"
    jobs.submit({"submission_id": "the-driver", "entrypoint": command})
    with pytest.raises(AirflowSkipException):
        find()
    address = str(tmp_path / "sweep-with-a-driver")
    asks = {"ray_conn_id": "ray_jobs_default"}
    with pytest.raises(AirflowSkipException):  # known by its address, it is asked about, too
        plan(address, "errored", "lives", **asks)
    jobs.stop("the-driver")
    eventually(lambda: jobs.find("the-driver").is_over)
    assert find() == ["sweep-with-a-driver"]
    items, _ = plan(address, "errored", "lives", **asks)
    assert len(items) == 1


def test_a_job_that_went_with_its_head_node_is_noticed_and_goes_on(cluster, copied, gate):
    """The last test of this file: it starts the head node anew."""
    address = str(copied("errored"))
    items, restores = plan(address, "errored", "head-lost")
    restore_id, trial_id = restores[0]["restore_id"], items[0]["trial_id"]
    progress = Path(address, layout.progress_key(restore_id, trial_id, 1))
    with pytest.raises(TaskDeferred) as deferred:
        trial(items[0], "errored", env=gate.env).execute(make_context())
    restarted = threading.Event()

    def restart():
        eventually(progress.exists)
        cluster.end()
        cluster.start_head(num_cpus=2)
        restarted.set()

    thread = threading.Thread(target=restart)
    thread.start()
    event = run_trigger(deferred.value.trigger)
    thread.join(PATIENCE_SECONDS)
    assert restarted.is_set()
    assert event["is_lost"]
    with pytest.raises(AirflowException, match="no longer has the job"):
        trial(items[0], "errored").execute_complete(make_context(), event)
    _, event = wait_deferred(trial(items[0], "errored"), make_context(try_number=2))
    done = trial(items[0], "errored").execute_complete(make_context(try_number=2), event)
    assert (done["attempt"], done["iteration"]) == (2, 6)
    assert EVERY in rows(address).values()
