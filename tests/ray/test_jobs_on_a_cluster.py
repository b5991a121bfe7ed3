"""A trial as a job of a real Ray cluster, authentication on; more of it: slow/test_jobs_of_trials.py.

The operators run here as Airflow's workers run them; what waits in a triggerer runs in an event loop.
"""

import asyncio
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.context import make_context
from tests.support.ray.jobs import (
    attach_twice,
    jobs_cluster,
    jobs_of,
    plan,
    rows,
    run_trigger,
    trial,
    wait_deferred,
)


@pytest.fixture
def cluster():
    with jobs_cluster(1) as started:
        yield started


def test_a_retry_attaches_to_the_living_job_and_a_killed_task_stops_it_with_a_snapshot(
    cluster, copied, gate
):
    address = str(copied("errored"))
    items, restores = plan(address, "errored", "night")
    restore_id, store = restores[0]["restore_id"], open_store(address)
    trial_id = items[0]["trial_id"]
    first, second = attach_twice(address, items[0], "errored", env=gate.env)
    assert first.submission_id == second.submission_id
    assert second.attempt == 1
    progress = Path(address, layout.progress_key(restore_id, trial_id, 1))
    assert run_trigger(second, until=progress.exists) == {}
    assert len(jobs_of(cluster, restore_id)) == 1

    asyncio.run(second.on_kill())
    # the task is cleared at once: it waits for the snapshot, and goes on from there
    trigger, event = wait_deferred(trial(items[0], "errored"), make_context(try_number=3))
    assert trigger.attempt == 2
    outcome = AttemptRecords(store, restore_id, trial_id).outcome(1)
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)
    done = trial(items[0], "errored").execute_complete(make_context(try_number=3), event)
    assert (done["attempt"], done["iteration"]) == (2, 6)
    assert [job["status"] for job in jobs_of(cluster, restore_id)] == ["STOPPED", "SUCCEEDED"]
    assert [1, 2, 3, 4, 5, 6] in rows(address).values()
