"""The notifier of a sweep's task that failed. tests/airflow has the test with a real Airflow."""

from types import SimpleNamespace

import pytest
from airflow.dag_processing.processor import ToDagProcessor
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, OKResponse, ToTask
from pydantic import TypeAdapter

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.notifications.trigger_recovery import TriggerRecoveryNotifier
from tests.support.airflow.context import make_context


class Line:
    """Stands in for the line to the supervisor; Airflow's own messages go over it."""

    def __init__(self, understands, answer=None):
        self.body_decoder = TypeAdapter(understands)
        self.sent = []
        self.answer = answer or OKResponse(ok=True)

    def send(self, message):
        self.sent.append(message)
        return self.answer


@pytest.fixture
def line(monkeypatch):
    made = Line(ToTask)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    return made


def notify(context=None, **arguments):
    notifier = TriggerRecoveryNotifier(
        **{"dag_id": "recover", "experiment": "s3://minio@bucket/a b/exp,1", **arguments}
    )
    notifier.notify(context if context is not None else make_context())


def test_the_dag_is_started_for_just_that_experiment(line):
    notify(extra_conf={"stale_after": 0})
    (message,) = line.sent
    assert message.dag_id == "recover"
    assert message.conf == {"stale_after": 0, "experiment": "s3://minio@bucket/a b/exp,1"}
    assert message.run_id.startswith("recovery__exp_1__")


def test_the_options_of_an_address_travel_and_are_no_part_of_the_runs_id(line):
    address = "s3://minio@bucket/exp?endpoint_override=http://host:1/x"
    notify(experiment=address)
    (message,) = line.sent
    assert message.conf["experiment"] == address
    assert message.run_id.startswith("recovery__exp__")


def test_a_callback_that_runs_twice_for_one_try_starts_one_run(line):
    for try_number in (1, 1, 2):
        notify(make_context(try_number=try_number))
    first, again, second = (message.run_id for message in line.sent)
    assert first == again != second


def test_a_run_that_is_there_is_no_failure(monkeypatch):
    made = Line(ToTask, ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    notify()


def test_a_dag_processor_is_not_asked_for_it_would_never_answer(monkeypatch):
    made = Line(ToDagProcessor)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    notify()
    assert made.sent == []


def test_a_secret_in_the_address_goes_nowhere(line):
    with pytest.raises(InvalidInputError) as caught:
        notify(experiment="s3://user:hunter2@bucket/exp")
    assert "hunter2" not in str(caught.value)
    assert line.sent == []


def test_a_dags_own_callback_is_refused_in_words(line):
    with pytest.raises(InvalidInputError, match="callback for tasks"):
        notify(SimpleNamespace(get=lambda _key: None))


@pytest.mark.parametrize(
    "rendered", ["", " ", "None", "s3://bucket", "s3://bucket/sweeps/", "/sweeps/"]
)
def test_a_template_that_rendered_to_nothing_does_not_mean_all_experiments(line, rendered):
    with pytest.raises(InvalidInputError):
        notify(experiment=rendered)
    assert line.sent == []
