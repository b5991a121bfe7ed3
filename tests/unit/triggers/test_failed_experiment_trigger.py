"""The trigger of a deferred sensor: when it asks, when it fires, and its wire form."""

import asyncio

import pytest
from airflow.sdk.module_loading import import_string

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.triggers import experiment_poller
from airflow_tune_restore.triggers.experiment_sensor import (
    FIRST_EVENT_SECONDS,
    ExperimentSensorTrigger,
)
from tests.support.experiments.built import make_experiment, make_report, make_row

ARGUMENTS = {
    "prefix": "s3://minio@bucket/a",
    "health": ["errored", "interrupted"],
    "stale_after_seconds": 1800.0,
    "poke_interval": 60.0,
}
MORE = {
    "include": ["team_a"],
    "exclude": ["tmp*"],
    "max_depth": 2,
    "use_index": False,
    "ray_conn_id": "r",
}


@pytest.fixture
def slept(monkeypatch):
    """The seconds slept, without sleeping."""
    seconds = []

    async def sleep(delay):
        seconds.append(delay)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return seconds


def events(trigger) -> list:
    async def collect():
        return [event.payload async for event in trigger.run()]

    return asyncio.run(collect())


def answers(monkeypatch, *results):
    """Let each poll answer with, or raise, the next of these."""
    left = list(results)

    def survey(*_arguments):
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(experiment_poller, "survey", survey)


def test_the_wire_form_is_what_older_triggerers_wrote_and_more():
    path, arguments = ExperimentSensorTrigger(**ARGUMENTS).serialize()
    assert path == "airflow_tune_restore.triggers.experiment_sensor.ExperimentSensorTrigger"
    assert arguments == {
        **ARGUMENTS,
        "include": [],
        "exclude": [],
        "max_depth": 4,
        "use_index": True,
        "ray_conn_id": None,
    }


@pytest.mark.parametrize("more", [{}, MORE])
def test_the_wire_form_makes_an_equal_trigger(more):
    path, arguments = ExperimentSensorTrigger(**ARGUMENTS, **more).serialize()
    assert import_string(path)(**arguments).serialize() == (path, arguments)


def test_one_event_carries_all_experiments_of_a_poll(tmp_path, slept):
    for name in ("one", "two"):
        make_experiment(tmp_path / name, [make_row(status="ERROR")])
    trigger = ExperimentSensorTrigger(**{**ARGUMENTS, "prefix": str(tmp_path)})
    (event,) = events(trigger)
    assert [item["name"] for item in event["experiments"]] == ["one", "two"]


def test_what_is_left_out_of_a_search_fires_nothing(tmp_path, slept):
    make_experiment(tmp_path / "team_a" / "one", [make_row(status="ERROR")])
    make_experiment(tmp_path / "team_b" / "two", [make_row(status="ERROR")])
    trigger = ExperimentSensorTrigger(
        **{**ARGUMENTS, "prefix": str(tmp_path), "exclude": ["team_b"]}
    )
    (event,) = events(trigger)
    assert [item["name"] for item in event["experiments"]] == ["one"]


def test_the_first_event_does_not_come_too_soon(monkeypatch, slept):
    answers(monkeypatch, [make_report("a")])
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _loop: 100.0)
    events(ExperimentSensorTrigger(**{**ARGUMENTS, "poke_interval": 1.0}))
    assert slept == [FIRST_EVENT_SECONDS]


def test_it_polls_until_there_is_something(monkeypatch, slept):
    answers(monkeypatch, [], [make_report("b", Health.RUNNING)], [make_report("a")])
    (event,) = events(ExperimentSensorTrigger(**{**ARGUMENTS, "prefix": "/sweeps"}))
    assert [item["experiment"] for item in event["experiments"]] == ["/sweeps/a"]
    assert slept[:2] == [60.0, 60.0]


def test_a_sensor_that_pokes_without_a_pause_polls_with_one(monkeypatch, slept):
    answers(monkeypatch, [], StorageError("gone"), [make_report("a")])
    events(ExperimentSensorTrigger(**{**ARGUMENTS, "poke_interval": 0.0}))
    assert slept[:-1] == [1.0, 2.0]


def test_a_store_that_fails_is_asked_again_later_and_later(monkeypatch, slept):
    answers(
        monkeypatch,
        StorageError("gone"),
        StorageError("gone"),
        [],
        RuntimeError("a bug"),
        [make_report("a")],
    )
    events(ExperimentSensorTrigger(**ARGUMENTS))
    assert slept[:-1] == [120.0, 240.0, 60.0, 120.0]


def test_what_waiting_cannot_mend_ends_the_waiting(monkeypatch, slept):
    answers(monkeypatch, InvalidInputError("There is no connection 'minio' in Airflow."))
    assert events(ExperimentSensorTrigger(**ARGUMENTS)) == [
        {"error": "There is no connection 'minio' in Airflow."}
    ]


def test_one_poll_serves_all_that_look_in_the_same_place_in_the_same_way():
    one = ExperimentSensorTrigger(**ARGUMENTS).shared_stream_key()
    other = {**ARGUMENTS, "health": ["finished"]}
    assert one == ExperimentSensorTrigger(**other).shared_stream_key()
    for name, value in {**MORE, "prefix": "/b", "stale_after_seconds": 1.0}.items():
        different = ExperimentSensorTrigger(**{**ARGUMENTS, name: value}).shared_stream_key()
        assert different != one, name


def test_an_empty_prefix_is_a_warning_once_and_not_at_every_poll(
    tmp_path, slept, caplog, monkeypatch
):
    search = experiment_poller.survey
    left = [4]

    def survey(*arguments):
        left[0] -= 1
        if not left[0]:
            make_experiment(tmp_path / "errored", [make_row("a1", status="ERROR")])
        return search(*arguments)

    monkeypatch.setattr(experiment_poller, "survey", survey)
    with caplog.at_level("INFO"):
        events(ExperimentSensorTrigger(**{**ARGUMENTS, "prefix": str(tmp_path)}))
    said = [record for record in caplog.records if str(tmp_path) in record.getMessage()]
    assert [record.levelname for record in said][:4] == ["WARNING", "INFO", "INFO", "INFO"]
