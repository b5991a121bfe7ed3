"""Experiments to plan for, and a launcher that starts nothing."""

import pytest

from airflow_tune_restore.operators import attempt_task, trainable_check
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from tests.support.airflow.context import FakeLauncher, make_context
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
def item(errored):
    """The item of the trial that a plan of `errored` runs first."""
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=str(errored), resume_errored=True, stale_after=0
    )
    return operator.execute(make_context())[0]


@pytest.fixture
def launcher(monkeypatch):
    fake = FakeLauncher()
    for module in (attempt_task, trainable_check):
        monkeypatch.setattr(module, "build_launcher", fake.build)
    return fake
