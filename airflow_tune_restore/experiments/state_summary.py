"""The health-relevant summary of an experiment's state, small enough for an index."""

import hashlib
import json
import math
from typing import Any

import msgspec

from airflow_tune_restore.experiments.ends import count_ends
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.trial import UNFINISHED, TrialStatus
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_safe_name, is_segment, is_text
from airflow_tune_restore.protocol.numbers import is_count
from airflow_tune_restore.storage.base import Entry

_READ_AS = 3
"""Part of every fingerprint: raised when more can be read, or indexes would keep the old result."""

_MOST_WARNINGS = 100
"""In an index: reports keep them, and a short text takes twenty times its length in memory."""


class StateSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of the newest valid state. Fields are kept in indexes: only ever add, with a default.

    Args:
        trials: Count by status.
        unfinished_dirs: Directories of the trials that have not ended.
        samples_left: Samples never drawn; None if unknown.
        last_result: Newest result of any trial, by the driver's clock (Unix seconds).
        longest_interval: Seconds between two results of the slowest trial, as the trials recorded them.
        snapshot_period: Seconds between two snapshots, if the user has set it (Ray: "auto").
        searcher_lost: As in `Experiment`, where samples are left.
        ended_by: What ended the TERMINATED trials, in words, and how many of them.
        unreadable: Why no state can be used, and all else is empty; "" if one can be used.
    """

    state_file: str
    trials: dict[str, int]
    unfinished_dirs: tuple[str, ...] = ()
    samples_left: int | None = None
    last_result: float | None = None
    longest_interval: float = 0.0
    snapshot_period: float | None = None
    searcher_lost: str = ""
    warnings: tuple[str, ...] = ()
    ended_by: dict[str, int] = {}
    unreadable: str = ""
    trainables: tuple[str, ...] = ()

    @property
    def unfinished(self) -> int:
        """How many trials are neither TERMINATED nor ERROR."""
        return sum(count for status, count in self.trials.items() if status in UNFINISHED)

    @property
    def errored(self) -> int:
        """How many trials ended with ERROR."""
        return self.trials.get(TrialStatus.ERROR, 0)

    @property
    def total(self) -> int:
        """How many trials there are."""
        return sum(self.trials.values())

    @property
    def is_sound(self) -> bool:
        """Whether a summary from an index could have come from state files."""
        if self.unreadable:
            return self == unreadable_summary(self.unreadable)
        numbers = (self.last_result, self.snapshot_period, self.longest_interval)
        counts = (*self.trials.values(), *self.ended_by.values())
        return (
            layout.is_state_file(self.state_file)
            and is_safe_name(self.state_file)
            and set(self.trials) <= set(TrialStatus)
            and all(count > 0 and is_count(count) for count in counts)
            and self.total > 0
            and all(is_segment(name) for name in self.unfinished_dirs)
            and all(is_text(name) for name in self.trainables)
            and len(self.unfinished_dirs) <= self.unfinished
            and (self.samples_left is None or is_count(self.samples_left))
            and len(self.warnings) <= _MOST_WARNINGS
            and all(number is None or math.isfinite(number) for number in numbers)
        )


def unreadable_summary(reason: str) -> StateSummary:
    """Return the summary of an experiment without a usable state."""
    return StateSummary(state_file="", trials={}, unreadable=reason)


def summarize(experiment: Experiment) -> StateSummary:
    """Return the summary of an experiment."""
    trials = experiment.trials
    newest = experiment.last_result_time
    return StateSummary(
        state_file=experiment.state_file.name,
        trials=experiment.count_by_status,
        unfinished_dirs=tuple(t.trial_dir for t in trials if not t.is_finished and t.trial_dir),
        samples_left=experiment.samples_left,
        last_result=newest if math.isfinite(newest) else None,
        longest_interval=max((trial.last_interval for trial in trials), default=0.0),
        snapshot_period=_seconds(experiment.state.runner.get("_checkpoint_period")),
        searcher_lost=experiment.searcher_lost,
        warnings=experiment.warnings,
        ended_by=count_ends(experiment),
        trainables=experiment.trainables,
    )


def fingerprint(root: list[Entry]) -> str | None:
    """Return a text that changes whenever the summary could: it covers the files that the summary uses.

    None where the store has no version tags, so that a replaced object would go unnoticed.
    """
    named = [
        (entry.name, entry.etag, entry.size_bytes, str(entry.modified_at))
        for entry in root
        if not entry.is_dir
        and (
            layout.is_state_file(entry.name)
            or entry.name == layout.TUNER_FILE
            or entry.name.startswith((layout.VARIANT_STATE_PREFIX, layout.SEARCH_STATE_PREFIX))
        )
    ]
    if not all(etag for _, etag, _, _ in named):
        return None
    return hashlib.sha256(json.dumps([_READ_AS, *sorted(named)]).encode()).hexdigest()


def _seconds(value: Any) -> float | None:
    """Read Ray's `_checkpoint_period`: "auto", or a number that may stand in a string (2.60)."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # JSON may hold 10**400
        return None
    return number if 0 < number < math.inf else None
