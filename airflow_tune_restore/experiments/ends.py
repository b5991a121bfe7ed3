"""By what the trials of an experiment came to their end. Ray does not record it; its rows show most.

A trial that was not done was ended by what may end all of them; one that was done with its last result by
a scheduler or a stopper, where there is one.
"""

from collections import Counter
from collections.abc import Mapping

from airflow_tune_restore.experiments.experiment import (
    DEFAULT_SCHEDULER,
    UNKNOWN_CLASS,
    Experiment,
    class_name_of,
)
from airflow_tune_restore.experiments.state import State, read_hex_pickle
from airflow_tune_restore.experiments.symbolic import attribute
from airflow_tune_restore.experiments.trial import TrialEnd

_ITSELF = "itself"
_TIMEOUT, _TIME_BUDGET = "TimeoutStopper", "time_budget_s"
_NONE = "NoopStopper"
_MAX_STOPPERS = 10


def may_be_stopped_by_scheduler(experiment: Experiment) -> bool:
    """Whether all trials are TERMINATED, and the state alone does not show by what."""
    ends = {trial.end for trial in experiment.trials}
    if None in ends:
        return False
    if TrialEnd.RESULT in ends:
        return True
    state = experiment.state
    return TrialEnd.OUTSIDE in ends and not (_was_resumed(state) or _stoppers(state))


def count_ends(experiment: Experiment) -> dict[str, int]:
    """Return how many TERMINATED trials each thing brought to their end, in words; most first."""
    cut_short = {trial.trial_id for trial in experiment.stopped_by_fail_fast}
    words = _words(experiment)
    counts = Counter(
        "fail_fast" if trial.trial_id in cut_short else words[trial.end]
        for trial in experiment.trials
        if trial.end is not None
    )
    return dict(counts.most_common())


def describe_ends(total: int, ended_by: Mapping[str, int]) -> str:
    """Return in words by what the trials of a finished experiment came to their end.

    Args:
        total: How many trials there are.
        ended_by: As `count_ends` returns it.
    """
    by_others = {what: count for what, count in ended_by.items() if what != _ITSELF}
    if not by_others:
        return f"all {total} trials ended by themselves"
    itself = ended_by.get(_ITSELF, 0)
    parts = [f"{itself} by themselves"] if itself else []
    parts += [f"{count} stopped by {what}" for what, count in by_others.items()]
    return f"all {total} trials ended: {', '.join(parts)}"


def _words(experiment: Experiment) -> dict[TrialEnd, str]:
    stoppers = _stoppers(experiment.state)
    at_result = [name for name in stoppers if name != _TIMEOUT]
    if experiment.tuner is not None and experiment.tuner.scheduler != DEFAULT_SCHEDULER:
        at_result.append(experiment.tuner.scheduler)
    outside = [_TIME_BUDGET] * (_TIMEOUT in stoppers) + at_result
    if _was_resumed(experiment.state):
        outside.append("a restore that did not resume them")
    return {
        TrialEnd.ITSELF: _ITSELF,
        TrialEnd.CRITERION: "a stop criterion",
        TrialEnd.RESULT: " or ".join(at_result) or _ITSELF,
        TrialEnd.OUTSIDE: " or ".join(outside) or "a cause that Ray did not record",
    }


def _was_resumed(state: State) -> bool:
    return state.runner.get("_resumed") is True


def _stoppers(state: State) -> list[str]:
    """Return the class names of what `RunConfig(stop=…)` and `time_budget_s` made."""
    stopper = read_hex_pickle(state.runner.get("_stopper"))
    stoppers = [stopper]
    if class_name_of(stopper, "") == "CombinedStopper":
        parts = attribute(stopper, "_stoppers")
        stoppers = list(parts)[:_MAX_STOPPERS] if isinstance(parts, list | tuple) else []
    names = (class_name_of(one, "") for one in stoppers)
    return [
        "a stopper" if name == UNKNOWN_CLASS else name for name in names if name not in ("", _NONE)
    ]
