"""The end of the last line of a task: what happens next."""

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow.sdk import Context

from airflow_tune_restore.exceptions import (
    RestoreEndedError,
    RunnerDiedError,
    TrialFailedError,
    TrialStoppedError,
    TuneRestoreError,
)
from airflow_tune_restore.hooks.airflow_errors import PERMANENT
from airflow_tune_restore.hooks.dag_runs import trigger_command
from airflow_tune_restore.version_compat import RetryAction, decide_retry

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

KEPT_BY_COMMIT = "the commit keeps what its newest snapshot holds"
COMMITTED_NOW = "the samples that it has drawn are committed"
KEPT_IN_EXPERIMENT = "the experiment holds what the sweep has done, and can be restored"
"""What becomes of the work of a task without a retry: of a trial, of a continued search, of a sweep."""

_OF_AN_ATTEMPT = (TrialFailedError, RunnerDiedError, TrialStoppedError)
_MINUTE, _LONG = timedelta(minutes=1), timedelta(minutes=2)


def describe_next(
    operator: "BaseOperator", context: Context, error: TuneRestoreError, *, kept: str
) -> str:
    """Return what happens after an error of this package: a retry (when, which one), or none (why).

    "" if the text of the error has it. `kept` is what becomes of the work without a retry.
    """
    if isinstance(error, RestoreEndedError):
        return ""  # its own text has it
    if isinstance(error, TrialFailedError):
        kept = error.kept or kept
        if error.final:
            return ""
    if isinstance(error, PERMANENT):
        return "it is not retried, because a retry would end in the same way"
    ti = context["ti"]
    if ti.try_number > ti.max_tries:
        return f"no retry is left: {kept}"
    decision = decide_retry(operator, error, context)
    if decision.action is RetryAction.FAIL:
        return f"the retry policy refuses a retry ({decision.reason}): {kept}"
    wait = _describe_wait(operator, decision.retry_delay)
    attempt = f", as attempt {error.attempt + 1}" if isinstance(error, _OF_AN_ATTEMPT) else ""
    return f"Airflow retries it {wait} (try {ti.try_number + 1} of {ti.max_tries + 1}){attempt}"


def describe_next_run(context: Context) -> str:
    """Return how a person is asked again: in this DAG run, Airflow keeps the page that it has shown."""
    return f"To ask for a new yes, start a new DAG run: {trigger_command(context['dag_run'])}"


def _describe_wait(operator: "BaseOperator", given: timedelta | None) -> str:
    wait = operator.retry_delay if given is None else given
    if wait <= timedelta(0):
        return "at once"
    or_more = " or more" if given is None and operator.retry_exponential_backoff else ""
    if wait < _LONG:
        return f"in {wait.total_seconds():.0f} s{or_more}"
    return f"in {round(wait / _MINUTE, 1):g} min{or_more}"
