"""The meaning of an API server's answers: patience with all but a 404 for that very pod."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client.exceptions import ApiException
from kubernetes_asyncio.client.exceptions import ApiException as AsyncApiException
from urllib3.exceptions import ProtocolError

from airflow_tune_restore.launch.kubernetes import api
from airflow_tune_restore.launch.kubernetes.api import Patience


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """A clock that only moves during waits."""
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds

    async def sleep_async(seconds):
        sleep(seconds)

    monkeypatch.setattr(api, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    monkeypatch.setattr(api.asyncio, "sleep", sleep_async)
    return clock


def answers(*errors: Exception):
    left = list(errors)

    def ask() -> str:
        if left:
            raise left.pop(0)
        return "pod"

    return ask


def answer(status: int, *, reason: str = "", **details: str) -> Exception:
    error = ApiException(status=status, reason=reason)
    body = {"kind": "Status", "reason": reason, "message": "in words", "details": details}
    error.body = json.dumps(body)
    return error


def never(_error: BaseException) -> bool:
    return False


OUTAGES = [
    *(answer(status) for status in (400, 401, 403, 404, 405, 410, 429, 500, 502, 503, 504)),
    ApiException(status=0),
    AsyncApiException(status=503),
    ProtocolError("cut"),
    TimeoutError(),
    ConnectionResetError(),
    api.UnreadableAnswerError("Invalid value for `containers`, must not be `None`"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_an_outage_is_waited_for(error, waited):
    assert Patience(never).ask(answers(error, error)) == "pod"
    assert waited[0] == 2 * api.WAIT_SECONDS

    ask = answers(error, error)

    async def ask_async():
        return ask()

    assert asyncio.run(Patience(never).ask_async(ask_async)) == "pod"


def test_a_final_answer_and_an_error_of_ours_are_not(waited):
    with pytest.raises(ApiException):
        Patience(lambda error: api.is_gone(error, "p")).ask(answers(gone("p")))
    with pytest.raises(KeyError):
        Patience(never).ask(answers(KeyError("ours")))
    assert waited[0] == 0


def gone(name: str) -> Exception:
    error = ApiException(status=404, reason="Not Found")
    body = {"kind": "Status", "reason": "NotFound", "details": {"kind": "pods", "name": name}}
    error.body = json.dumps(body)
    return error


def test_patience_ends(waited):
    with pytest.raises(ApiException):
        Patience(never).ask(answers(*[ApiException(status=500)] * 1000))
    assert waited[0] == pytest.approx(api.OUTAGE_SECONDS, abs=2 * api.WAIT_SECONDS)


def test_patience_with_refusals_may_end_sooner(waited):
    with pytest.raises(ApiException):
        Patience(never, refusal_seconds=60).ask(answers(*[ApiException(status=403)] * 1000))
    assert waited[0] == pytest.approx(60, abs=2 * api.WAIT_SECONDS)


def test_credentials_are_renewed_where_they_are_not_known():
    renewed = []
    patience = Patience(never, renew=lambda: renewed.append(1))
    assert patience.ask(answers(answer(401), answer(500), answer(401))) == "pod"
    assert renewed == [1, 1]


def test_an_outage_is_logged_once_and_again_when_it_changes(caplog):
    Patience(never).ask(answers(*[answer(500)] * 5, *[answer(403)] * 5))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the pod continues. Asking again" in caplog.text
    assert "docs/kubernetes/rbac.yaml" in caplog.records[1].message


def test_a_role_is_not_named_for_credentials_that_are_refused():
    assert "rbac" not in api.describe_outage(answer(401))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["kind", "details", "name", "reason", "message", "code"]), inner
    ),
)  # fmt: skip


@given(st.integers(200, 599), st.text() | JSON.map(json.dumps) | st.none())
def test_nothing_but_a_404_for_that_very_pod_says_that_it_is_gone(status, body):
    error = ApiException(status=status)
    error.body = body
    assert not api.is_gone(error, "tune-a-1")
    assert api.is_outage(error, "tune-a-1")
    api.describe_error(error)
    for kind, name in (("pods", "tune-a-2"), ("nodes", "tune-a-1"), ("pods", "")):
        error.body = json.dumps({"kind": "Status", "details": {"kind": kind, "name": name}})
        assert not api.is_gone(error, "tune-a-1")
    assert api.is_gone(gone("tune-a-1"), "tune-a-1")


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (answer(403, reason="Forbidden", name="p"), True),  # a quota, a missing service account
        (answer(403, reason="Forbidden"), False),  # a role, which may not be loaded yet
        (answer(409, reason="AlreadyExists"), True),
        (answer(409, reason="Conflict"), False),
        (answer(422, reason="Invalid"), True),
        (answer(400, reason="BadRequest"), True),
        (ApiException(status=400), False),  # a proxy
        (answer(500), False),
        (answer(401), False),
        (answer(404), False),
    ],
)
def test_a_new_pod_is_refused_by_whoever_has_looked_at_it(error, is_refusal):
    assert api.is_refusal(error, "p") == is_refusal


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_webhook_that_denies_a_pod_refuses_it(status):
    error = ApiException(status=status)
    message = 'admission webhook "policy.example.com" denied the request: no latest tags'
    error.body = json.dumps({"kind": "Status", "message": message})
    assert api.is_refusal(error, "p")
    assert not api.is_mistake(error)


def test_only_a_pod_or_a_status_answers_a_deletion():
    api.check_deletion(SimpleNamespace(kind="Status", metadata=None), "p")
    api.check_deletion(SimpleNamespace(kind="Pod", metadata=SimpleNamespace(name="p")), "p")
    for nothing in (None, SimpleNamespace(kind=None, metadata=None)):
        with pytest.raises(api.UnreadableAnswerError):
            api.check_deletion(nothing, "p")


def test_a_missing_namespace_refuses_a_pod():
    error = ApiException(status=404)
    error.body = json.dumps({"kind": "Status", "details": {"kind": "namespaces", "name": "n"}})
    assert api.is_refusal(error, "p")


def test_only_the_pod_that_was_asked_for_is_an_answer():
    pod = SimpleNamespace(metadata=SimpleNamespace(name="p"), spec=1, status=1)
    assert api.check_answer(pod, "p") is pod
    other = SimpleNamespace(metadata=SimpleNamespace(name="q"), spec=1, status=1)
    for nothing in (None, "<html>", other, SimpleNamespace(metadata=None)):
        with pytest.raises(api.UnreadableAnswerError):
            api.check_answer(nothing, "p")


def test_an_answer_is_told_in_one_line_without_its_headers():
    error = ApiException(status=403, reason="Forbidden")
    error.body = '{"kind": "Status", "message": "pods is forbidden"}'
    error.headers = {"Audit-Id": "secret"}
    assert api.describe_error(error) == "403 Forbidden: pods is forbidden"
    error.body = "<html>"
    assert api.describe_error(error) == "403 Forbidden"
    assert api.describe_error(ValueError("one\ntwo")) == "one two"
