"""Judges the outcome of a trial for its task, wherever the trial ran."""

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_tune_restore.exceptions import TrialFailedError
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.protocol.numbers import strict_json
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.ledger import read_history, seen_before
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow.sdk.types import Logger


def judge(
    store: ObjectStore,
    plan: RestorePlan,
    item: TrialXCom,
    outcome: RunnerOutcome,
    *,
    log: "Logger",
    because: str = "",
) -> dict[str, Any]:
    """Return the summary of a finished trial; every other outcome fails the task.

    `because` is the reason why it was stopped, if it is known.

    Raises:
        TrialFailedError: If the trial failed again.
        AirflowException: If it was stopped; a retry continues from its snapshot.
        AirflowFailException: If it was refused or fenced.
    """
    cause = outcome.describe_error()
    name = f"Trial {item.trial_id} of {plan.experiment}"
    match Result(outcome.result):
        case Result.FINISHED:
            log.info("%s finished at iteration %d.", name, outcome.iteration)
            return {
                "experiment": item.experiment,
                "trial_id": item.trial_id,
                "final_trial_id": outcome.final_trial_id,
                "status": outcome.status,
                "iteration": outcome.iteration,
                "metrics": strict_json(outcome.metrics),
                "attempt": outcome.attempt,
            }
        case Result.FAILED:
            kept = f"{cause}, after iteration {outcome.iteration}"
            final = _why_final(store, plan, outcome)
            why = outcome.cause or Cause.UNKNOWN.value
            raise TrialFailedError(plan.experiment, item.trial_id, kept, why, final)
        case Result.INTERRUPTED if outcome.cause == Cause.NO_ROOM:
            raise AirflowException(f"{name} found no room; its snapshot is saved. {cause}")
        case Result.INTERRUPTED:
            why = f" ({because})" if because else ""
            raise AirflowException(
                f"{name} was stopped at iteration {outcome.iteration}{why}; its snapshot is saved, and a "
                "retry continues from it."
            )
        case Result.REFUSED:
            raise AirflowFailException(f"{name} was not started: {cause}")
        case Result.FENCED:
            raise AirflowFailException(
                f"{name} was stopped: a newer attempt or restore has taken over. {cause}"
            )


def _why_final(store: ObjectStore, plan: RestorePlan, outcome: RunnerOutcome) -> str:
    """Return the reason why a retry would fail in the same way; "" if it may succeed."""
    if plan.is_whole_experiment:
        return "The whole-experiment run has ended the trial; the next restore resumes it"
    failures = read_history(store, plan.restore_id, outcome.trial_id).failures
    before = seen_before(failures, plan.restore_id, outcome.attempt)
    if before is None:
        return ""
    return (
        f"It failed at the same place and iteration before ({before.place}, attempt {before.attempt} of "
        f"restore {before.restore_id}), so it is not retried"
    )
