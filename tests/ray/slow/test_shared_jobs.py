"""Trials that share a driver as one job of a real Ray cluster, each with a task of its own."""

import asyncio
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.context import make_context
from tests.support.airflow.names import TaskDeferred
from tests.support.ray.jobs import (
    fire,
    jobs_cluster,
    jobs_of,
    plan,
    rows,
    trial,
    wait_deferred,
)
from tests.support.waiting import PATIENCE_SECONDS

EVERY = [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def cluster():
    with jobs_cluster(1) as started:
        yield started


def test_short_trials_are_one_job_and_a_killed_task_stops_its_trial_alone(cluster, copied, gate):
    address = str(copied("limited"))
    items, restores = plan(address, "limited", "short")
    restore_id, store = restores[0]["restore_id"], open_store(address)
    assert len(items) == 3
    killed, *others = items
    progress = Path(address, layout.progress_key(restore_id, killed["trial_id"], 1))
    trigger, _ = wait_deferred(
        trial(killed, "limited", env=gate.env), make_context(), until=progress.exists
    )
    asyncio.run(trigger.on_kill())
    waiting = []
    for index, item in enumerate(others):
        with pytest.raises(TaskDeferred) as deferred:
            trial(item, "limited", env=gate.env).execute(make_context(map_index=index))
        waiting.append(deferred.value.trigger)
    # cleared at once, it waits for its end in the shared driver, and goes on in a job of its own
    again, event = wait_deferred(trial(killed, "limited"), make_context(try_number=2))
    assert (again.driver, again.attempt) == (1, 1)
    with pytest.raises(TaskDeferred) as own:
        trial(killed, "limited").execute_complete(make_context(try_number=2), event)
    gate.open()
    alone = own.value.trigger
    assert (alone.driver, alone.attempt) == (0, 2)
    outcome = AttemptRecords(store, restore_id, killed["trial_id"]).outcome(1)
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)

    async def wait_for_all():
        return await asyncio.wait_for(
            asyncio.gather(*map(fire, [*waiting, alone])), PATIENCE_SECONDS
        )

    ends = asyncio.run(wait_for_all())
    done = [
        trial(item, "limited").execute_complete(make_context(), end)
        for item, end in zip([*others, killed], ends, strict=True)
    ]
    assert [(each["attempt"], each["iteration"]) for each in done] == [(1, 6), (1, 6), (2, 6)]
    assert [
        job["submission_id"].split("-")[2] == "shared" for job in jobs_of(cluster, restore_id)
    ] == [
        True,
        False,
    ]
    commit_restore(store, restore_id)
    assert sorted(rows(address).values()) == [EVERY] * 3
