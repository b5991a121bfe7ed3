"""Trials as jobs of a Ray cluster: operators, what waits in a triggerer, what the cluster tells."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.runner.ray_session import STARTS
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.airflow.context import make_context
from tests.support.airflow.names import TaskDeferred
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.cluster import RayCluster, ray_cluster
from tests.support.waiting import PATIENCE_SECONDS, eventually


@contextlib.contextmanager
def jobs_cluster(nodes: int, **env: str) -> Iterator[RayCluster]:
    """Start a cluster with room for two trials on each node; Airflow's connection leads to it."""
    env = {**env, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_TRAIN_V2_ENABLED": "0"}
    with ray_cluster(env, num_cpus=2) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(started.connection))
        eventually(lambda: nodes_of(started))
        while (living := len(nodes_of(started))) < nodes:
            assert len(started.nodes) < nodes + STARTS
            _await_node(started, started.add_node(num_cpus=2), living)
        yield started


def _await_node(cluster: RayCluster, node: "subprocess.Popen[bytes]", before: int) -> None:
    """Wait until the node is one more than before, or has ended: not every Ray starts."""
    eventually(lambda: len(nodes_of(cluster)) > before or node.poll() is not None)


def nodes_of(cluster) -> list[str]:
    summary = cluster.call("/nodes?view=summary")["data"]["summary"]
    return [node["raylet"]["nodeId"] for node in summary if node["raylet"]["state"] == "ALIVE"]


def jobs_of(cluster, restore_id: str) -> list[dict]:
    found = [job for job in cluster.call("/api/jobs/") if job["submission_id"]]
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
    return operator.execute(context), context["ti"].pushed["outcomes"]


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


def attach_twice(address: str, item: dict, kind: str, **arguments) -> list:
    """Return the triggers of two tries of a task; before them, a worker died between claim and job.

    The first try's worker dies while it waits; nothing is in Airflow's state store.
    """
    store = open_store(address)
    claim_attempt(
        store,
        read_plan(store, item["restore_id"]),
        item["trial_id"],
        RunnerSettings(trainable=TRAINABLES[kind], address="auto", reports=True),
    )
    triggers = []
    for try_number in (1, 2):
        with pytest.raises(TaskDeferred) as deferred:
            trial(item, kind, **arguments).execute(make_context(try_number=try_number))
        triggers.append(deferred.value.trigger)
    return triggers


def wait_deferred(operator, context, *, until=None) -> tuple[object, dict]:
    """Run `execute` and then its trigger, until it fires or `until` says stop; return both."""
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    return deferred.value.trigger, run_trigger(deferred.value.trigger, until)


async def fire(trigger) -> dict:
    return await anext(event.payload async for event in trigger.run())


def run_trigger(trigger: Any, until: Callable[[], object] | None = None) -> dict:
    async def first_event() -> dict:
        task = asyncio.create_task(fire(trigger))
        while not task.done():
            if until is not None and await asyncio.to_thread(until):
                task.cancel()
                return {}
            await asyncio.sleep(0.3)
        return await task

    return asyncio.run(asyncio.wait_for(first_event(), PATIENCE_SECONDS))


def run_deferred(operators, contexts) -> list[dict]:
    """Run tasks side by side: their triggers in one event loop, as in a triggerer."""
    results, waiting = {}, {}
    for i, (operator, context) in enumerate(zip(operators, contexts, strict=True)):
        try:
            results[i] = operator.execute(context)
        except TaskDeferred as deferred:
            waiting[i] = deferred.trigger

    async def wait():
        return await asyncio.wait_for(
            asyncio.gather(*map(fire, waiting.values())), PATIENCE_SECONDS
        )

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
