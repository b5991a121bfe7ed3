"""Runs an operator, and returns the state that Airflow gives to its task."""

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from tests.support.airflow.context import make_context

SUCCESS, SKIPPED, FAILED, RETRIED = "success", "skipped", "failed", "up_for_retry"


def run(operator, context=None):
    """Return the state that Airflow gives to the task, its result and its XComs."""
    context = context or make_context()
    result = None
    try:
        result = operator.execute(context)
        state = SUCCESS
    except AirflowSkipException:
        state = SKIPPED
    except AirflowFailException:
        state = FAILED
    except AirflowException:
        state = RETRIED
    return state, result, context["ti"].pushed


def plan(experiments, **arguments):
    arguments = {"trainable": "m:train", **arguments}
    return BuildRestorePlanOperator(
        task_id="plan",
        experiments=[str(e) for e in experiments],
        resume_errored=True,
        stale_after=0,
        **arguments,
    )
