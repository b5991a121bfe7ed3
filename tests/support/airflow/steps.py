"""The tasks of a restore, each executed in this process, without a database. For counts and benchmarks.

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow
"""

from typing import Any

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.undo_commit import UndoCommitOperator
from airflow_tune_restore.restore.claim import claim_next_attempt
from tests.support.airflow.context import make_context


def run_plan(experiments: list[str]) -> dict[str, Any]:
    """Plan and start restores of all errored trials of experiments that are known to be dead.

    Returns:
        The XComs of the task, by key.
    """
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=experiments,
        resume_errored=True,
        stale_after=0,
        launcher="ray",  # so no trainable is checked
    )
    return _execute(operator)


def run_commit(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Commit the restores that a plan task has started. Return the XComs of the task, by key."""
    return _execute(CommitRestoreOperator(task_id="commit", outcomes=outcomes))


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


def _execute(operator: Any) -> dict[str, Any]:
    context = make_context()
    returned = operator.execute(context)
    return {**context["ti"].pushed, "return_value": returned}
