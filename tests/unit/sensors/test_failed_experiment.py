"""The sensor: what it finds, and what it does if it finds nothing."""

import json
from datetime import timedelta

import pytest

from airflow_tune_restore.arguments import parse_addresses, shares_prefix
from airflow_tune_restore.hooks import experiment_search, xcom_size
from airflow_tune_restore.hooks.xcom_size import unpack
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)
from tests.support.airflow.context import make_context
from tests.support.airflow.names import AirflowRescheduleException, TaskDeferred
from tests.support.airflow.states import plan, run
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import start_night


@pytest.fixture
def prefix(tmp_path):
    """An errored, a finished, an unfinished and an unreadable experiment."""
    make_experiment(tmp_path / "errored", [make_row("a1", status="ERROR"), make_row("a2")])
    make_experiment(tmp_path / "finished", [make_row("b1")])
    make_experiment(tmp_path / "team" / "unfinished", [make_row("c1", status="RUNNING")])
    broken = make_experiment(tmp_path / "broken", [make_row("d1")])
    next(broken.glob("experiment_state-*")).write_text("{")
    return tmp_path


def sensor(prefix, **arguments) -> FailedTuneExperimentSensor:
    return FailedTuneExperimentSensor(task_id="find", prefix=str(prefix), **arguments)


def names(found) -> list[str]:
    return [item["name"] for item in found]


def test_errored_and_interrupted_experiments_are_found_and_others_are_not(prefix):
    found = sensor(prefix, stale_after=0).execute(make_context())
    assert names(found) == ["errored", "unfinished"]


def test_an_unfinished_experiment_that_was_just_written_to_is_running(prefix):
    assert names(sensor(prefix).execute(make_context())) == ["errored"]


def test_the_wanted_health_can_be_chosen(prefix):
    assert names(sensor(prefix, health={"finished"}).execute(make_context())) == ["finished"]


def test_found_experiments_fit_into_an_xcom_and_can_be_opened(prefix):
    found = sensor(prefix).execute(make_context())
    assert json.loads(json.dumps(found)) == found
    assert found[0]["experiment"] == f"{prefix}/errored"
    assert found[0]["trials"] == {"ERROR": 1, "TERMINATED": 1}


def test_a_poll_logs_the_counts_and_why_one_cannot_be_read(prefix, capfd):
    sensor(prefix).execute(make_context())
    log = capfd.readouterr().out
    assert "4 experiments; 1 finished, 1 errored, 1 running, 1 unreadable" in log
    assert "broken is left alone: " in log


def test_a_single_look_at_nothing_is_skipped_in_words(tmp_path):
    with pytest.raises(AirflowSkipException, match="Nothing to restore under"):
        sensor(tmp_path, wait=False).execute(make_context())


def test_a_single_look_returns_what_it_finds(prefix):
    assert names(sensor(prefix, wait=False).execute(make_context())) == ["errored"]


def test_nothing_until_the_timeout_fails_as_every_sensor_does(tmp_path):
    with pytest.raises(AirflowSensorTimeout):
        sensor(tmp_path, timeout=0, poke_interval=0).execute(make_context())


@pytest.mark.parametrize("deferrable", [True, False])
def test_nothing_until_the_timeout_is_skipped_with_soft_fail(tmp_path, deferrable):
    with pytest.raises(AirflowSkipException):
        sensor(tmp_path, timeout=0, poke_interval=0, soft_fail=True, deferrable=deferrable).execute(
            make_context()
        )


def test_reschedule_gives_the_worker_slot_back(tmp_path):
    context = make_context()
    context["ti"].get_first_reschedule_date = lambda context: None
    with pytest.raises(AirflowRescheduleException):
        sensor(tmp_path, mode="reschedule").execute(context)


def test_a_deferrable_sensor_returns_at_once_what_is_there_already(prefix):
    found = sensor(prefix, deferrable=True).execute(make_context())
    assert names(found) == ["errored"]


def test_a_deferrable_sensor_defers_with_its_timeout(tmp_path):
    with pytest.raises(TaskDeferred) as deferred:
        sensor(tmp_path, deferrable=True, timeout=99, stale_after="60").execute(make_context())
    assert deferred.value.timeout == timedelta(seconds=99)
    assert deferred.value.trigger.serialize()[1] == {
        "prefix": str(tmp_path),
        "health": ["errored", "interrupted"],
        "stale_after_seconds": 60.0,
        "poke_interval": 60.0,
        "include": [],
        "exclude": [],
        "max_depth": 4,
        "use_index": True,
        "ray_conn_id": None,
    }


def test_a_selection_narrows_the_search_and_the_log_says_why(prefix, capfd):
    found = sensor(prefix, stale_after=0, include="team/*").execute(make_context())
    assert names(found) == ["unfinished"]
    log = capfd.readouterr().out
    assert "unfinished is interrupted: 1 unfinished trial, nothing" in log
    assert "    newest write to its root: " in log


def test_what_the_trigger_found_is_returned(tmp_path):
    context = make_context()
    event = {"experiments": [{"experiment": "/a"}]}  # of an older triggerer
    assert sensor(tmp_path).execute_complete(context, event) == event["experiments"]
    event["left_alone"] = {"experiments": [], "not_listed": 0}
    assert sensor(tmp_path).execute_complete(context, event) == event["experiments"]
    assert context["ti"].pushed["left_alone"] == event["left_alone"]


@pytest.mark.parametrize("how", [{"wait": False}, {}, {"deferrable": True}])
def test_what_is_not_returned_is_named_with_the_reason_but_not_what_is_finished(prefix, how, capfd):
    leased = make_experiment(prefix / "leased", [make_row("e1", status="ERROR")])
    start_night(open_store(str(leased)), "another")
    context = make_context()
    sensor(prefix, **how).execute(context)
    left_alone = context["ti"].pushed["left_alone"]
    assert json.loads(json.dumps(left_alone)) == left_alone
    assert left_alone["not_listed"] == 0
    named = {item["experiment"]: item["health"] for item in left_alone["experiments"]}
    assert named == {
        f"{prefix}/broken": "unreadable",
        f"{prefix}/leased": "running",
        f"{prefix}/team/unfinished": "running",
    }
    log = capfd.readouterr().out
    assert "leased is left alone: it is running: restore another of test another is running" in log
    assert log.count("unfinished is left alone: ") == log.count("broken is left alone: ") == 1


def test_what_is_not_returned_is_named_if_nothing_is(tmp_path, capfd):
    make_experiment(tmp_path / "alive", [make_row("c1", status="RUNNING")])
    with pytest.raises(AirflowSkipException):
        sensor(tmp_path, wait=False).execute(make_context())
    assert "alive is left alone: it is running: 1 unfinished" in capfd.readouterr().out


def test_of_very_many_the_rest_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_search, "MAX_LEFT_ALONE", 2)
    make_experiment(tmp_path / "errored", [make_row("a1", status="ERROR")])
    for number in range(5):
        make_experiment(tmp_path / f"alive{number}", [make_row("c1", status="RUNNING")])
    context = make_context()
    sensor(tmp_path).execute(context)
    left_alone = context["ti"].pushed["left_alone"]
    assert (len(left_alone["experiments"]), left_alone["not_listed"]) == (2, 3)


def test_what_waiting_cannot_mend_fails_at_once(tmp_path):
    with pytest.raises(AirflowFailException, match="no bucket"):
        sensor(tmp_path).execute_complete(make_context(), {"error": "no bucket"})


def test_a_mistake_in_an_argument_is_one_sentence(tmp_path):
    operator = sensor(tmp_path, stale_after="{{ params.silence }}")
    operator.stale_after = "soon"  # as Airflow renders it
    with pytest.raises(AirflowFailException, match="is not a number of seconds") as error:
        operator.execute(make_context())
    assert error.value.__suppress_context__


def test_a_store_that_does_not_answer_may_be_retried(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(AirflowException) as error:
        sensor("s3://bucket/prefix").execute(make_context())
    assert not isinstance(error.value, AirflowFailException)


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_prefix_where_nothing_was_ever_found_is_a_warning(tmp_path, caplog, capfd, deferrable):
    with pytest.raises(AirflowSkipException):
        sensor(tmp_path, wait=False, deferrable=deferrable, include=["a"]).execute(make_context())
    log = capfd.readouterr().out + caplog.text
    assert "warning" in log.lower()
    assert (
        f"{tmp_path}: no Tune experiment is there, not even a finished one. Check the spelling of the "
        "prefix, max_depth (4 levels below the prefix) and include and exclude."
    ) in log


def test_a_directory_that_does_not_exist_is_a_warning(tmp_path, caplog, capfd):
    with pytest.raises(AirflowSkipException):
        sensor(tmp_path / "swepes", wait=False).execute(make_context())
    log = capfd.readouterr().out + caplog.text
    assert (
        f"{tmp_path}/swepes: this directory does not exist here. Check the spelling of the" in log
    )


def test_a_prefix_with_finished_experiments_is_no_reason_to_warn(tmp_path, caplog, capfd):
    make_experiment(tmp_path / "finished", [make_row("b1")])
    with pytest.raises(AirflowSkipException):
        sensor(tmp_path, wait=False).execute(make_context())
    log = capfd.readouterr().out + caplog.text
    assert "1 experiment; 1 finished" in log
    assert "Check the spelling" not in log


def test_very_many_found_experiments_are_packed_and_the_plan_reads_them_all(tmp_path, monkeypatch):
    for number in range(20):
        make_experiment(tmp_path / f"sweep_{number:02}", [make_row("a", status="ERROR")])
    whole = sensor(tmp_path).execute(make_context())
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 1500)
    found = sensor(tmp_path).execute(make_context())
    assert len(json.dumps(found)) < 1500 < len(json.dumps(whole))
    listed = unpack(found)
    assert parse_addresses(listed) == parse_addresses(whole)
    assert shares_prefix(listed) is shares_prefix(whole) is False
    operator = plan([], trainable=None)
    operator.experiments = found  # as rendered
    planned, _, pushed = run(operator)
    assert planned == "success"
    assert len(unpack(pushed["outcomes"])) == 20


def test_one_that_shares_its_prefix_is_known_to_when_packed(tmp_path, monkeypatch):
    for team in ("a", "b"):
        make_experiment(tmp_path / team / "sweep", [make_row("a", status="ERROR")])
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 600)
    found = sensor(tmp_path).execute(make_context())
    assert shares_prefix(unpack(found))


def test_found_experiments_that_do_not_fit_are_counted_for_the_next_run(
    tmp_path, monkeypatch, capfd
):
    for number in range(20):
        make_experiment(tmp_path / f"sweep_{number:02}", [make_row("a", status="ERROR")])
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 160 + len(str(tmp_path)))
    found = sensor(tmp_path).execute(make_context())
    count = len(unpack(found))
    assert 0 < count < 20
    assert f"{count} of 20 experiments fit into an XCom and are returned." in capfd.readouterr().out


def test_a_deferred_sensor_returns_packed_what_an_older_triggerer_found(tmp_path, monkeypatch):
    items = [{"experiment": f"/x/{number}", "health": "errored"} for number in range(100)]
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 1000)
    found = sensor(tmp_path).execute_complete(make_context(), {"experiments": items})
    assert parse_addresses(unpack(found)) == [item["experiment"] for item in items]
    assert sensor(tmp_path).execute_complete(make_context(), {"experiments": found}) == found


def test_long_reasons_of_those_left_alone_fit_into_an_xcom(tmp_path, monkeypatch):
    for number in range(10):
        broken = make_experiment(tmp_path / f"sweep_{number}", [make_row("a")])
        next(broken.glob("experiment_state-*")).write_text("{")
    context = make_context()
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 2000)
    with pytest.raises(AirflowSkipException):
        sensor(tmp_path, wait=False).execute(context)
    left_alone = context["ti"].pushed["left_alone"]
    assert len(json.dumps(left_alone)) < 2000
    assert left_alone["experiments"]
    assert len(left_alone["experiments"]) + left_alone["not_listed"] == 10
