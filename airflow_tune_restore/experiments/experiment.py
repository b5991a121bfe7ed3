"""One experiment as its directory tells it."""

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from shlex import quote
from typing import Any

from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.experiments.trial import Trial, TrialEnd, TrialStatus
from airflow_tune_restore.protocol.names import is_text
from airflow_tune_restore.protocol.numbers import is_count
from airflow_tune_restore.protocol.pickle_reader import Instance, attribute

_MAX_TEXT = 10_000

DEFAULT_SCHEDULER = "FIFOScheduler"
DEFAULT_SEARCHER = "BasicVariantGenerator"

UNKNOWN_CLASS = "unknown"
"""Stands for a class that is pickled together with its object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """A state file that was read whole."""

    name: str
    sha256: str
    size_bytes: int


NO_STATE_FILE = StateFile(name="", sha256="", size_bytes=0)
"""Stands for the state of an experiment that was never started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTuner:
    """What `tuner.pkl` says, read symbolically (ray.tune.impl.tuner_internal, 2.60).

    Args:
        trainable_name: Name the trainable must have on restore; None if not recorded.
        param_space_keys: Sorted flat keys a re-specified param_space must have; None if not recorded.
        metric: Metric of the TuneConfig.
        mode: `min` or `max`.
        scheduler: Class name of Tune's scheduler.
        searcher: Class name of the searcher, without limiters around it.
        wrappers: Class names around the searcher (`ConcurrencyLimiter`, `Repeater`).
        fail_fast: Whether one error ends the experiment.
    """

    trainable_name: str | None
    param_space_keys: tuple[str, ...] | None
    metric: str | None
    mode: str | None
    scheduler: str
    searcher: str
    wrappers: tuple[str, ...]
    fail_fast: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What an experiment directory holds.

    Args:
        uri: Where it is, without credentials.
        name: Last part of the URI.
        state_file: The state the rows come from.
        state: The parsed state.
        tuner: What `tuner.pkl` says; None if it is missing, empty, not readable, or ignored.
        samples_left: Samples the searcher has not drawn; None if that cannot be known.
        searcher_lost: What is wrong with `tuner.pkl`, if samples are left that only the searcher in it
            could draw; "" otherwise.
        warnings: What was wrong or odd, in words.
        ignores_tuner: Whether `tuner.pkl` does not count, whatever it holds: it belongs to another run,
            or the user said so.
    """

    uri: str
    name: str
    state_file: StateFile
    state: State = field(repr=False)
    tuner: RecordedTuner | None
    samples_left: int | None
    searcher_lost: str = ""
    warnings: tuple[str, ...] = ()
    ignores_tuner: bool = False

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The rows, in the order of the file."""
        return self.state.trials

    @property
    def trainables(self) -> tuple[str, ...]:
        """The names of the trainables that its trials were run with; one, but for oddities."""
        return tuple(sorted({t.trainable_name for t in self.trials if t.trainable_name}))

    @property
    def count_by_status(self) -> dict[str, int]:
        """How many trials have each status."""
        return dict(sorted(Counter(trial.status.value for trial in self.trials).items()))

    @property
    def last_result_time(self) -> float:
        """Unix seconds of the newest result; `-inf` if none was ever reported."""
        return max((trial.last_result_time for trial in self.trials), default=-math.inf)

    @property
    def stopped_by_fail_fast(self) -> tuple[Trial, ...]:
        """Trials that `fail_fast` marked TERMINATED although they never finished (Ray 2.60)."""
        runner = self.state.runner
        if not (runner.get("_fail_fast") and runner.get("_has_errored")):
            return ()
        return tuple(trial for trial in self.trials if trial.end is TrialEnd.OUTSIDE)


def tuner_facts(pickle: Any) -> RecordedTuner:
    """Take what a restore needs from the symbolic content of `tuner.pkl`."""
    keys = attribute(pickle, "__flattened_param_space_keys")
    searcher, wrappers = _unwrap(attribute(pickle, "_tune_config", "search_alg"))
    return RecordedTuner(
        trainable_name=_text(attribute(pickle, "__trainable_name")),
        # never str(): a value may hold itself, or 2**60 leaves in a hundred bytes
        param_space_keys=tuple(k for k in keys if isinstance(k, str))
        if isinstance(keys, list)
        else None,
        metric=_text(attribute(pickle, "_tune_config", "metric")),
        mode=_text(attribute(pickle, "_tune_config", "mode")),
        scheduler=class_name_of(attribute(pickle, "_tune_config", "scheduler"), DEFAULT_SCHEDULER),
        searcher=class_name_of(searcher, DEFAULT_SEARCHER),
        wrappers=wrappers,
        fail_fast=bool(attribute(pickle, "_run_config", "failure_config", "fail_fast")),
    )


def search_is_exhausted(state: State) -> bool:
    """Whether the trials alone show that a BasicVariantGenerator had no sample left when they ended.

    The controller draws before it takes in another event, and one event ends one trial
    (`TuneController.step`, 2.60). So where two trials ran side by side, the end of the one would have
    brought a new one, were there any. Not where a scheduler ends several at once, whose last results do
    not say `done`, and not after a restore, ours or Ray's, which ends trials without drawing.
    """
    if state.runner.get("_resumed") is not False:
        return False
    ended_by_themselves = all(
        trial.status is TrialStatus.ERROR or trial.terminated_by_itself for trial in state.trials
    )
    return ended_by_themselves and _ran_side_by_side(state.trials)


def _ran_side_by_side(trials: tuple[Trial, ...]) -> bool:
    """Whether a trial began before an earlier one had its last result; all times are the driver's."""
    spans = sorted((t.start_time, t.last_result_time) for t in trials if t.start_time is not None)
    latest_end = accumulate((end for _, end in spans), max)
    return any(start < end for (start, _), end in zip(spans[1:], latest_end, strict=False))


def samples_left(search_state: Any, trials: int) -> int | None:
    """Return how many samples the searcher's saved state says are still to be drawn.

    BasicVariantGenerator saves its `__dict__`, SearchGenerator a dict (ray.tune.search, 2.60).
    """
    total = attribute(search_state, "_total_samples")
    finished = attribute(search_state, "_finished")
    if total is None:
        total = attribute(search_state, "total_samples")
        finished = attribute(search_state, "finished")
    if finished is True:
        return 0
    return max(0, total - trials) if is_count(total) else None


def live_trials(search_state: Any) -> frozenset[str] | None:
    """Return the trials whose ends a BasicVariantGenerator was not told of; None if nothing tells.

    The controller tells it of each trial that ends by itself, with a result or an error, but not of those
    that it stops all at once (`_stop_experiment_if_needed`, ray.tune.execution.tune_controller, 2.60).
    """
    live = attribute(search_state, "_live_trials")
    return frozenset(i for i in live if isinstance(i, str)) if isinstance(live, list) else None


NEVER_SAVED = "never saved its state"
"""Why samples cannot be drawn although `tuner.pkl` may be there."""


def describe_lost_searcher(experiment: str, samples_left: int | None, why: str) -> str:
    """Say which samples cannot be drawn, why, and how to have them drawn."""
    samples = "the samples that are left" if samples_left is None else f"{samples_left} samples"
    if why == NEVER_SAVED:
        return (
            f"{samples} cannot be drawn, for their searcher {NEVER_SAVED} (it has no save and restore), "
            "and no other can go on for it. Tune what is left as a new experiment"
        )
    command = (
        f"tune-restore restore {quote(experiment)} --trainable MODULE:ATTR --search-alg MODULE:ATTR"
    )
    return (
        f"{samples} cannot be drawn without their searcher, which is lost ({why}); name one "
        f"(search_alg): `{command}`"
    )


def _unwrap(searcher: Any) -> tuple[Any, tuple[str, ...]]:
    """Step through limiters and repeaters to the searcher itself."""
    wrappers: list[str] = []
    while isinstance(inner := attribute(searcher, "searcher"), Instance) and len(wrappers) < 16:
        wrappers.append(class_name_of(searcher, ""))
        searcher = inner
    return searcher, tuple(wrappers)


def class_name_of(value: Any, default: str) -> str:
    """Return the name of the class of what a pickle holds; `default` if it is not an object."""
    if isinstance(value, Instance):
        return _text(value.class_name) or UNKNOWN_CLASS
    return _text(value) or default


def _text(value: Any) -> str | None:
    """Return a name that can be stored: a pickle may hold lone surrogates, or a megabyte."""
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT and is_text(value) else None
