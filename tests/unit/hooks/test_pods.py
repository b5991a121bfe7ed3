"""Patience with an API server that is out of order, and none with one that refuses."""

import asyncio

import pytest
from kubernetes.client.exceptions import ApiException
from kubernetes_asyncio.client.exceptions import ApiException as AsyncApiException
from urllib3.exceptions import ProtocolError

from airflow_tune_restore.hooks import pods


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """A clock that only moves while somebody waits."""
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds

    async def sleep_async(seconds):
        sleep(seconds)

    monkeypatch.setattr(pods.time, "sleep", sleep)
    monkeypatch.setattr(pods.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pods.asyncio, "sleep", sleep_async)
    return clock


def answers(*errors: Exception):
    left = list(errors)

    def ask() -> str:
        if left:
            raise left.pop(0)
        return "pod"

    return ask


OUTAGES = [
    ApiException(status=500),
    ApiException(status=429),
    ApiException(status=0),
    AsyncApiException(status=503),
    ProtocolError("cut"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_an_outage_is_waited_for(error, waited):
    assert pods.patiently(answers(error, error)) == "pod"
    assert waited[0] == 2 * pods.WAIT_SECONDS

    ask = answers(error, error)

    async def ask_async():
        return ask()

    assert asyncio.run(pods.patiently_async(ask_async)) == "pod"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_a_refusal_is_not(status, waited):
    with pytest.raises(ApiException):
        pods.patiently(answers(ApiException(status=status)))
    assert waited[0] == 0


def test_patience_ends(waited):
    with pytest.raises(ApiException):
        pods.patiently(answers(*[ApiException(status=500)] * 1000))
    assert waited[0] == pytest.approx(pods.OUTAGE_SECONDS, abs=2 * pods.WAIT_SECONDS)


def test_an_answer_is_told_in_one_line_without_its_headers():
    error = ApiException(status=403, reason="Forbidden")
    error.body = '{"message": "pods is forbidden"}'
    error.headers = {"Audit-Id": "secret"}
    assert pods.describe_error(error) == "403 Forbidden: pods is forbidden"
    error.body = "<html>"
    assert pods.describe_error(error) == "403 Forbidden"
    assert pods.describe_error(ValueError("one\ntwo")) == "one"
