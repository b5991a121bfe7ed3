"""Airflow is asked whether the DAG run has ended that holds a lease."""

import os
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_tune_restore.hooks.dag_runs import identify_dag_run
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.release_trial import ReleaseTrialOperator
from airflow_tune_restore.operators.undo_commit import UndoCommitOperator
from airflow_tune_restore.protocol import lease, lease_watch
from airflow_tune_restore.protocol.kept_lease import keep_lease
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowException, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.airflow.names import since_3_2
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import night

pytestmark = since_3_2
STARTED = datetime(2026, 11, 29, 2, 0, 0, 123456, tzinfo=UTC)
FIRST, SECOND = "scheduled__2026-11-28T02:00:00+00:00", "scheduled__2026-11-29T02:00:00+00:00"


class Airflow:
    """Stands in for the supervisor of a task: knows the states of DAG runs."""

    def __init__(self):
        self.states = {}
        self.started = {}
        self.error = None

    def send(self, msg):
        if self.error is not None:
            raise self.error
        if msg.run_id not in self.states:
            raise AirflowRuntimeError(
                ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 404})
            )
        return SimpleNamespace(
            state=SimpleNamespace(value=self.states[msg.run_id]),
            start_date=self.started.get(msg.run_id, STARTED),
        )


@pytest.fixture
def airflow(monkeypatch):
    fake = Airflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", fake, raising=False)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/")
    monkeypatch.setattr(lease_watch, "KNOWN_DEAD_SECONDS", 0.0)
    return fake


def context(run_id, started=STARTED):
    made = make_context(run_id=run_id)
    made["dag_run"].dag_id, made["dag_run"].run_id = "nightly", run_id
    made["dag_run"].start_date = started
    return made


def plan(experiment, run_id, stale_after=0, started=STARTED):
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=str(experiment), resume_errored=True, stale_after=stale_after
    )
    return operator.execute(context(run_id, started))


def find(experiment, run_id):
    sensor = FailedTuneExperimentSensor(task_id="find", prefix=str(experiment), wait=False)
    return sensor.execute(context(run_id))


@pytest.mark.parametrize("state", ["failed", "success"])
def test_the_next_run_takes_over_at_once_from_one_that_has_ended(errored, airflow, state, capfd):
    plan(errored, FIRST)
    airflow.states[FIRST] = state
    (item,) = find(errored, SECOND)
    assert item["health"] == "errored"
    assert len(plan(item["experiment"], SECOND)) == 2
    held = lease.unreleased(open_store(str(errored)), but="")
    assert [claim.dag_run.run_id for claim in held] == [SECOND]
    url = f"https://airflow.example.com/dags/nightly/runs/{FIRST.replace(':', '%3A').replace('+', '%2B')}"
    assert f"Its DAG run is {state}: {url}" in capfd.readouterr().out


def test_what_a_run_that_has_ended_wrote_is_not_waited_for_either(tmp_path, airflow, capfd):
    """Its trials were unfinished before, and are now written to; so a driver might live."""
    dead = make_experiment(tmp_path / "dead", [make_row("b1", status="RUNNING", trial_dir="b1")])
    for path in [*dead.rglob("*"), dead]:
        os.utime(path, (time.time() - 7200,) * 2)  # noqa: TID251
    plan(dead, FIRST, stale_after=1800)
    airflow.states[FIRST] = "running"
    (dead / "b1").mkdir()
    (dead / "b1" / "result.json").write_text("{}")
    (dead / ".validate_storage_marker").touch()  # Ray writes it in a runner, too
    with pytest.raises(AirflowSkipException, match="Its DAG run is running"):
        plan(dead, SECOND, stale_after=1800)
    airflow.states[FIRST] = "failed"
    (item,) = find(dead, SECOND)
    assert item["health"] == "interrupted"
    assert "nothing written since it was last restored" in item["reason"]
    assert len(plan(dead, SECOND, stale_after=1800)) == 1


def test_a_run_that_was_cleared_is_asked_about_by_its_new_start(errored, airflow):
    again = STARTED + timedelta(hours=1)
    plan(errored, FIRST)
    plan(errored, FIRST, started=again)
    store = open_store(str(errored))
    (held,) = lease.unreleased(store, but="")
    assert lease.check_held(store, held.restore_id).epoch == 1  # its runners live on
    airflow.started[FIRST], airflow.states[FIRST] = again, "failed"
    (item,) = find(errored, SECOND)
    assert len(plan(item["experiment"], SECOND)) == 2


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [(ReleaseTrialOperator, {"trials": "bad"}), (UndoCommitOperator, {"confirm": "exp"})],
)
def test_release_and_undo_do_not_wait_for_a_run_that_has_ended(
    tmp_path, airflow, operator, arguments
):
    bad = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR"), make_row("done")])
    store, first = open_store(str(bad)), context(FIRST)
    night(store, "r0", result="failed")
    dag_run = identify_dag_run(first)
    lease.acquire(store, restore_id="r1", holder="it", ttl_seconds=900, dag_run=dag_run)
    task = operator(task_id="task", experiment=str(bad), **arguments)
    airflow.states[FIRST] = "running"
    with pytest.raises(AirflowException, match="Its DAG run is running"):
        task.execute(context(SECOND))
    airflow.states[FIRST] = "failed"
    assert task.execute(context(SECOND))


@pytest.mark.parametrize("state", ["running", "queued"])
def test_a_run_that_goes_on_is_named_with_its_state(errored, airflow, state):
    plan(errored, FIRST)
    airflow.states[FIRST] = state
    with pytest.raises(
        AirflowSkipException, match=rf"Its DAG run is {state}: https://airflow\.example"
    ):
        plan(errored, SECOND)
    with pytest.raises(AirflowSkipException, match="Nothing to restore"):
        find(errored, SECOND)


def test_a_run_of_another_deployment_with_the_same_ids_is_not_this_one(errored, airflow):
    plan(errored, FIRST)
    airflow.states[FIRST] = "failed"
    airflow.started[FIRST] = STARTED.replace(microsecond=1)
    with pytest.raises(
        AirflowSkipException, match="a DAG run of that name that started at another time"
    ):
        plan(errored, SECOND)


def test_a_run_that_was_deleted_is_not_known_to_have_ended(errored, airflow):
    plan(errored, FIRST)
    with pytest.raises(AirflowSkipException, match="This Airflow has no such DAG run"):
        plan(errored, SECOND)


def test_an_airflow_that_cannot_be_asked_changes_nothing(errored, airflow):
    plan(errored, FIRST)
    airflow.error = AirflowRuntimeError(
        ErrorResponse(
            error=ErrorType.API_SERVER_ERROR, detail={"status_code": None, "message": "no"}
        )
    )
    with pytest.raises(
        AirflowSkipException, match=r"Airflow could not be asked about its DAG run: .*no"
    ):
        plan(errored, SECOND)


def test_no_one_is_asked_about_a_shell_or_an_older_claim(errored, airflow):
    airflow.error = AssertionError("asked")
    store = open_store(str(errored))
    lease.acquire(store, restore_id="shell-1", holder="tune-restore of bob", ttl_seconds=60)
    with pytest.raises(AirflowSkipException, match=r"tune-restore of bob, is restoring it$"):
        plan(errored, SECOND)


def test_a_run_that_lives_is_not_taken_over_whatever_airflow_answers(errored, airflow, monkeypatch):
    """The DAG run has ended, and a runner of it goes on: a deferred trial, a Ray job."""
    monkeypatch.setattr(lease_watch, "KNOWN_DEAD_SECONDS", 0.3)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    plan(errored, FIRST)
    airflow.states[FIRST] = "failed"
    store = open_store(str(errored))
    (held,) = lease.unreleased(store, but="")
    with (
        keep_lease(store, held.restore_id),
        pytest.raises(AirflowSkipException, match="It lives"),
    ):
        plan(errored, SECOND)


@pytest.mark.parametrize(
    ("dag_id", "started"), [("a/b", STARTED), ("..", STARTED), ("nightly", None)]
)
def test_a_run_that_could_not_be_asked_about_is_not_put_into_a_claim(dag_id, started):
    run = SimpleNamespace(dag_id=dag_id, run_id="1", start_date=started)
    assert identify_dag_run({"dag_run": run}) is None
    assert identify_dag_run({}) is None
