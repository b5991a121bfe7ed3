"""Metrics that JSON has no number for: whatever an operator returns or pushes, Airflow can send.

Airflow sends XComs as MessagePack to the supervisor of a task, and as strict JSON to the API server.
"""

import asyncio
import json
import math

import msgspec
import pytest

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.triggers import experiment_sensor
from airflow_tune_restore.triggers.experiment_sensor import ExperimentSensorTrigger
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row, make_state
from tests.support.records import leave_outcome

ODD = [math.nan, math.inf, -math.inf, 10**30]


def run(operator):
    """Execute an operator; check what it returns and pushes, and return both."""
    context = make_context()
    returned = operator.execute(context)
    for value in (returned, *context["ti"].pushed.values()):
        assert json.loads(json.dumps(value, allow_nan=False)) == value
        msgspec.msgpack.encode(value)
    return returned, context["ti"].pushed


def result(score, iteration=3):
    """Return a result as a trainable reports it; `score` is the metric of the golden experiment."""
    return {"last_result": {"training_iteration": iteration, "score": score, "other": score}}


@pytest.fixture(params=ODD, ids=str)
def score(request):
    return request.param


@pytest.fixture
def sweep(tmp_path, score):
    rows = [
        make_row("bad", status="ERROR", last_result_time=score, **result(score, score)),
        make_row("good", **result(score)),
    ]
    return make_experiment(tmp_path / "sweep", rows, total_samples=3)


@pytest.fixture
def runner(sweep, score, launcher, monkeypatch):
    """Leaves what a runner leaves whose trials report such a metric."""
    store = open_store(str(sweep))

    def leave(request) -> None:
        rows = [make_row("bad", **result(score, 4))]
        if request.trial_id == layout.WHOLE_EXPERIMENT:
            rows += [make_row("good", **result(score)), make_row("new", **result(score))]
        where = (request.restore_id, request.trial_id, request.attempt)
        store.put(layout.snapshot_key(*where), make_state(rows))
        leave_outcome(store, request, metrics={"score": score, "nested": score})

    launcher.on_start = leave


def test_every_task_of_a_night_returns_what_airflow_can_send(sweep, runner, score):
    found, _ = run(FailedTuneExperimentSensor(task_id="find", prefix=str(sweep), stale_after=0))
    plan = BuildRestorePlanOperator(
        task_id="plan", experiments=found, resume_errored=True, stale_after=0
    )
    (item,), pushed = run(plan)
    trial, _ = run(RestoreTrialOperator(task_id="trial", trial=item, trainable="m:train"))
    assert trial["metrics"]["score"] == str(score)
    (committed,), _ = run(CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"]))
    shown = {change["trial_id"]: change["metric_after"] for change in committed["trials"]}
    expected = float(score) if math.isfinite(score) else str(score)
    assert shown == {"bad": expected, "good": expected}
    drawn, _ = run(
        ContinueSearchOperator(task_id="continue_search", experiment=committed, trainable="m:train")
    )
    assert [change["trial_id"] for change in drawn["trials"]] == ["bad", "good", "new"]


def test_what_a_trigger_fires_can_be_sent(sweep, monkeypatch):
    monkeypatch.setattr(experiment_sensor, "FIRST_EVENT_SECONDS", 0.0)
    trigger = ExperimentSensorTrigger(
        prefix=str(sweep), health=["errored", "interrupted"], stale_after_seconds=0.0,
        poke_interval=0.1, include=[], exclude=[], max_depth=4, use_index=False, ray_conn_id=None,
    )  # fmt: skip

    async def first():
        return await anext(trigger.run())

    event = asyncio.run(first())
    assert json.dumps(event.payload, allow_nan=False)
    assert event.payload["experiments"]
