"""A sensor that waits at the end of its window: in each mode its task is skipped, with the reason."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR

from airflow_tune_restore.hooks import window
from airflow_tune_restore.sensors import failed_experiment
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.version_compat import AirflowSensorTimeout, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.airflow.names import AirflowRescheduleException, TaskDeferred
from tests.support.experiments.built import make_experiment, make_row

BEGAN = datetime(2026, 11, 30, 21, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
OVER = "The window of this DAG run ended at 2026-11-30 22:00:00 UTC"
TIMED_OUT = {"error": "Trigger timeout"}


@pytest.fixture
def clock(monkeypatch):
    """Return a function that sets the time of the worker."""

    def set_to(moment):
        monkeypatch.setattr(window, "now", lambda: moment)

    set_to(BEGAN)
    return set_to


@pytest.fixture
def context():
    made = make_context()
    made["dag"] = SimpleNamespace(timezone=UTC)
    dag_run = made["dag_run"]
    dag_run.dag_id, dag_run.run_id, dag_run.run_after = "nightly", "scheduled__x", BEGAN
    made["ti"].get_first_reschedule_date = lambda _context: None
    return made


def sensor(prefix, **arguments):
    return FailedTuneExperimentSensor(
        task_id="find", prefix=str(prefix), max_duration=HOUR, **arguments
    )


@pytest.mark.parametrize("how", [{}, {"mode": "reschedule"}, {"deferrable": True}])
def test_after_the_end_it_looks_once_more_and_skips_its_task(tmp_path, context, clock, how):
    clock(BEGAN + HOUR)
    with pytest.raises(AirflowSkipException, match=OVER):
        sensor(tmp_path, **how).execute(context)
    assert "left_alone" in context["ti"].pushed


@pytest.mark.parametrize("how", [{}, {"mode": "reschedule"}, {"deferrable": True}, {"wait": False}])
def test_what_it_finds_after_the_end_the_plan_lists_as_waiting(tmp_path, context, clock, how):
    make_experiment(tmp_path / "errored", [make_row("a1", status="ERROR")])
    clock(BEGAN + HOUR)
    assert len(sensor(tmp_path, **how).execute(context)) == 1


def test_between_two_looks_it_sleeps_no_longer_than_until_the_end(
    tmp_path, context, clock, monkeypatch
):
    clock(BEGAN + HOUR - timedelta(seconds=7))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        clock(BEGAN + HOUR)

    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(AirflowSkipException, match=OVER):
        sensor(tmp_path, poke_interval=600).execute(context)
    assert slept == [7.0]


def test_a_sensor_that_is_rescheduled_looks_again_at_the_end(tmp_path, context, clock):
    clock(BEGAN + HOUR - timedelta(seconds=7))
    with pytest.raises(AirflowRescheduleException) as raised:
        sensor(tmp_path, poke_interval=600, mode="reschedule").execute(context)
    assert raised.value.reschedule_date < datetime.now(UTC) + timedelta(seconds=60)


def test_a_deferred_sensor_is_woken_at_the_end_and_skips_its_task(tmp_path, context, clock):
    clock(BEGAN + timedelta(minutes=50))
    one = sensor(tmp_path, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        one.execute(context)
    assert deferred.value.timeout == timedelta(minutes=10)
    clock(BEGAN + HOUR - timedelta(seconds=1))  # the clock of the triggerer is ahead
    with pytest.raises(AirflowSkipException, match=OVER):
        one.resume_execution(TRIGGER_FAIL_REPR, TIMED_OUT, context)


def test_its_own_timeout_before_the_end_is_what_it_was(tmp_path, context, clock):
    one = sensor(tmp_path, deferrable=True, timeout=60)
    with pytest.raises(TaskDeferred) as deferred:
        one.execute(context)
    assert deferred.value.timeout == timedelta(seconds=60)
    clock(BEGAN + HOUR - timedelta(seconds=failed_experiment.CLOCKS_DIFFER_SECONDS + 1))
    with pytest.raises(AirflowSensorTimeout):
        one.resume_execution(TRIGGER_FAIL_REPR, TIMED_OUT, context)
