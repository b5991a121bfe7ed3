"""The message of a run that is refused while Ray restores it."""

from types import SimpleNamespace

import pytest

pytest.importorskip("ray.tune")

from ray.tune.execution.tune_controller import TuneController

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
