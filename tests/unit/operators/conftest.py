"""Experiments to plan for, and a launcher that starts nothing."""

import pytest

from airflow_tune_restore.operators import attempt_task, trainable_check
from tests.support.airflow.context import FakeLauncher
from tests.support.experiments.built import make_experiment, make_row


@pytest.fixture
def errored(tmp_path):
    """Two errored trials and a finished one."""
    return make_experiment(
        tmp_path / "exp",
        [
            make_row("a1", status="ERROR", last_result_time=2.0),
            make_row("a2", status="TERMINATED"),
            make_row("a3", status="ERROR", last_result_time=3.0),
        ],
    )


@pytest.fixture
def launcher(monkeypatch):
    fake = FakeLauncher()
    for module in (attempt_task, trainable_check):
        monkeypatch.setattr(module, "build_launcher", fake.build)
    return fake
