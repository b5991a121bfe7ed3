"""A task of a restore that has ended is run again: its message is how that ended, and what to clear."""

import json

import pytest
from airflow.sdk import DAG

from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from airflow_tune_restore.version_compat import AirflowFailException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import leave_attempt

COMMITTED = STATE_NAME.replace(".json", "_r000001.json")
AGAIN = (
    "Nothing was started. To run trial a1 again, clear task restore.plan with its downstream tasks."
)


@pytest.fixture
def store(errored):
    return open_store(str(errored))


@pytest.fixture(autouse=True)
def _cluster(monkeypatch):
    monkeypatch.setattr(RayJobsHook, "jobs", lambda self: FakeJobs())
    connection = json.dumps({"conn_type": "ray_jobs", "host": "head"})
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", connection)
    monkeypatch.setattr(RunnerPodOperator, "attempt_pods", lambda self, task: None)


def make_group(experiment, **options) -> TuneRestoreTaskGroup:
    with DAG("nightly", schedule=None):
        return TuneRestoreTaskGroup(
            experiments=str(experiment),
            trainable="a:b",
            resume_errored=True,
            stale_after=0,
            **options,
        )


def run_plan(group) -> list[dict]:
    group.plan.trainable = None  # it is not checked here
    return group.plan.execute(make_context())


def run_trial(group, item) -> str:
    """Run the task of a trial, as Airflow unmaps it, and return why it failed."""
    with pytest.raises(AirflowFailException) as failed:
        group.trial.unmap({"trial": item}).execute(make_context())
    return str(failed.value)


PODS = {"trial_args": {"image": "i", "namespace": "n"}}
PLACES = {
    "local": {},
    "ray": {"launcher": "ray"},
    "kubernetes": {"launcher": "kubernetes", **PODS},
}


@pytest.mark.parametrize("strategy", ["per_trial", "whole_experiment"])
@pytest.mark.parametrize("place", PLACES)
def test_a_committed_restore_names_the_task_to_clear(errored, store, place, strategy):
    group = make_group(errored, plan_args={"strategy": strategy}, **PLACES[place])
    item = next(item for item in run_plan(group) if item["trial_id"] == "a1")
    commit_restore(store, item["restore_id"])
    assert run_trial(group, item) == (
        f"Restore {item['restore_id']} of {store.uri} has ended: it was committed. {AGAIN}"
    )


@pytest.mark.parametrize("strategy", ["per_trial", "whole_experiment"])
@pytest.mark.parametrize("place", ["local", "ray"])
def test_no_trial_is_run_after_a_commit_that_did_not_release_its_lease(
    errored, store, place, strategy
):
    group = make_group(errored, plan_args={"strategy": strategy}, **PLACES[place])
    item = next(item for item in run_plan(group) if item["trial_id"] == "a1")
    held = lease.check_held(store, item["restore_id"])
    commit_restore(store, item["restore_id"])
    store.delete(layout.lease_release_key(held.epoch))
    error = run_trial(group, item)
    assert f"Restore {item['restore_id']} of {store.uri} has ended: its commit has begun." in error
    assert "clear the task that makes the plan" in error
    unit = layout.WHOLE_EXPERIMENT if strategy == "whole_experiment" else "a1"
    assert AttemptRecords(store, item["restore_id"], unit).newest() == 0


def test_a_commit_that_made_a_state_is_named_and_so_is_its_undo(errored, store):
    group = make_group(errored)
    item = next(item for item in run_plan(group) if item["trial_id"] == "a1")
    leave_attempt(store, read_plan(store, item["restore_id"]), "a3")
    commit_restore(store, item["restore_id"])
    assert f"has ended: it was committed as {COMMITTED}. {AGAIN}" in run_trial(group, item)
    # a later restore, which found it released, did not take it over
    lease.release(store, lease.acquire(store, restore_id="later", holder="another"))
    assert f"has ended: it was committed as {COMMITTED}. " in run_trial(group, item)
    undo_commit(store, holder="somebody")
    assert f"committed as {COMMITTED}, and undone later. " in run_trial(group, item)


def test_a_restore_that_was_only_released_is_called_so(errored, store):
    group = make_group(errored)
    item = next(item for item in run_plan(group) if item["trial_id"] == "a1")
    lease.release(store, lease.check_held(store, item["restore_id"]))
    assert f"has ended: it was released without a commit. {AGAIN}" in run_trial(group, item)


def test_a_restore_that_was_taken_over_names_its_heir(errored, store, monkeypatch):
    group = make_group(errored)
    item = next(item for item in run_plan(group) if item["trial_id"] == "a1")
    monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)
    heir = lease.acquire(store, restore_id="later", holder="DAG nightly, run 2")
    taken = "has ended: restore later of DAG nightly, run 2 took it over"
    assert f"{taken}. {AGAIN}" in run_trial(group, item)
    lease.release_all(store, lease.unreleased(store, but="later"))
    lease.release(store, heir)
    assert f"{taken}. {AGAIN}" in run_trial(group, item)


def test_without_a_plan_task_upstream_the_message_still_tells_which_one(errored, store):
    group = make_group(errored)
    item = next(item for item in run_plan(group) if item["trial_id"] == "a1")
    commit_restore(store, item["restore_id"])
    alone = group.trial.unmap({"trial": item})
    alone.upstream_task_ids = set()
    with pytest.raises(AirflowFailException, match="clear the task that made the plan with its"):
        alone.execute(make_context())


def test_a_continued_search_that_was_taken_over_names_its_own_task(tmp_path, launcher, monkeypatch):
    done = make_row("done", last_result={"training_iteration": 4, "done": True})
    left = make_experiment(tmp_path / "left", [done], total_samples=4)
    store = open_store(str(left))
    operator = ContinueSearchOperator(task_id="draw", experiment=str(left), trainable="a:b")

    def overtaken(context, task):
        monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)
        lease.acquire(store, restore_id="later", holder="DAG nightly, run 2")
        return run_attempt(context, task)

    run_attempt = operator.run_attempt
    monkeypatch.setattr(operator, "run_attempt", overtaken)
    with pytest.raises(AirflowFailException) as failed:
        operator.execute(make_context())
    assert str(failed.value).endswith(
        "has ended: restore later of DAG nightly, run 2 took it over. Nothing was started. To draw its "
        "samples, clear task draw."
    )
