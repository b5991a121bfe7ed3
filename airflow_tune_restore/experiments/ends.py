"""The causes that ended the trials of an experiment. Ray does not record them; its rows show most."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from airflow_tune_restore.experiments.experiment import (
    DEFAULT_SCHEDULER,
    UNKNOWN_CLASS,
    Experiment,
    class_name_of,
)
from airflow_tune_restore.experiments.raw_row import read_hex_pickle
from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.experiments.trial import TrialEnd
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.pickle_reader import attribute

_ITSELF, _UNKNOWN = "itself", "unknown"
_TIMEOUT, _TIME_BUDGET = "TimeoutStopper", "time_budget_s"
_MAX_STOPPERS = 10
_STOP_WHAT_IS_PAUSED = frozenset({"HyperBandScheduler", "HyperBandForBOHB"})
"""Other schedulers stop a trial with a result, which is marked as its last (`_process_trial_result`,
2.60)."""


def settle_ends(state: State, live: Collection[str] | None) -> State:
    """Separate trials that ended by themselves from those that something stopped before they were done.

    The row of a function that has returned may lack `done`: Ray marks it in place, and keeps the JSON
    that it made before (`_TrainingRunMetadata.get_json_state`, 2.60). Trials that the searcher still
    counts as live were stopped. After `Tuner.restore` they are unknown (None): its searcher has no old
    trials.
    """
    if state.runner.get("_resumed") is not False:
        return state
    if live is None:
        all_may_be_stopped = state.has_failed_fast or _stoppers(state)
        live = [trial.trial_id for trial in state.trials] if all_may_be_stopped else ()
    trials = tuple(
        msgspec.structs.replace(trial, end=TrialEnd.UNMARKED)
        if trial.end is TrialEnd.OUTSIDE and trial.trial_id not in live
        else trial
        for trial in state.trials
    )
    return replace(state, trials=trials)


def may_be_stopped_by_scheduler(experiment: Experiment) -> bool:
    """Whether all trials are TERMINATED, and only `tuner.pkl` shows whether a scheduler ended one."""
    ends = {trial.end for trial in experiment.trials}
    return None not in ends and bool(ends & {TrialEnd.RESULT, TrialEnd.DONE, TrialEnd.UNMARKED})


def count_ends(experiment: Experiment) -> dict[str, int]:
    """Return what ended the TERMINATED trials, in words, and how many of them; most first."""
    cut_short = {trial.trial_id for trial in experiment.stopped_by_fail_fast}
    words = _words(experiment)
    counts = Counter(
        "fail_fast" if trial.trial_id in cut_short else words[trial.end]
        for trial in experiment.trials
        if trial.end is not None
    )
    return dict(counts.most_common())


def describe_ends(total: int, ended_by: Mapping[str, int]) -> str:
    """Return in words what ended the trials of a finished experiment, as `count_ends` counts them."""
    known = {what: count for what, count in ended_by.items() if what not in (_ITSELF, _UNKNOWN)}
    itself, unknown = ended_by.get(_ITSELF, 0), ended_by.get(_UNKNOWN, 0)
    all_trials = "its only trial" if total == 1 else f"all {total} trials"
    if not known:
        themselves = " by itself" if total == 1 else " by themselves"
        return f"{all_trials} ended{'' if unknown else themselves}"
    parts = [f"{itself} by {'itself' if itself == 1 else 'themselves'}"] if itself else []
    parts += [f"{count} stopped by {what}" for what, count in known.items()]
    parts += [f"{unknown} otherwise"] if unknown else []
    return f"{all_trials} ended: {', '.join(parts)}"


def _words(experiment: Experiment) -> dict[TrialEnd, str]:
    stoppers = _stoppers(experiment.state)
    at_result = [name for name in stoppers if name != _TIMEOUT]
    outside = [_TIME_BUDGET] * (_TIMEOUT in stoppers) + at_result
    runner, state_file = experiment.state.runner, experiment.state_file.name
    if runner.get("_resumed") is not False or layout.is_committed_state(state_file):
        outside = []  # or a restore did not resume them
    unmarked, otherwise = _ITSELF, _ITSELF
    if experiment.tuner is None:
        otherwise = _UNKNOWN  # there may have been a scheduler
    elif experiment.tuner.scheduler != DEFAULT_SCHEDULER:
        at_result = [*at_result, experiment.tuner.scheduler]
        if experiment.tuner.scheduler in _STOP_WHAT_IS_PAUSED:
            unmarked = experiment.tuner.scheduler
    return {
        TrialEnd.ITSELF: _ITSELF,
        TrialEnd.CRITERION: "a stop criterion",
        TrialEnd.RESULT: " or ".join(at_result) or otherwise,
        TrialEnd.DONE: " or ".join([*at_result, "themselves"]) if at_result else otherwise,
        TrialEnd.UNMARKED: unmarked,
        TrialEnd.OUTSIDE: " or ".join(outside) or _UNKNOWN,
    }


def is_budget_spent(state: State) -> bool:
    """Whether nothing is left of `time_budget_s` (ray.tune.stopper.timeout.TimeoutStopper, 2.60)."""
    timeouts = [one for one in _read_stoppers(state) if class_name_of(one, "") == _TIMEOUT]
    budgets = (attribute(one, "_budget") for one in timeouts)
    return any(type(budget) in (int, float) and budget <= 0 for budget in budgets)


def _read_stoppers(state: State) -> list[Any]:
    """Return the stoppers of `RunConfig(stop=…)` and `time_budget_s`, as symbolic objects."""
    stopper = read_hex_pickle(state.runner.get("_stopper"))
    if class_name_of(stopper, "") != "CombinedStopper":
        return [stopper]
    parts = attribute(stopper, "_stoppers")
    return list(parts)[:_MAX_STOPPERS] if isinstance(parts, list | tuple) else []


def _stoppers(state: State) -> list[str]:
    """Return the names of their classes."""
    names = (class_name_of(one, "") for one in _read_stoppers(state))
    shown = (name for name in names if name not in ("", "NoopStopper"))
    return ["a stopper" if name == UNKNOWN_CLASS else name for name in shown]
