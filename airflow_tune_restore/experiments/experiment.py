"""One experiment as it is read from its directory."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import accumulate
from shlex import quote
from typing import Any

from airflow_tune_restore.exceptions import UnknownTrialError
from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.experiments.trial import Trial, TrialEnd, TrialStatus
from airflow_tune_restore.protocol.names import is_text
from airflow_tune_restore.protocol.numbers import is_count
from airflow_tune_restore.protocol.pickle_reader import Instance, attribute
from airflow_tune_restore.protocol.printable import counted, printable

_MAX_TEXT = 10_000
_SHOWN_IDS = 3
_NEAR = 0.7
"""Ids are alike if difflib's ratio is larger: a digit or two differ."""

DEFAULT_SCHEDULER = "FIFOScheduler"

NEVER_SAVED = "never saved its state"
"""The reason why samples cannot be drawn although `tuner.pkl` may be there."""

UNKNOWN_CLASS = "unknown"
"""The name for a class that is pickled together with its object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """Name, hash and size of a state file."""

    name: str
    sha256: str
    size_bytes: int


NO_STATE_FILE = StateFile(name="", sha256="", size_bytes=0)
"""The state file of an experiment that was never started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTuner:
    """The content of `tuner.pkl`, read symbolically (ray.tune.impl.tuner_internal, 2.60).

    Args:
        trainable_name: Name the trainable must have on restore; None if not recorded.
        scheduler: Class name of Tune's scheduler.
        wrappers: Class names around the searcher (`ConcurrencyLimiter`, `Repeater`).
    """

    trainable_name: str | None
    metric: str | None
    mode: str | None
    scheduler: str
    wrappers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The content of an experiment directory.

    Args:
        uri: Its URI, without credentials.
        tuner: The content of `tuner.pkl`; None if it is missing, empty, not readable, or ignored.
        samples_left: Samples the searcher has not drawn; None if that cannot be known.
        searcher_lost: What is wrong with `tuner.pkl`, if samples are left that only the searcher in it
            could draw; "" otherwise.
        ignores_tuner: Whether `tuner.pkl` does not count: it belongs to another run, or the user chose
            so (ignore_tuner).
    """

    uri: str
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

    def check_has(self, trial_ids: Iterable[str]) -> None:
        """Refuse an id that no trial has (UnknownTrialError, with those that look like it)."""
        known = [trial.trial_id for trial in self.trials]
        for unknown in sorted(set(trial_ids) - set(known)):
            near = get_close_matches(unknown, known, n=_SHOWN_IDS, cutoff=_NEAR)
            trials = counted(len(known), "trial")
            which = f"Ids like it: {', '.join(near)}" if near else f"It has {trials}"
            raise UnknownTrialError(
                f"{self.uri} has no trial {printable(unknown)!r}. {which}. `tune-restore plan "
                f"{quote(self.uri)}` lists all of them."
            )

    @property
    def trainables(self) -> tuple[str, ...]:
        """The names of the trainables that its trials were run with; normally one."""
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
        stopped = self.trials if self.state.has_failed_fast else ()
        return tuple(trial for trial in stopped if trial.end is TrialEnd.OUTSIDE)


def recorded_tuner(pickle: Any) -> RecordedTuner:
    """Return the parts of the symbolic content of `tuner.pkl` that a restore needs."""
    return RecordedTuner(
        trainable_name=_text(attribute(pickle, "__trainable_name")),
        metric=_text(attribute(pickle, "_tune_config", "metric")),
        mode=_text(attribute(pickle, "_tune_config", "mode")),
        scheduler=class_name_of(attribute(pickle, "_tune_config", "scheduler"), DEFAULT_SCHEDULER),
        wrappers=_wrappers(attribute(pickle, "_tune_config", "search_alg")),
    )


def search_is_exhausted(state: State) -> bool:
    """Whether the trials alone show that a BasicVariantGenerator had no sample left when they ended.

    The controller draws samples before it handles the next event, and each event ends one trial
    (`TuneController.step`, 2.60). So if two trials ran side by side, the end of one would have started a
    new one, had any sample been left. This does not hold where a scheduler ends several trials at once
    (`done` is missing in their last results), nor after any restore, which ends trials without drawing.
    """
    if state.runner.get("_resumed") is not False:
        return False
    by_itself = (t.status is TrialStatus.ERROR or t.terminated_by_itself for t in state.trials)
    return all(by_itself) and _ran_side_by_side(state.trials)


def _ran_side_by_side(trials: tuple[Trial, ...]) -> bool:
    """Whether a trial started before an earlier one had its last result, by the driver's clock."""
    spans = sorted((t.start_time, t.last_result_time) for t in trials if t.start_time is not None)
    latest_end = accumulate((end for _, end in spans), max)
    return any(start < end for (start, _), end in zip(spans[1:], latest_end, strict=False))


def samples_left(search_state: Any, trials: int) -> int | None:
    """Return how many samples are still to be drawn by the saved state of the searcher; None if unknown.

    BasicVariantGenerator saves its `__dict__`, SearchGenerator a dict (ray.tune.search, 2.60).
    """
    prefix = "" if attribute(search_state, "_total_samples") is None else "_"
    if attribute(search_state, f"{prefix}finished") is True:
        return 0
    total = attribute(search_state, f"{prefix}total_samples")
    return max(0, total - trials) if is_count(total) else None


def live_trials(search_state: Any) -> frozenset[str] | None:
    """Return the trials that a BasicVariantGenerator still counts as live; None if unknown.

    The controller reports to it each trial that ends by itself, with a result or an error, but not those
    that it stops all at once (`_stop_experiment_if_needed`, ray.tune.execution.tune_controller, 2.60).
    """
    live = attribute(search_state, "_live_trials")
    return frozenset(i for i in live if isinstance(i, str)) if isinstance(live, list) else None


def describe_lost_searcher(left: int | None, why: str) -> str:
    """Describe which samples cannot be drawn, why, and how to draw them."""
    samples = "the samples that are left" if left is None else counted(left, "sample")
    if why == NEVER_SAVED:
        return (
            f"{samples} cannot be drawn: their searcher {NEVER_SAVED} (it has no save and restore), and "
            "another searcher cannot continue for it. Run what is left as a new experiment"
        )
    return (
        f"{samples} cannot be drawn without their searcher, which is lost ({why}); give "
        "one, as package.module:attribute: search_alg in a DAG, --search-alg in the shell"
    )


def _wrappers(searcher: Any) -> tuple[str, ...]:
    """Return the class names of the limiters and repeaters around a searcher, outermost first."""
    wrappers: list[str] = []
    while isinstance(inner := attribute(searcher, "searcher"), Instance) and len(wrappers) < 16:
        wrappers.append(class_name_of(searcher, ""))
        searcher = inner
    return tuple(wrappers)


def class_name_of(value: Any, default: str) -> str:
    """Return the class name of an object in a pickle; `default` if it is not an object."""
    if isinstance(value, Instance):
        return _text(value.class_name) or UNKNOWN_CLASS
    return _text(value) or default


def _text(value: Any) -> str | None:
    """Return a name that can be stored, else None: a pickle may hold lone surrogates, or a megabyte."""
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT and is_text(value) else None
