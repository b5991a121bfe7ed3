"""Answers come in time, as strict JSON, and an error is one sentence."""

import asyncio
import json
import logging
import threading

import pytest
from fastapi import HTTPException

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    LeaseHeldError,
    StorageError,
    UnknownTrialError,
)
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.plugin.answers import answer
from airflow_tune_restore.plugin.places import THREADS, Places
from airflow_tune_restore.plugin.settings import Settings

PLACE = Address("s3://bucket/exp", "conn")


def answered(function, *, places=None, prefix="a", seconds=60.0):
    places = places or Places(Settings())
    response = asyncio.run(answer(places, prefix, function, address=PLACE, seconds=seconds))
    return response.status_code, json.loads(response.body, parse_constant=pytest.fail)


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInputError("no"), 400),
        (UnknownTrialError("no"), 404),
        (KeyNotFoundError("s3://bucket/exp", "x"), 404),
        (LeaseHeldError("s3://bucket/exp", "r1", "me", 5.0), 409),
        (StorageError("no"), 502),
        (HTTPException(404, "no"), 404),
    ],
)
def test_an_error_has_its_status_and_its_sentence(error, status):
    found, body = answered(raising(error))
    assert found == status
    assert list(body) == ["detail"]


def test_a_message_names_the_address_with_its_connection():
    _, body = answered(raising(InvalidInputError("s3://bucket/exp is broken\n\x1b[31mnow")))
    assert body == {"detail": "s3://conn@bucket/exp is broken now"}


def test_an_unexpected_error_is_told_without_its_text_and_logged_with_its_traceback(caplog):
    status, body = answered(raising(ZeroDivisionError("secret")))
    assert status == 500
    assert "ZeroDivisionError" in body["detail"]
    assert "secret" not in body["detail"]
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)


def test_numbers_that_json_does_not_have_become_null():
    assert answered(lambda: {"x": [float("nan"), float("inf"), 1.5]})[1] == {"x": [None, None, 1.5]}


def test_a_store_that_does_not_answer_holds_up_neither_the_browser_nor_other_prefixes():
    places, go_on = Places(Settings()), threading.Event()
    try:
        for _ in range(THREADS + 1):  # more than it has threads
            status, body = answered(go_on.wait, places=places, seconds=0.0)
            assert (status, "could not be read within" in body["detail"]) == (502, True)
        assert answered(lambda: 5, places=places, prefix="b") == (200, 5)
    finally:
        go_on.set()
