"""Fits a plan into the tasks that one DAG run has room for. Pure.

Trials that do not depend on each other are restored in parts: a part is a restore of chosen trials, so
the rows of the others stay byte for byte, and the search is left to the restore that takes the last ones.
A whole-experiment run is never divided: without room for a task of each trial, one more task
follows the last ones.
"""

from dataclasses import replace

from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.plan import NOT_CHOSEN, RestorePlan, TrialPlan


def limit_tasks(plan: RestorePlan, most: int | None) -> RestorePlan:
    """Return the plan with at most so many tasks (None for any number); the same plan if it fits."""
    if most is None or plan.task_count <= most:
        return plan
    if plan.is_whole_experiment:
        return replace(plan, own_tasks=max(most - 1, 0))
    return _take_part(plan, most)


def leave_all(plan: RestorePlan) -> RestorePlan:
    """Return the plan with every trial and the samples left as they are, since none is chosen."""
    trials = tuple(
        trial if trial.action is TrialAction.KEEP else trial.left(NOT_CHOSEN)
        for trial in plan.trials
    )
    return replace(plan, trials=trials, continues_search=False)


def _take_part(plan: RestorePlan, most: int) -> RestorePlan:
    """Return the plan of the first trials alone.

    Those with the fewest failures that count come first, in Ray's order: trials that fail again and again
    do not keep the others out. Nor do trials that have finished before, which come last.
    """
    failures = plan.failures or {}

    def order(trial: TrialPlan) -> tuple[bool, int]:
        history = failures.get(trial.trial_id)
        return plan.runs_again(trial), len(history.failures) if history is not None else 0

    to_run = plan.to_run
    taken = {trial.trial_id for trial in sorted(to_run, key=order)[:most]}
    share = f"this one takes {most} of {counted(len(to_run), 'trial')}"

    def keep(trial: TrialPlan) -> TrialPlan:
        if trial.trial_id in taken or trial.action is TrialAction.KEEP:
            return trial
        verb = "waits for" if trial.runs else "is left to"
        return trial.left(f"{verb} a later restore: {share}")

    return replace(
        plan,
        trials=tuple(map(keep, plan.trials)),
        choices=replace(
            plan.choices, trials=tuple(t.trial_id for t in to_run if t.trial_id in taken)
        ),
        failures={key: value for key, value in failures.items() if key in taken},
        waiting=sum(trial.trial_id not in taken for trial in plan.left_to_run),
    )
