"""All trials of an experiment in one job of a real Ray cluster, and samples that a job draws."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.airflow.context import make_context
from tests.support.airflow.names import TaskDeferred
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.compared import RESUMED, Case, compare
from tests.support.ray.jobs import (
    fire,
    jobs_of,
    plan,
    rows,
    run_deferred,
    trial,
    wait_deferred,
)
from tests.support.ray.tuner_restore import ask_ray
from tests.support.waiting import PATIENCE_SECONDS, eventually

EVERY = [1, 2, 3, 4, 5, 6]


def test_one_job_runs_coupled_trials_and_ends_as_tuner_restore(cluster, copied, tmp_path):
    kinds = ["asha", "pbt", "hyperband"]
    theirs = {kind: str(copied(kind, f"theirs-{kind}")) for kind in kinds}
    cases = [
        {"uri": theirs[kind], "trainable": TRAINABLES[kind], "flags": RESUMED} for kind in kinds
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    ask_ray("restore", str(tmp_path / "cases.json"), TUNE_TEST_HEALED="1")
    ours = {}
    for kind in kinds:
        ours[kind] = str(copied(kind))
        items, restores = plan(ours[kind], kind, f"coupled-{kind}")
        contexts = [make_context(map_index=i) for i in range(len(items))]
        run_deferred([trial(item, kind) for item in items], contexts)
        assert [len(jobs_of(cluster, r["restore_id"])) for r in restores] == [1]
        CommitRestoreOperator(task_id="commit", outcomes=restores).execute(make_context())
    described = ask_ray("describe", *ours.values(), *theirs.values())
    for i, kind in enumerate(kinds):
        case = Case(kind, kind, RESUMED)
        compare(described[i], described[i + len(kinds)], case)


def test_a_deferred_task_that_is_killed_stops_its_trial_alone(cluster, copied, gate):
    address = str(copied("limited"))
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
        while AttemptRecords(store, restore_id, items[running[0]]["trial_id"]).outcome() is None:
            await asyncio.sleep(0.3)
        gate.open()
        del waiting[running[0]]
        return running[0], await asyncio.gather(*waiting)

    killed, events = asyncio.run(asyncio.wait_for(kill_one(), PATIENCE_SECONDS))
    others = [i for i in range(len(items)) if i != killed]
    for i, event in zip(others, events, strict=True):
        assert tasks[i].execute_complete(contexts[i], event)["iteration"] == 6
    outcome = AttemptRecords(store, restore_id, items[killed]["trial_id"]).outcome()
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)
    eventually(lambda: [j["status"] for j in jobs_of(cluster, restore_id)] == ["SUCCEEDED"])


@pytest.mark.parametrize(("kind", "stopped_at"), [("hopeless", 2), ("median", 2)])
def test_a_scheduler_that_remembers_stops_what_ray_alone_trains_to_the_end(
    cluster, copied, kind, stopped_at
):
    ends = {}
    for remembers in (False, True):
        address = str(copied(kind, f"{kind}-{remembers}"))
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
    address = str(copied("left"))
    items, restores = plan(address, "left", "samples")
    trial(items[0], "left", deferrable=False).execute(make_context())
    (summary,) = CommitRestoreOperator(task_id="commit", outcomes=restores).execute(
        make_context(run_id="samples")
    )
    operator = ContinueSearchOperator(
        task_id="continue_search",
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
