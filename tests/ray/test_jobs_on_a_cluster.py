"""Trials as jobs of a real Ray cluster: two nodes, authentication on, experiments on a real S3 server.

The operators run here as Airflow's workers run them; what waits in a triggerer runs in an event loop.
"""

import asyncio
import json
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)
from tests.conformance.test_against_tuner_restore import Case, _compare, _describe, _python

from airflow_tune_restore.experiments import layout
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_experiment import ContinueExperimentOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.restore.attempts import claim_attempt, read_outcome
from airflow_tune_restore.restore.request import Result
from airflow_tune_restore.restore.start import read_plan
from airflow_tune_restore.runner.ray_session import STARTS
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.cluster import ray_cluster

LOGS = (".log", ".out", ".err")
EVERY = [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def cluster(s3):
    """Two nodes with room for two trials each, and for few drivers on the head."""
    env = {**s3.env, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_TRAIN_V2_ENABLED": "0"}
    with ray_cluster(env, num_cpus=2) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(started.connection))
        while len(nodes(started)) < 2:
            assert len(started.nodes) <= STARTS
            node = started.add_node(num_cpus=2)
            eventually(lambda node=node: len(nodes(started)) == 2 or node.poll() is not None)
        yield started


@pytest.fixture
def copied_to_s3(failed_experiments, s3, request):
    """Copy an experiment to S3; the address names a connection that holds the store's keys."""
    import s3fs

    def copy(kind: str, name: str = "") -> str:
        path = f"{s3.bucket}/{request.node.name}/{name or kind}"
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.put(f"{failed_experiments[kind]}/", f"{path}/", recursive=True)
        return f"s3://seaweed@{path}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_SEAWEED", s3.airflow_connection)
        yield copy


@pytest.fixture
def copied(failed_experiments, tmp_path):
    def copy(kind: str, name: str = "") -> str:
        return str(shutil.copytree(failed_experiments[kind], tmp_path / (name or kind)))

    return copy


def eventually(condition, seconds: float = 180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def call(cluster, path: str):
    headers = {"Authorization": f"Bearer {cluster.token}"}
    request = urllib.request.Request(cluster.address + path, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def nodes(cluster) -> list[str]:
    summary = call(cluster, "/nodes?view=summary")["data"]["summary"]
    return [node["raylet"]["nodeId"] for node in summary if node["raylet"]["state"] == "ALIVE"]


def jobs_of(cluster, restore_id: str) -> list[dict]:
    found = [job for job in call(cluster, "/api/jobs/") if job["submission_id"]]
    mine = [job for job in found if (job["metadata"] or {}).get("restore_id") == restore_id]
    return sorted(mine, key=lambda job: job["start_time"])


def plan(address: str, kind: str, run_id: str, **arguments) -> tuple[list[dict], list[dict]]:
    context = make_context(run_id=run_id)
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=address,
        resume_errored=True,
        stale_after=0,
        trainable=TRAINABLES[kind],
        launcher="ray",
        **arguments,
    )
    return operator.execute(context), context["ti"].pushed["restores"]


def trial(item: dict, kind: str, **arguments) -> RestoreTrialOperator:
    env = {"TUNE_TEST_HEALED": "1", **arguments.pop("env", {})}
    return RestoreTrialOperator(
        task_id="trial",
        trial=item,
        trainable=TRAINABLES[kind],
        launcher="ray",
        poll_interval=0.5,
        runtime_env={"py_modules": [str(ROOT / "tests")]},
        env=env,
        **arguments,
    )


def wait_deferred(operator, context, *, until=None) -> tuple[object, dict]:
    """Run `execute` and then its trigger, until it fires or `until` says stop; return both."""
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    return deferred.value.trigger, run_trigger(deferred.value.trigger, until)


async def fire(trigger) -> dict:
    return await anext(event.payload async for event in trigger.run())


def run_trigger(trigger, until=None) -> dict:
    async def first_event():
        task = asyncio.create_task(fire(trigger))
        while not task.done():
            if until is not None and await asyncio.to_thread(until):
                task.cancel()
                return {}
            await asyncio.sleep(0.3)
        return await task

    return asyncio.run(asyncio.wait_for(first_event(), 240))


def run_deferred(operators, contexts) -> list[dict]:
    """Run tasks side by side: their triggers in one event loop, as in a triggerer."""
    results, waiting = {}, {}
    for i, (operator, context) in enumerate(zip(operators, contexts, strict=True)):
        try:
            results[i] = operator.execute(context)
        except TaskDeferred as deferred:
            waiting[i] = deferred.trigger

    async def wait():
        return await asyncio.wait_for(asyncio.gather(*map(fire, waiting.values())), 300)

    for i, event in zip(waiting, asyncio.run(wait()), strict=True):
        results[i] = operators[i].execute_complete(contexts[i], event)
    return [results[i] for i in range(len(operators))]


def rows(address: str) -> dict[str, list[int]]:
    """Return the iterations in result.json, by trial directory."""
    store = open_store(address.replace("seaweed@", ""))
    found = {}
    for entry in store.list_dir():
        if entry.is_dir and not entry.name.startswith("."):
            body = store.get(f"{entry.name}/result.json").decode()
            found[entry.name] = [
                json.loads(line)["training_iteration"] for line in body.splitlines()
            ]
    return found


def test_trials_are_jobs_on_both_nodes_and_wait_in_the_triggerer(cluster, copied_to_s3, s3, capfd):
    address = copied_to_s3("limited")
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
    actors = call(cluster, "/logical/actors")["data"]["actors"].values()
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
    address = copied("errored")
    items, restores = plan(address, "errored", "reattach")
    restore_id, store = restores[0]["restore_id"], open_store(address)
    # a worker died between the claim and the job
    claim_attempt(
        store,
        read_plan(store, restore_id),
        items[0]["trial_id"],
        trainable=TRAINABLES["errored"],
        address="auto",
        reports=True,
    )
    with pytest.raises(TaskDeferred) as first:
        trial(items[0], "errored", env=gate.env).execute(make_context())
    # and another one while it waited; there is nothing in Airflow's state store
    with pytest.raises(TaskDeferred) as second:
        trial(items[0], "errored", env=gate.env).execute(make_context(try_number=2))
    gate.open()
    assert first.value.trigger.submission_id == second.value.trigger.submission_id
    assert second.value.trigger.attempt == 1
    event = run_trigger(second.value.trigger)
    done = trial(items[0], "errored").execute_complete(make_context(try_number=2), event)
    assert (done["attempt"], done["iteration"]) == (1, 6)
    assert len(jobs_of(cluster, restore_id)) == 1
    assert EVERY in rows(address).values()


def test_a_killed_task_stops_its_job_which_saves_a_snapshot(cluster, copied, gate):
    address = copied("errored")
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
    outcome = read_outcome(store, restore_id, trial_id, 1)
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)
    done = trial(items[0], "errored").execute_complete(make_context(try_number=2), event)
    assert done["iteration"] == 6
    assert [job["status"] for job in jobs_of(cluster, restore_id)] == ["STOPPED", "SUCCEEDED"]
    assert EVERY in rows(address).values()


def test_a_worker_that_is_killed_while_it_follows_stops_the_job(cluster, copied, gate):
    address = copied("errored")
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
    thread.join(60)
    # had Airflow not killed the process, it would have gone on with the next attempt
    assert len(jobs_of(cluster, restore_id)) <= 2


def test_a_trainable_that_does_not_fit_is_refused_by_the_runner(cluster, copied):
    address = copied("errored")
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
        ({"password": "wrong" * 10}, "refuses the token"),
        ({"password": ""}, "asks for a token, and the connection has none"),
        ({"host": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"host": f"http://{cluster.gcs}"}, "does not speak HTTP"),
        ({"host": cluster.address.replace("http", "https")}, "speaks no TLS"),
        ({"host": "ray://127.0.0.1:10001"}, "speaks HTTP"),
        ({"host": ""}, "has no host"),
        ({"extra": {"runtime_env": "[1]"}}, "is no JSON object"),
    ]:
        works, said = test(**changes)
        assert not works
        assert words in said
    assert cluster.token not in test(host="http://127.0.0.1:9")[1]


def test_one_job_runs_coupled_trials_and_ends_as_tuner_restore(cluster, copied, tmp_path):
    flags = {"resume_errored": True}
    kinds = ["asha", "pbt", "hyperband"]
    theirs = {kind: copied(kind, f"theirs-{kind}") for kind in kinds}
    cases = [{"uri": theirs[kind], "trainable": TRAINABLES[kind], "flags": flags} for kind in kinds]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    _python(["-m", "tests.support.ray.tuner_restore", "restore", str(tmp_path / "cases.json")])
    ours = {}
    for kind in kinds:
        ours[kind] = copied(kind)
        items, restores = plan(ours[kind], kind, f"coupled-{kind}")
        contexts = [make_context(map_index=i) for i in range(len(items))]
        run_deferred([trial(item, kind) for item in items], contexts)
        assert [len(jobs_of(cluster, r["restore_id"])) for r in restores] == [1]
        CommitRestoreOperator(task_id="commit", restores=restores).execute(make_context())
    described = _describe([*ours.values(), *theirs.values()])
    for i, kind in enumerate(kinds):
        case = Case(kind, kind, ("--resume-errored",), flags)
        _compare(described[i], described[i + len(kinds)], case)


def test_a_deferred_task_that_is_killed_stops_its_trial_alone(cluster, copied, gate):
    address = copied("limited")
    items, restores = plan(address, "limited", "one-stopped", strategy="whole_experiment")
    restore_id, store = restores[0]["restore_id"], open_store(address)
    tasks = [trial(item, "limited", env=gate.env) for item in items]
    contexts = [make_context(map_index=i) for i in range(len(items))]
    triggers = []
    for task, context in zip(tasks, contexts, strict=True):
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context)
        triggers.append(deferred.value.trigger)

    def has_progress(item: dict) -> bool:
        return Path(address, layout.progress_key(restore_id, item["trial_id"], 1)).exists()

    async def kill_one() -> tuple[int, list[dict]]:
        waiting = [asyncio.create_task(fire(trigger)) for trigger in triggers]
        while not (running := [i for i, item in enumerate(items) if has_progress(item)]):
            await asyncio.sleep(0.3)
        waiting[running[0]].cancel()
        await triggers[running[0]].on_kill()
        while read_outcome(store, restore_id, items[running[0]]["trial_id"]) is None:
            await asyncio.sleep(0.3)
        gate.open()
        del waiting[running[0]]
        return running[0], await asyncio.gather(*waiting)

    killed, events = asyncio.run(asyncio.wait_for(kill_one(), 300))
    others = [i for i in range(len(items)) if i != killed]
    for i, event in zip(others, events, strict=True):
        assert tasks[i].execute_complete(contexts[i], event)["iteration"] == 6
    outcome = read_outcome(store, restore_id, items[killed]["trial_id"])
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)
    eventually(lambda: [j["status"] for j in jobs_of(cluster, restore_id)] == ["SUCCEEDED"])


@pytest.mark.parametrize(("kind", "stopped_at"), [("hopeless", 2), ("median", 2)])
def test_a_scheduler_that_remembers_stops_what_ray_alone_trains_to_the_end(
    cluster, copied, kind, stopped_at
):
    ends = {}
    for remembers in (False, True):
        address = copied(kind, f"{kind}-{remembers}")
        items, _ = plan(
            address,
            kind,
            f"{kind}-{remembers}",
            remember_scheduler=remembers,
            strategy="whole_experiment",
        )
        done = trial(items[0], kind, deferrable=False).execute(make_context())
        ends[remembers] = done["iteration"]
    assert ends == {False: 6, True: stopped_at}


def test_samples_that_are_left_are_drawn_by_a_job(cluster, copied):
    address = copied("left")
    items, restores = plan(address, "left", "samples")
    trial(items[0], "left", deferrable=False).execute(make_context())
    (summary,) = CommitRestoreOperator(task_id="commit", restores=restores).execute(
        make_context(run_id="samples")
    )
    operator = ContinueExperimentOperator(
        task_id="samples",
        experiment=summary,
        trainable=TRAINABLES["left"],
        launcher="ray",
        poll_interval=0.5,
        runtime_env={"py_modules": [str(ROOT / "tests")]},
        env={"TUNE_TEST_HEALED": "1"},
    )
    context = make_context(run_id="samples")
    _, event = wait_deferred(operator, context)
    done = operator.execute_complete(context, event)
    assert done["samples_left"] == 0
    assert sorted(rows(address).values()) == [EVERY] * 4


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
    address = copied("errored")
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
    thread.join(180)
    assert restarted.is_set()
    assert event["is_lost"]
    with pytest.raises(AirflowException, match="does not know the job any more"):
        trial(items[0], "errored").execute_complete(make_context(), event)
    _, event = wait_deferred(trial(items[0], "errored"), make_context(try_number=2))
    done = trial(items[0], "errored").execute_complete(make_context(try_number=2), event)
    assert (done["attempt"], done["iteration"]) == (2, 6)
    assert EVERY in rows(address).values()
