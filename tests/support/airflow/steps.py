"""The tasks of a restore, each executed in this process, without a database. For counts and benchmarks.

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow
"""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.undo_commit import UndoCommitOperator
from airflow_tune_restore.restore.claim import claim_next_attempt
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.version_compat import AirflowSkipException
from tests.support.airflow.context import make_context

DEFAULT_RUN = "run-1"


def run_find(prefix: str) -> dict[str, Any]:
    """Search a prefix once. Return the XComs of the task, by key."""
    return _execute(FailedTuneExperimentSensor(task_id="find", prefix=prefix, wait=False))


def run_plan(experiments: Any, run_id: str = DEFAULT_RUN, **arguments: Any) -> dict[str, Any]:
    """Plan and start restores of all errored trials of experiments that are known to be dead.

    Returns:
        The XComs of the task, by key.
    """
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments="{{ found }}",
        resume_errored=True,
        stale_after=0,
        launcher="ray",  # so no trainable is checked
        **arguments,
    )
    operator.experiments = experiments  # as Airflow renders it, also a packed list
    return _execute(operator, run_id)


def run_commit(outcomes: Any, left_alone: Any = None) -> dict[str, Any]:
    """Commit the restores that a plan task has started. Return the XComs of the task, by key."""
    operator = CommitRestoreOperator(task_id="commit", outcomes=outcomes, left_alone=left_alone)
    return _execute(operator)


def run_repeat(totals: Any, run_id: str) -> str | None:
    """Return the id of the DAG run that the task would start after this one; None if it is skipped."""
    from airflow_tune_restore.operators import repeat_run  # older releases do not have it

    repeat_run.start_dag_run = lambda *_: ""  # it would ask Airflow
    dag_run = SimpleNamespace(dag_id="nightly", run_id=run_id, run_after=datetime.now(UTC), conf={})
    operator = repeat_run.RepeatRunOperator(task_id="repeat", totals=totals)
    context: Any = {"dag_run": dag_run, "dag": SimpleNamespace(timezone=UTC)}
    try:
        return operator.execute(context)["run_id"]
    except AirflowSkipException:
        return None


def begin_trial(item: dict[str, Any]) -> None:
    """Do what the task of one trial does before its runner starts: read, and claim an attempt."""
    operator = RestoreTrialOperator(task_id="trial", trial=item, trainable="project.train:train")
    task = operator.open_task(item["restore_id"])
    settings = operator.runner_settings()
    claim_next_attempt(task.store, task.plan, task.trial_id, settings, log=operator.log.info)


def run_undo(experiment: str) -> dict[str, Any]:
    """Undo the last commit. Return the XComs of the task, by key."""
    name = experiment.rpartition("/")[2]
    return _execute(UndoCommitOperator(task_id="undo", experiment=experiment, confirm=name))


def _execute(operator: Any, run_id: str = DEFAULT_RUN) -> dict[str, Any]:
    context = make_context(run_id=run_id)
    returned = operator.execute(context)
    return {**context["ti"].pushed, "return_value": returned}
