"""The evidence that an experiment's health is judged by, and the table that shows it line by line."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Self

from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol.attempts import QUIET_SECONDS
from airflow_tune_restore.protocol.lease_objects import CLOCKS_AGREE_SECONDS, LeaseStatus
from airflow_tune_restore.protocol.printable import printable

MAX_PATIENCE = timedelta(days=2)
"""Upper bound for the silence that recorded iterations explain: the recorded number is untrusted."""

ONE_UPLOAD = timedelta(minutes=1)
"""A restored driver uploads `tuner.pkl` with every state (Ray 2.60), in any order within this time."""

CLOCKS_AGREE = timedelta(seconds=CLOCKS_AGREE_SECONDS)

CLOCK_AHEAD = timedelta(days=1)
"""A clock may be wrong by its time zone. A write further in the future does not count as a sign of life:
it would count for years."""

_TEN_YEARS = 315360000.0

_NOT_CHECKED, _UNKNOWN = "not checked", "unknown"

_INTERVALS, _SNAPSHOTS = 2, 3
"""How many of its own intervals an experiment may be silent for: of results, and of snapshots."""


class EvidenceKind(StrEnum):
    """The checks, by the name that the table of evidence shows."""

    ROOT = "newest write to its root"
    TRIAL_DIRS = "newest write to its unfinished trials"
    ALLOWED = "silence allowed"
    COMMIT = "commit of a restore"
    RESTORE = "running restore"
    DRIVER = "driver on Ray"
    TRIALS = "trials"
    SAMPLES = "samples"
    START = "start of a new driver"
    SNAPSHOTS = "snapshots of its driver"
    ITERATION = "slowest iteration"
    CLOCK = "clock of its driver"
    OLDER = "older runs under its name"


class Indicates(StrEnum):
    """The verdict that one piece of evidence supports."""

    ALIVE = "alive"  # something writes, or is about to
    DEAD = "dead"  # nothing writes any more
    UNFINISHED = "unfinished"  # there is something left to do
    ENDED = "ended"  # there is nothing left to do


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRow:
    """One line of the table of evidence; `indicates` is "" if it did not count for the verdict."""

    name: str
    found: str
    indicates: str = ""

    def __post_init__(self) -> None:
        """Make `found` fit to be shown."""
        object.__setattr__(self, "found", printable(self.found))


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStatus:
    """Whether a Ray cluster runs a driver for an experiment, and the answer in words.

    False decides nothing: the driver may run elsewhere.
    """

    is_running: bool
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Times of writes by the store's clock (UTC), and the results of other checks.

    Args:
        root_written: Newest write to the root, commits of restores and Ray's marker left out; None if the
            store does not report times.
        marker_written: When Ray's marker was written to the root, by a driver that starts or by a runner.
        trials_written: Newest write to the directories of unfinished trials; None if they are empty.
        tuner_written: When `tuner.pkl` was written. A driver writes it when it starts.
        committed_at: When a restore committed the newest state, if one did. Earlier writes are those of
            the restore, and do not show a living driver.
        restore: The lease of a restore that was not released.
        held: When restores held the lease, each from its claim to its last sign of life; empty if that
            was not read.
        older_runs: What older runs under the same name left that its newest state hides, in words.
        checked: The checks that cost requests and were made. Where one was not made, None means nothing.
    """

    root_written: datetime | None
    marker_written: datetime | None = None
    trials_written: datetime | None = None
    state_written: datetime | None = None
    tuner_written: datetime | None = None
    committed_at: datetime | None = None
    restore: LeaseStatus | None = None
    held: tuple[tuple[datetime, datetime], ...] = ()
    driver: DriverStatus | None = None
    older_runs: tuple[str, ...] = ()
    checked: frozenset[EvidenceKind] = frozenset()
    now: datetime

    @property
    def writes(self) -> dict[EvidenceKind, datetime]:
        """The newest write in each place, without times that are too far in the future."""
        return {kind: at for kind, at in self._known.items() if at - self.now <= CLOCK_AHEAD}

    @property
    def is_dated_absurdly(self) -> bool:
        """Whether all known writes lie too far in the future."""
        return bool(self._known) and not self.writes

    @property
    def _known(self) -> dict[EvidenceKind, datetime]:
        found = {
            EvidenceKind.ROOT: self.newest_in_root,
            EvidenceKind.TRIAL_DIRS: self.trials_written,
        }
        return {kind: at for kind, at in found.items() if at is not None}

    @property
    def newest_in_root(self) -> datetime | None:
        """The newest write to the root, without a marker that a runner may have written."""
        marker = self.marker_written
        if marker is None or self._is_while_held(marker):
            return self.root_written
        return max(filter(None, [self.root_written, marker]))

    @property
    def last_write(self) -> datetime | None:
        """The newest of all writes."""
        return max(self.writes.values(), default=None)

    @property
    def writes_by_driver(self) -> dict[EvidenceKind, datetime]:
        """The newest write in each place, if a driver may have made it."""
        return {
            kind: at
            for kind, at in self.writes.items()
            if not (self.is_by_restore(at) or self._is_by_runner(kind, at))
        }

    @property
    def is_last_by_restore(self) -> bool:
        """Whether the last write was that of a restore."""
        return self.last_write is not None and self.is_by_restore(self.last_write)

    def with_check(self, kind: EvidenceKind) -> Self:
        """Return the same with this check marked as made."""
        return replace(self, checked=self.checked | {kind})

    def is_by_restore(self, at: datetime) -> bool:
        """Whether a write at that time was that of a restore."""
        if self.committed_at is None or self.committed_at - self.now > CLOCKS_AGREE:
            return False  # or all writes until then would count as a restore's
        return at <= self.committed_at

    def _is_by_runner(self, kind: EvidenceKind, at: datetime) -> bool:
        """Whether runners of a restore that died or was undone wrote to trials' directories at that time.

        The driver was dead when that restore began. Before its commit, a restore writes nothing to the
        root but Ray's marker. A driver that was started since writes a state there at once.
        """
        return kind is EvidenceKind.TRIAL_DIRS and self._is_while_held(at)

    def _is_while_held(self, at: datetime) -> bool:
        quiet = timedelta(seconds=QUIET_SECONDS)
        return any(claimed <= at <= seen + quiet for claimed, seen in self.held)

    @property
    def is_restarting(self) -> bool:
        """Whether a driver has started after the newest state was written, and has not saved one yet."""
        if self.tuner_written is None or self.state_written is None:
            return False
        return self.tuner_written - self.state_written > ONE_UPLOAD


def patience(summary: StateSummary, stale_after: timedelta) -> tuple[timedelta, str]:
    """Return how long an experiment may be silent, and why so long.

    This is `stale_after`, but never shorter than the experiment's own rhythm explains: a driver that
    saves a snapshot every two hours, or whose trials report every two hours, is not dead after one.
    With `stale_after=0` the user states that the driver is dead.
    """
    if not stale_after:
        return stale_after, "the user states that its driver is dead"
    iteration, period = summary.longest_interval, summary.snapshot_period or 0.0
    by_iteration = (_INTERVALS * iteration, "an iteration", iteration)
    seconds, what, interval = max(by_iteration, (_SNAPSHOTS * period, "a snapshot", period))
    seconds = min(seconds, MAX_PATIENCE.total_seconds())
    if seconds <= stale_after.total_seconds():
        return stale_after, "stale_after"
    return timedelta(seconds=seconds), f"{what} of it takes {span_of(interval)}"


def ago(age: timedelta) -> str:
    """Return in words how old something is by the store's clock."""
    if age < -CLOCKS_AGREE:
        return f"{span(-age)} in the future of the store's clock"
    return f"{span(age)} ago"


def span(length: timedelta) -> str:
    """Return a length of time in words."""
    seconds = max(0, round(length.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172800 else f"{seconds // 86400} days"


def span_of(seconds: float) -> str:
    """Return a number of seconds in words; the number is untrusted."""
    return span(timedelta(seconds=min(seconds, _TEN_YEARS)))


def describe_evidence(
    summary: StateSummary | None,
    evidence: Evidence,
    counted: Mapping[EvidenceKind, Indicates],
    *,
    stale_after: timedelta,
) -> tuple[EvidenceRow, ...]:
    """Return the table of one experiment; `counted` is what the verdict rests on.

    Without a readable state (`summary` is None) it has fewer lines.
    """
    allowed, why = patience(summary, stale_after) if summary else (stale_after, "stale_after")
    found = {
        EvidenceKind.ROOT: _written(evidence.newest_in_root, evidence) or "no time from the store",
        EvidenceKind.TRIAL_DIRS: _trial_dirs(evidence),
        EvidenceKind.ALLOWED: f"{span(allowed)} ({why})",
        EvidenceKind.RESTORE: _restore(evidence),
        EvidenceKind.DRIVER: evidence.driver.found if evidence.driver else _NOT_CHECKED,
    }
    if summary is not None:
        slowest = summary.longest_interval
        found |= {
            EvidenceKind.COMMIT: _commit(evidence),
            EvidenceKind.TRIALS: ", ".join(f"{n} {status}" for status, n in summary.trials.items()),
            EvidenceKind.SAMPLES: _samples(summary, evidence),
            EvidenceKind.START: _start(evidence),
            EvidenceKind.SNAPSHOTS: _snapshots(summary),
            EvidenceKind.ITERATION: span_of(slowest) if slowest else "not recorded",
            EvidenceKind.CLOCK: _clock(summary, evidence),
            EvidenceKind.OLDER: _older(evidence),
        }
    return tuple(
        EvidenceRow(name=kind, found=text, indicates=counted.get(kind, ""))
        for kind, text in found.items()
    )


def _written(at: datetime | None, evidence: Evidence) -> str:
    if at is None:
        return ""
    by_restore = ", by a restore" if evidence.is_by_restore(at) else ""
    return f"{at:%Y-%m-%d %H:%M:%S}, {ago(evidence.now - at)}{by_restore}"


def _trial_dirs(evidence: Evidence) -> str:
    if EvidenceKind.TRIAL_DIRS not in evidence.checked:
        return _NOT_CHECKED
    return _written(evidence.trials_written, evidence) or "none"


def _commit(evidence: Evidence) -> str:
    at = evidence.committed_at
    return f"the newest state, {at:%Y-%m-%d %H:%M:%S}" if at else "not the newest state"


def _restore(evidence: Evidence) -> str:
    if EvidenceKind.RESTORE not in evidence.checked:
        return _NOT_CHECKED
    if (status := evidence.restore) is None:
        return "none"
    silent = f"silent for {span_of(status.silent_seconds)}"
    if math.isinf(status.silent_seconds):
        silent = "last seen at an unknown time (the store reports none)"
    elif status.silent_seconds < -CLOCKS_AGREE.total_seconds():
        silent = f"last seen {span_of(-status.silent_seconds)} in the future, which does not count"
    return (
        f"{status.lease.restore_id} of {status.lease.holder}, {silent} "
        f"(dead after {span_of(status.lease.ttl_seconds)}){status.found and f'. {status.found}'}"
    )


def _samples(summary: StateSummary, evidence: Evidence) -> str:
    if summary.samples_left is not None:
        return f"{summary.samples_left} never drawn"
    return _UNKNOWN if EvidenceKind.SAMPLES in evidence.checked else _NOT_CHECKED


def _older(evidence: Evidence) -> str:
    if EvidenceKind.OLDER not in evidence.checked:
        return _NOT_CHECKED
    return "; ".join(evidence.older_runs) or "none"


def _start(evidence: Evidence) -> str:
    if evidence.tuner_written is None or evidence.state_written is None:
        return _UNKNOWN
    if not evidence.is_restarting:
        return "none since the newest state"
    return f"tuner.pkl was written {evidence.tuner_written:%H:%M:%S}, after the newest state"


def _snapshots(summary: StateSummary) -> str:
    every = summary.snapshot_period
    return "at intervals that Ray chooses" if every is None else f"every {every:g} s"


def _clock(summary: StateSummary, evidence: Evidence) -> str:
    """Compare the driver's clock with the store's; which of them is right does not matter here."""
    if summary.last_result is None or evidence.state_written is None or evidence.committed_at:
        return _UNKNOWN
    try:
        ahead = datetime.fromtimestamp(summary.last_result, UTC) - evidence.state_written
    except (OverflowError, OSError, ValueError):
        return "not a valid time"
    if ahead > CLOCKS_AGREE:  # a state is written soon after the newest result in it
        return f"{span(ahead)} ahead of the store's"
    return f"not ahead of the store's; newest result {span(-ahead)} before the newest state"
