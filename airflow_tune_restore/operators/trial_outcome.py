"""Judges the outcome of a trial for its task, wherever the trial ran."""

from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import (
    RestFailedError,
    RunnerRefusedError,
    TrialFailedError,
    TrialStoppedError,
)
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.numbers import strict_json
from airflow_tune_restore.protocol.printable import first_of
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.history import History, seen_before
from airflow_tune_restore.restore.ledger import read_history
from airflow_tune_restore.restore.paused import (
    is_window_over,
    paused_error,
    saved_iteration,
)
from airflow_tune_restore.restore.plan import RestorePlan, release_command
from airflow_tune_restore.restore.summary import NO_OUTCOME
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

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

    `because` is the reason why it was stopped, if it is known. Where a whole-experiment run has more
    trials than tasks, the task of the run itself also fails if a trial without a task did not finish.

    Raises:
        TrialFailedError: If the trial failed again.
        RestFailedError: If trials failed that the task follows together.
        TrialStoppedError: If it was stopped, or its runner broke off.
        RestorePausedError: If it was paused, or stopped when the window of the restore had ended.
        RunnerRefusedError: If it was refused or fenced.
    """
    cause = outcome.describe_error()
    name = f"Trial {item.trial_id} of {plan.experiment}"
    match Result(outcome.result):
        case Result.FINISHED:
            if item.trial_id == WHOLE_EXPERIMENT:
                _refuse_failed_rest(store, plan)
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
            raise _failed(store, plan, item, outcome)
        case Result.PAUSED:
            raise paused_error(plan, item.trial_id, saved_iteration(outcome))
        case Result.INTERRUPTED if is_window_over(store, plan):
            log.info("%s %s.", name, _why_stopped(outcome, because))
            raise paused_error(plan, item.trial_id, saved_iteration(outcome))
        case Result.INTERRUPTED:
            reason = _why_stopped(outcome, because)
            raise TrialStoppedError(plan.experiment, item.trial_id, reason, outcome.attempt)
        case Result.REFUSED:
            raise RunnerRefusedError(f"{name} was not started: {cause}")
        case Result.FENCED:
            raise RunnerRefusedError(
                f"{name} was stopped, because a newer attempt or restore has taken over: {cause}"
            )


def _refuse_failed_rest(store: ObjectStore, plan: RestorePlan) -> None:
    """Raise if one of the trials without a task of their own has not finished."""
    if not plan.rest:
        return
    records = RestoreRecords(store, plan.restore_id)
    ids = [trial.trial_id for trial in plan.rest]
    outcomes = for_each(lambda trial_id: records.of(trial_id).outcome_or_interrupted(), ids)
    failed = [
        f"{trial_id} ({NO_OUTCOME if outcome is None else outcome.describe_error().rstrip('.')})"
        for trial_id, outcome in zip(ids, outcomes, strict=True)
        if outcome is None or outcome.result != Result.FINISHED
    ]
    if failed:
        raise RestFailedError(plan.experiment, len(failed), len(ids), first_of(failed))


def _failed(
    store: ObjectStore, plan: RestorePlan, item: TrialXCom, outcome: RunnerOutcome
) -> TrialFailedError:
    history = read_history(store, plan, outcome.trial_id)
    place = f", at {outcome.place}" if outcome.place else ""
    kept = f"the commit keeps its progress up to iteration {outcome.iteration}"
    if history.quarantine_reason(plan.choices.max_attempts):
        release = release_command(item.experiment, item.trial_id)
        kept += f" and puts it in quarantine, until you run {release}"
    else:
        kept += ", and the next restore with resume_errored=True resumes it"
    return TrialFailedError(
        plan.experiment,
        item.trial_id,
        f"{outcome.describe_error()}{place}, after iteration {outcome.iteration}",
        outcome.cause or Cause.UNKNOWN.value,
        _why_final(store, plan, history, outcome),
        kept,
        outcome.attempt,
    )


def _why_stopped(outcome: RunnerOutcome, because: str) -> str:
    error = outcome.describe_error()
    why = f": {error}" if error and not error.startswith("Interrupted: ") else ""
    why = f" ({because})" if because else why
    if outcome.cause == Cause.NO_ROOM:
        return f"found no room{why}"
    return f"was stopped at iteration {outcome.iteration}{why}"


def _why_final(
    store: ObjectStore, plan: RestorePlan, history: History, outcome: RunnerOutcome
) -> str:
    """Return the reason why a retry would fail in the same way; "" if it may succeed."""
    if plan.is_whole_experiment:
        return "the whole-experiment run has ended the trial"
    if is_window_over(store, plan):
        return "the window of its restore has ended"
    before = seen_before(history.failures, plan.restore_id, outcome.attempt)
    if before is None:
        return ""
    return (
        f"it failed at the same place and iteration before ({before.place}, attempt {before.attempt} of "
        f"restore {before.restore_id})"
    )
