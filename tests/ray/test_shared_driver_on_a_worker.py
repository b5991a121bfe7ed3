"""Six short trials on one worker: a real driver that they share, six tasks, and one that is killed."""

import threading
from pathlib import Path
from typing import Any

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.shared_driver import drivers
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.context import make_context
from tests.support.experiments.sweeps import DAGS, copy_failed_trials, ends
from tests.support.waiting import eventually

COUNT = 6


class Task(threading.Thread):
    """A task of a trial, as Airflow's worker runs it; of several workers, each in a thread here."""

    def __init__(self, item: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.trial_id = item["trial_id"]
        self.operator = RestoreTrialOperator(
            task_id="trial",
            trial=item,
            trainable="example_sweep:train",
            env={
                "EXAMPLE_SWEEP_REPAIRED": "1",
                "PYTHONPATH": str(DAGS),
                "RAY_AUTH_MODE": "disabled",
                "TUNE_GLOBAL_CHECKPOINT_S": "1",
            },
        )
        self.result: dict[str, Any] | None = None
        self.error = ""
        self.start()

    def run(self) -> None:
        try:
            self.result = self.operator.execute(make_context())
        except Exception as error:  # noqa: BLE001  the test looks at it
            self.error = str(error)


def test_six_short_trials_have_one_driver_and_a_killed_task_stops_its_trial_alone(tmp_path: Path):
    experiment = copy_failed_trials(tmp_path / "sweep", COUNT)
    planner = BuildRestorePlanOperator(
        task_id="plan", experiments=str(experiment), resume_errored=True, stale_after=0
    )
    items = planner.execute(make_context())
    store, restore_id = open_store(str(experiment)), items[0]["restore_id"]
    # killed before the driver has begun it: no luck is needed
    killed, *others = [Task(item) for item in items]
    eventually(lambda: AttemptRecords(store, restore_id, killed.trial_id).newest())
    killed.operator.on_kill()
    for task in (killed, *others):
        task.join(300)
    assert [task.error for task in others] == [""] * 5
    assert [(t.result["attempt"], t.result["iteration"]) for t in others] == [(1, 6)] * 5
    assert "was stopped" in killed.error
    outcome = AttemptRecords(store, restore_id, killed.trial_id).outcome(1)
    assert outcome.result == Result.INTERRUPTED
    # cleared, it goes on in a driver of its own
    cleared = Task(next(item for item in items if item["trial_id"] == killed.trial_id))
    cleared.join(300)
    assert cleared.result["attempt"] == 2
    assert drivers(store, restore_id).numbers() == [1]
    eventually(lambda: drivers(store, restore_id).outcome(1))
    assert drivers(store, restore_id).outcome(1).result == Result.FINISHED
    commit_restore(store, restore_id)
    assert ends(experiment) == [("TERMINATED", 6)] * COUNT
