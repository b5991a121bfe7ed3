"""A trial as a job of a real Ray cluster, authentication on; more of it: slow/test_jobs_of_trials.py.

The operators run here as Airflow's workers run them; what waits in a triggerer runs in an event loop.
`tune-restore restore --on ray` runs as a process of its own: to the end, and Ctrl-C.
"""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
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
from tests.support.ray.shell import Shell


@pytest.fixture(scope="module")
def cluster():
    with jobs_cluster(1) as started:
        yield started


@pytest.fixture
def shell(cluster):
    """Starts the command; the jobs get the trainable and these variables."""

    def start(experiment, *options, **env):
        runtime_env = {
            "py_modules": [str(ROOT / "tests")],
            "env_vars": {"TUNE_TEST_HEALED": "1", **env},
        }
        on_ray = ("--on", "ray", "--address", cluster.address)
        code = ("--runtime-env-json", json.dumps(runtime_env))
        return Shell(experiment, *on_ray, *code, *options, RAY_AUTH_TOKEN=cluster.token)

    return start


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


def test_a_restore_of_the_shell_runs_as_jobs_and_ctrl_c_stops_them_with_a_snapshot(
    cluster, shell, copied, gate
):
    experiment = copied("errored")
    others = submitted(cluster)
    first = shell(experiment, **gate.env)
    first.await_line("iteration 4")  # the gate lets it do that one, and no more
    first.signal(signal.SIGINT)
    code, out, err = first.end()
    assert code == 130, out + err
    assert "Stopping. Saving snapshots, then committing what has finished." in err
    assert "0 of 1 resumed trial finished" in " ".join(out.split())
    assert statuses(cluster, others) == ["STOPPED"]
    trials = read_experiment(open_store(str(experiment))).trials
    assert [trial.iteration for trial in trials if not trial.is_finished] == [4]

    code, out, err = shell(experiment, "--stale-after", "0", "--json").end()
    assert code == 0, out + err
    assert [trial["iteration_after"] for trial in json.loads(out)["trials"]] == [6, 6]
    assert statuses(cluster, others) == ["STOPPED", "SUCCEEDED"]
    assert [1, 2, 3, 4, 5, 6] in rows(str(experiment)).values()


def test_a_job_is_paused_with_its_window_and_the_next_restore_goes_on(cluster, shell, copied, gate):
    """Not by its grace: the driver of a job inherits a mask that blocks SIGINT."""
    experiment = copied("errored")
    others = submitted(cluster)
    code, out, err = shell(experiment, "--max-duration", "15s", **gate.env).end()
    assert code == 1, out + err
    assert "1 paused until the next restore" in " ".join(out.split())
    (path,) = experiment.glob(".tune_restore/*/trials/*/attempts/000001/outcome.json")
    outcome = json.loads(path.read_text())
    assert outcome["result"] == "paused"
    assert "did not stop in time" not in outcome["error"]
    reached = outcome["iteration"]
    assert [1, 2, 3, 4, 5, 6][:reached] in [*rows(str(experiment)).values(), []]

    gate.open()
    code, out, err = shell(experiment, "--stale-after", "0", "--json").end()
    assert code == 0, out + err
    assert statuses(cluster, others) == ["FAILED", "SUCCEEDED"]
    assert [1, 2, 3, 4, 5, 6] in rows(str(experiment)).values()


def submitted(cluster) -> dict[str, str]:
    """Return the status of each job that was submitted, by its id."""
    jobs = cluster.call("/api/jobs/")
    return {job["submission_id"]: job["status"] for job in jobs if job["submission_id"]}


def statuses(cluster, others) -> list[str]:
    """Return the statuses of the jobs that are not among the others."""
    return sorted(status for name, status in submitted(cluster).items() if name not in others)


def test_a_cluster_that_does_not_let_us_in_is_refused_before_anything_is_leased(cluster, copied):
    experiment = copied("errored")
    on_ray = ("--on", "ray", "--address", cluster.address)
    code, _, err = Shell(experiment, *on_ray, RAY_AUTH_TOKEN="wrong").end()
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert not (experiment / ".tune_restore").exists()
