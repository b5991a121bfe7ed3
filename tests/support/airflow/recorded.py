"""Runners that leave what a trial leaves, and train nothing: for a DAG file of a real Airflow.

from tests.support.airflow import recorded
recorded.install()                                       from here on no runner of this process is started
"""

from typing import Any

from airflow_tune_restore.operators import attempt_task, trainable_check
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.context import FakeLauncher
from tests.support.experiments.built import make_row, make_state
from tests.support.records import leave_outcome

ITERATION = 3


def finish(request: RunnerRequest) -> None:
    """Leave the snapshot and the outcome of a trial that has finished."""
    store = open_store(request.experiment)
    row = make_row(
        request.new_trial_id or request.trial_id,
        status="TERMINATED",
        last_result={"training_iteration": ITERATION},
    )
    key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
    store.put(key, make_state([row]))
    leave_outcome(store, request, "finished", iteration=ITERATION)


def install() -> None:
    """Let every trial of this process finish at once."""
    launcher: Any = FakeLauncher(on_start=finish)
    for module in (attempt_task, trainable_check):
        module.build_launcher = launcher.build
