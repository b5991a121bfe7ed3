"""The approval: Airflow's own, but it never asks for a yes to another page than it was given.

Airflow's supervisor is stood in for, because it speaks to a task alone. `tests/airflow` has a real one.
"""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.execution_time import task_runner

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.approve_restores import ApproveRestoresOperator
from airflow_tune_restore.version_compat import AirflowFailException
from tests.support.airflow.context import make_context

TIMEOUT = {"error": "too late", "error_type": "timeout"}
BROKEN = {"error": "lost", "error_type": "unknown"}


def approve(**arguments) -> ApproveRestoresOperator:
    given = {"task_id": "approve", "subject": "s", "body": "b", **arguments}
    return ApproveRestoresOperator(**given)


def parks(operator, context) -> bool:
    """Whether the task parks, to wait for a person."""
    try:
        operator.execute(context)
    except BaseException as error:
        if type(error).__name__ in ("TaskAwaitingInput", "TaskDeferred"):
            return True
        raise
    return False


@pytest.fixture
def context():
    made = make_context()
    made["ti"].id = "01900000-0000-7000-8000-000000000000"
    made["task_instance"] = made["ti"]
    return made


@pytest.fixture
def sent(monkeypatch):
    """What the task asks its supervisor for; it shows a request of its own if one is given."""
    asked = []

    def send(msg):
        asked.append(msg)
        return send.shown or msg

    send.shown = None
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(send=send), raising=False)
    asked.append(send)
    return asked


def test_it_asks_with_the_page_and_the_users(context, sent):
    operator = approve(assigned_users=[{"id": "1", "name": "alice"}], defaults="Reject")
    assert parks(operator, context)
    for message in sent[1:]:  # the first one creates the request, whatever the second one holds
        assert (message.subject, message.body, message.defaults) == ("s", "b", ["Reject"])
        assert [user.name for user in message.assigned_users] == ["alice"]


def test_it_never_asks_for_a_yes_to_another_page(context, sent):
    told = []
    sent[0].shown = SimpleNamespace(subject="s", body="an older page")
    with pytest.raises(AirflowFailException, match="new DAG run: airflow dags trigger nightly"):
        approve(notifiers=[told.append]).execute(context)
    assert told == []


def test_without_an_answer_it_fails_for_good(context):
    with pytest.raises(AirflowFailException, match=r"Nobody has answered in time\. Nothing was st"):
        approve().execute_complete(context, TIMEOUT)


def test_another_error_is_as_airflow_has_it(context):
    with pytest.raises(Exception, match="lost") as caught:
        approve().execute_complete(context, BROKEN)
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize("given", [timedelta(seconds=90), 90, "90"])
def test_a_timeout_is_a_span_of_time(given):
    operator = approve(response_timeout=given)
    waits = {getattr(operator, name, None) for name in ("response_timeout", "execution_timeout")}
    assert waits - {None} == {timedelta(seconds=90)}


def test_a_timeout_that_is_none_is_refused():
    with pytest.raises(InvalidInputError, match="approval_timeout='soon'"):
        approve(response_timeout="soon")
