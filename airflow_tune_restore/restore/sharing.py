"""Which independent trials share a driver: those that have little left to do. Pure.

A driver of its own isolates a trial from all others, and costs about ten seconds of a processor: a Ray,
an import of Tune and of the user's code. For a trial with hours left that is nothing; for one with
seconds left it is most of the time. So short trials share a driver, and stay independent in all else:
attempts, snapshots, outcomes, stops. A trial whose runner has died before may kill the next one, too, so
it never shares.
"""

import math
from dataclasses import replace
from statistics import median

import msgspec

from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.trial import Trial, TrialStatus
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.restore.choices import AUTO, Strategy
from airflow_tune_restore.restore.estimate import end_by_criterion
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan

SHORT_SECONDS = 600.0
"""A trial that needs no longer than this is short: a driver of its own would cost it 2 % or more."""

_MAX_SEGMENT = 200
"""Limit of the encoded id of a trial that shares: it is part of a file name on the desk."""


def share_driver(plan: RestorePlan, experiment: Experiment) -> RestorePlan:
    """Mark the trials that share a driver, if two or more do.

    With `strategy="auto"` those are the short ones, with `shared_driver` all but those whose runner died.
    """
    wish = plan.choices.strategy
    if plan.is_whole_experiment or wish not in (AUTO, Strategy.SHARED_DRIVER):
        return plan
    able = [trial for trial in plan.to_run if _is_able(trial, plan)]
    if wish == AUTO and len(able) > 1:
        left = seconds_left(experiment, able)
        able = [trial for trial in able if left[trial.trial_id] <= SHORT_SECONDS]
    if len(able) < 2:  # noqa: PLR2004  there is nobody to share with
        return plan
    shared = {trial.trial_id for trial in able}
    trials = tuple(
        msgspec.structs.replace(trial, shares_driver=True) if trial.trial_id in shared else trial
        for trial in plan.trials
    )
    count = f"{len(shared)} of {len(plan.to_run)}"
    why = (
        f"need at most {SHORT_SECONDS / 60:.0f} min each" if wish == AUTO else "share it as chosen"
    )
    reason = f"{plan.strategy_reason}, and {count} {why}"
    return replace(plan, trials=trials, strategy=Strategy.SHARED_DRIVER, strategy_reason=reason)


def _is_able(trial: TrialPlan, plan: RestorePlan) -> bool:
    """Whether a trial may share: no runner of it has died, nor must its place be larger than it asks."""
    history = (plan.failures or {}).get(trial.trial_id)
    failures = history.failures + history.released if history is not None else ()
    has_killed = any(failure.cause != Cause.TRAINABLE for failure in failures)
    return not has_killed and len(layout.segment(trial.trial_id)) <= _MAX_SEGMENT


def seconds_left(experiment: Experiment, trials: list[TrialPlan]) -> dict[str, float]:
    """Return how long each of these trials still runs, by trial id; infinite if nothing tells.

    `restore.estimate` reads each row for its figures, which every plan of 10,000 trials would pay. These
    come from what every plan has read, and from one row.

    It runs to the iteration that `stop` names, else to the one that the trials reached that finished. If
    nothing names an end, it runs as long again as it has run so far. One that never reported takes as
    long as the others took.
    """
    of = {trial.trial_id: trial for trial in experiment.trials}
    end = _usual_end(experiment, of[trials[0].trial_id])
    paces = [pace for trial in experiment.trials if (pace := _pace(trial))]
    usual_pace = median(paces) if paces else None
    usual_iterations = median(t.iteration for t in experiment.trials if _pace(t)) if paces else None

    def left(planned: TrialPlan) -> float:
        trial = of[planned.trial_id]
        pace = _pace(trial) or usual_pace
        if pace is None:
            return math.inf
        if end is not None and end > planned.iteration:
            return (end - planned.iteration) * pace
        return (trial.iteration or usual_iterations or math.inf) * pace

    return {planned.trial_id: left(planned) for planned in trials}


def _usual_end(experiment: Experiment, first: Trial) -> int | None:
    """Return the iteration at which trials end. `stop` is the same for all trials of a Tuner."""
    if first.row is not None:
        end = end_by_criterion(first.row.stopping_criterion())
        if end is not None:
            return end
    ended = (t.iteration for t in experiment.trials if t.status is TrialStatus.TERMINATED)
    return max(ended, default=0) or None


def _pace(trial: Trial) -> float | None:
    """Return the seconds of an iteration, from the fields that every plan reads; None if unknown."""
    return trial.last_interval if trial.iteration and trial.last_interval > 0 else None
