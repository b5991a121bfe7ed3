"""A run that is refused while Ray restores it, and trials that were stopped in the middle of a save."""

from types import SimpleNamespace

import pytest

pytest.importorskip("ray.tune")

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from airflow_tune_restore.exceptions import RunnerError
from airflow_tune_restore.runner.tune.controller import GuardedController


@pytest.fixture
def shown(monkeypatch) -> list[Exception]:
    """Stand in for Ray, which logs what `resume` raises with its traceback, and goes on (2.60)."""
    logged: list[Exception] = []

    def restore(self, **_):
        self._resumed = False
        try:
            self.resume()
            self._resumed = True
        except Exception as error:  # noqa: BLE001  as Ray does
            logged.append(error)

    monkeypatch.setattr(TuneController, "__init__", restore)
    return logged


def start(monkeypatch, error: Exception) -> str:
    def fail(self):
        raise error

    monkeypatch.setattr(TuneController, "resume", fail)
    context = SimpleNamespace(source_key="state.json", request=SimpleNamespace(trial_id="a1"))
    with pytest.raises(RunnerError) as raised:
        type("Bound", (GuardedController,), {"context": context})()
    assert raised.value.__cause__ is error
    return str(raised.value)


def test_a_refusal_of_ours_is_one_sentence_without_a_traceback_of_ray(monkeypatch, shown):
    said = start(monkeypatch, RunnerError("Its config is not a mapping."))
    assert said == "Trial a1 could not be restored: Its config is not a mapping. Nothing was run."
    assert shown == []


def test_what_nobody_foresaw_keeps_the_traceback(monkeypatch, shown):
    error = KeyError("trial_data")
    assert "could not be restored" in start(monkeypatch, error)
    assert shown == [error]


@pytest.fixture
def controller():
    """Return one that Ray has not started, with one decision of Ray for each of two trials."""
    made = GuardedController.__new__(GuardedController)
    made._cached_trial_decisions = {"a1": "STOP", "a2": "STOP"}
    return made


def restored(monkeypatch, controller, trial_id, status):
    metadata = SimpleNamespace(last_result={}, last_result_time=1.0)
    trial = SimpleNamespace(trial_id=trial_id, config={}, run_metadata=metadata)
    trial.is_finished = lambda: status in (Trial.ERROR, Trial.TERMINATED)
    monkeypatch.setattr(TuneController, "_restore_trials", lambda *_: [trial])
    return controller._restore_trials({})


def test_a_trial_that_was_stopped_in_a_save_does_not_end_after_its_next_result(
    monkeypatch, controller
):
    """fail_fast stops trials so, and Ray saves the decision with the experiment."""
    restored(monkeypatch, controller, "a1", Trial.TERMINATED)
    assert controller._cached_trial_decisions == {"a2": "STOP"}


def test_a_decision_of_the_scheduler_for_a_running_trial_is_kept_as_in_ray(monkeypatch, controller):
    restored(monkeypatch, controller, "a1", Trial.RUNNING)
    assert set(controller._cached_trial_decisions) == {"a1", "a2"}


def test_a_trial_that_is_stopped_alone_in_a_save_leaves_no_decision_for_its_next_attempt(
    monkeypatch, controller
):
    monkeypatch.setattr(controller, "request_stop_trial", lambda _: None)
    monkeypatch.setattr(controller, "_process_stop_requests", lambda: None)
    controller.stop_alone(SimpleNamespace(trial_id="a1"))
    assert controller._cached_trial_decisions == {"a2": "STOP"}
