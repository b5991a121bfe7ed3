"""The end of a window, for the processes that follow runners: which outcomes are final, and the error."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore


@dataclass(eq=False, repr=False)
class RestorePausedError(TuneRestoreError):
    """The window of the restore has ended, so the trial is not run on. It has not failed.

    `ended` is the end in words. `iteration` is the last one that is kept; None if it is unknown.
    """

    experiment: str
    trial_id: str
    ended: str
    iteration: int | None = None

    def __str__(self) -> str:
        trial, kept = f"Trial {self.trial_id} of {self.experiment}", "what was saved"
        if self.trial_id in layout.RUNS_OF_MANY:
            paused = f"The run of {self.experiment} is not continued"
        elif self.iteration is None:
            paused = f"{trial} is not run any further"
        else:
            paused, kept = f"{trial} was paused at iteration {self.iteration}", "its progress"
        return (
            f"{paused}: the window of this restore ended at {self.ended}. The commit keeps {kept}, and "
            "the next restore goes on from there."
        )


def is_window_over(store: ObjectStore, plan: RestorePlan) -> bool:
    """Whether the window of a restore has ended, by the store's clock."""
    return bool(plan.pause_at) and window.is_over(plan.pause_at, store.now())


def paused_error(
    plan: RestorePlan, trial_id: str, iteration: int | None = None
) -> RestorePausedError:
    """Return the error for a trial that is not run on, because the window has ended."""
    return RestorePausedError(
        plan.experiment, trial_id, window.describe_end(plan.pause_at), iteration
    )


def saved_iteration(outcome: RunnerOutcome | None) -> int | None:
    """Return the iteration of a trial in an outcome; None if nothing was run, or if it is unknown."""
    return outcome.iteration if outcome is not None and outcome.status else None


def has_paused(outcome: RunnerOutcome | None, *, is_over: bool) -> bool:
    """Whether a trial, or a run, goes on after its window, and has neither ended nor failed.

    `outcome` is that of its newest attempt; None if it was not started, or left none. `is_over` is
    whether the window has ended.
    """
    if outcome is None:
        return is_over
    return outcome.result == Result.PAUSED or (is_over and outcome.result == Result.INTERRUPTED)


def find_paused(
    store: ObjectStore,
    plan: RestorePlan,
    outcomes: Mapping[str, RunnerOutcome],
    failed: Collection[str],
) -> set[str]:
    """Return which trials to run the end of the window has paused; the run of them all, too.

    `outcomes` are those of the newest attempts, by trial, and that of the whole-experiment run. `failed`
    are trials with failures in this restore that count: without an outcome, such a runner has died.
    """
    if not plan.pause_at:
        return set()
    is_over = is_window_over(store, plan)
    paused: set[str] = set()
    is_run_over = is_over
    if layout.WHOLE_EXPERIMENT in plan.units:
        is_run_over = has_paused(outcomes.get(layout.WHOLE_EXPERIMENT), is_over=is_over)
        paused |= {layout.WHOLE_EXPERIMENT} if is_run_over else set()
    for trial_id in (trial.trial_id for trial in plan.to_run):
        outcome = outcomes.get(trial_id)
        if (outcome is not None or trial_id not in failed) and has_paused(
            outcome, is_over=is_run_over
        ):
            paused.add(trial_id)
    return paused


def find_final_outcome(
    store: ObjectStore, plan: RestorePlan, trial_id: str
) -> RunnerOutcome | None:
    """Return the outcome of a trial that is not run again in its restore; None if it is.

    One that has finished. One that has failed, if no run follows: a whole-experiment run has ended it, or
    the window has. One that has paused.
    """
    outcome = AttemptRecords(store, plan.restore_id, trial_id).outcome()
    if outcome is None:
        return None
    match outcome.result:
        case Result.FINISHED | Result.PAUSED:
            return outcome
        case Result.FAILED:
            is_one_of_many = plan.is_whole_experiment and trial_id != layout.WHOLE_EXPERIMENT
            return outcome if is_one_of_many or is_window_over(store, plan) else None
        case _:
            return None
