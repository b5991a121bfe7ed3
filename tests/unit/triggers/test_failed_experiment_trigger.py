"""The trigger: one event, not too soon, and patience with a store that fails."""

import asyncio

import pytest
from airflow.sdk.module_loading import import_string

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.triggers import failed_experiment
from airflow_tune_restore.triggers.failed_experiment import (
    FIRST_EVENT_SECONDS,
    FailedExperimentTrigger,
)
from tests.builders import make_experiment, make_row

ARGUMENTS = {
    "prefix": "s3://minio@bucket/a",
    "health": ["errored", "interrupted"],
    "stale_after_seconds": 1800.0,
    "poke_interval": 60.0,
}


@pytest.fixture
def slept(monkeypatch):
    """The seconds slept, without sleeping."""
    seconds = []

    async def sleep(delay):
        seconds.append(delay)

    monkeypatch.setattr(failed_experiment.asyncio, "sleep", sleep)
    return seconds


def events(trigger) -> list:
    async def collect():
        return [event.payload async for event in trigger.run()]

    return asyncio.run(collect())


def answers(monkeypatch, *results):
    """Let each poll answer with, or raise, the next of these."""
    left = list(results)

    def find(*args, **kwargs):
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(failed_experiment, "find_experiments", find)


def test_the_wire_form_is_what_older_triggerers_wrote():
    path, arguments = FailedExperimentTrigger(**ARGUMENTS).serialize()
    assert path == "airflow_tune_restore.triggers.failed_experiment.FailedExperimentTrigger"
    assert arguments == ARGUMENTS


def test_the_wire_form_makes_an_equal_trigger():
    path, arguments = FailedExperimentTrigger(**ARGUMENTS).serialize()
    assert import_string(path)(**arguments).serialize() == (path, arguments)


def test_one_event_carries_all_experiments_of_a_poll(tmp_path, slept):
    for name in ("one", "two"):
        make_experiment(tmp_path / name, [make_row(status="ERROR")])
    trigger = FailedExperimentTrigger(**{**ARGUMENTS, "prefix": str(tmp_path)})
    (event,) = events(trigger)
    assert [item["name"] for item in event["experiments"]] == ["one", "two"]


def test_the_first_event_does_not_come_too_soon(monkeypatch, slept):
    answers(monkeypatch, [{"experiment": "/a"}])
    events(FailedExperimentTrigger(**{**ARGUMENTS, "poke_interval": 1.0}))
    assert slept == [FIRST_EVENT_SECONDS]


def test_it_polls_until_there_is_something(monkeypatch, slept):
    answers(monkeypatch, [], [], [{"experiment": "/a"}])
    assert events(FailedExperimentTrigger(**ARGUMENTS)) == [{"experiments": [{"experiment": "/a"}]}]
    assert slept == [60.0, 60.0, 60.0]


def test_a_store_that_fails_is_asked_again_later_and_later(monkeypatch, slept):
    answers(monkeypatch, StorageError("gone"), StorageError("gone"), [], [{"experiment": "/a"}])
    events(FailedExperimentTrigger(**ARGUMENTS))
    assert slept == [60.0, 120.0, 240.0, 60.0]


def test_what_waiting_cannot_mend_ends_the_waiting(monkeypatch, slept):
    answers(monkeypatch, InvalidInputError("There is no connection 'minio' in Airflow."))
    assert events(FailedExperimentTrigger(**ARGUMENTS)) == [
        {"error": "There is no connection 'minio' in Airflow."}
    ]
