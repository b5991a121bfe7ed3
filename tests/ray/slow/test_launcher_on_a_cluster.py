"""The launcher of the shell on a real Ray cluster, authentication on."""

import time

import pytest

from airflow_tune_restore.launch.base import RunState, follow
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.launcher import RayLauncher
from airflow_tune_restore.launch.ray.submission import DriverResources
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.kept_lease import keep_lease
from airflow_tune_restore.protocol.request import EXIT_FENCED, Result, RunnerProgress
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.jobs import jobs_cluster
from tests.support.records import start_night
from tests.support.waiting import eventually


@pytest.fixture
def cluster():
    with jobs_cluster(1) as started:
        yield started


@pytest.fixture
def night(copied):
    """A restore whose lease is kept, as the shell does."""
    store = open_store(str(copied("errored")))
    plan = start_night(store)
    with keep_lease(store, plan.restore_id):
        yield store, plan


def test_attempts_are_superseded_stopped_and_followed_to_their_end(cluster, night, gate):
    store, plan = night
    trial_id = plan.to_run[0].trial_id
    records = AttemptRecords(store, plan.restore_id, trial_id)

    def launcher(env, **resources) -> RayLauncher:
        return RayLauncher(
            cluster=Cluster(address=cluster.address, token=cluster.token),
            runtime_env={"py_modules": [str(ROOT / "tests")]},
            env={"TUNE_TEST_HEALED": "1", **env},
            driver=DriverResources(resources=resources),
            poll_seconds=0.5,
        )

    def claim():
        settings = launcher({}).settings(RunnerSettings(trainable=TRAINABLES["errored"]))
        return claim_attempt(store, plan, trial_id, settings)

    # no node has the resource: the job cannot start, and Ray cannot stop it
    waiting = launcher({}, rare=1.0).start(claim())
    assert waiting.poll() is RunState.WAITING
    began = time.monotonic()
    waiting.stop()
    assert time.monotonic() - began < 15
    assert waiting.poll() is RunState.ENDED
    assert cluster.call(f"/api/jobs/{waiting.submission_id}")["status"] == "PENDING"

    second = claim()
    run = launcher(gate.env).start(second)
    eventually(lambda: run.poll() is RunState.RUNNING)
    lines: list[str] = []

    def has_reported(iteration: int) -> bool:
        run.poll()
        lines.extend(run.output())
        return any(r and r.iteration == iteration for r in map(RunnerProgress.from_line, lines))

    eventually(lambda: has_reported(4))
    found = launcher({}).find(second)
    assert found.submission_id == run.submission_id
    found.stop()
    assert run.poll() is RunState.ENDED
    outcome = records.outcome(2)
    assert (outcome.result, outcome.iteration) == (Result.INTERRUPTED, 4)
    assert store.get(layout.snapshot_key(plan.restore_id, trial_id, 2))

    # the resource appears: the superseded job starts after all, and leaves
    cluster.add_node(num_cpus=1, resources='{"rare": 1}')
    gate.open()
    lines.clear()
    ended = follow(launcher(gate.env).start(claim()), lines.append)
    assert ended.exit_code == 0
    reported = [progress.iteration for progress in map(RunnerProgress.from_line, lines) if progress]
    assert reported == [5, 6]
    assert records.outcome(3).result == Result.FINISHED

    def first_job() -> dict:
        return cluster.call(f"/api/jobs/{waiting.submission_id}")

    eventually(lambda: first_job()["status"] in ("STOPPED", "FAILED"))
    assert first_job()["driver_exit_code"] in (None, EXIT_FENCED)
    assert not records.has_begun(1)
    assert records.outcome(1) is None
