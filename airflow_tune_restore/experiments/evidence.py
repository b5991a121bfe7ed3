"""The evidence that an experiment's health is judged by: writes, leases, drivers, and the clock."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from airflow_tune_restore.experiments.state_summary import StateSummary
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
    """What one piece of evidence indicates."""

    ALIVE = "alive"  # something writes, or is about to
    DEAD = "dead"  # nothing writes any more
    UNFINISHED = "unfinished"  # there is something left to do
    ENDED = "ended"  # there is nothing left to do


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRow:
    """One line of the table of evidence.

    Args:
        name: What was checked.
        found: The result; or that it was not checked.
        indicates: An `Indicates`, or "" if it did not count for the verdict.
    """

    name: str
    found: str
    indicates: str = ""

    def __post_init__(self) -> None:
        """Make `found` fit to be shown."""
        object.__setattr__(self, "found", printable(self.found))


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStatus:
    """Whether a Ray cluster runs a driver for an experiment.

    Args:
        is_running: Whether one runs there. False decides nothing: the driver may run elsewhere.
        found: The answer in words.
    """

    is_running: bool
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Times of writes by the store's clock (UTC), and the results of other checks.

    Args:
        root_written: Newest write to the root, commits of restores left out; None if the store does not
            report times.
        trials_written: Newest write to the directories of unfinished trials; None if they are empty.
        state_written: When the newest state was written.
        tuner_written: When `tuner.pkl` was written. A driver writes it when it starts.
        committed_at: When a restore committed the newest state, if one did. Earlier writes are those of
            the restore, and do not show a living driver.
        restore: The lease of a restore that has not ended.
        driver: Its driver on Ray, if a cluster was asked.
        older_runs: What older runs under the same name left that its newest state hides, in words.
        checked: The checks that cost requests and were made. Where one was not made, None means nothing.
        now: The time.
    """

    root_written: datetime | None
    trials_written: datetime | None = None
    state_written: datetime | None = None
    tuner_written: datetime | None = None
    committed_at: datetime | None = None
    restore: LeaseStatus | None = None
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
        found = {EvidenceKind.ROOT: self.root_written, EvidenceKind.TRIAL_DIRS: self.trials_written}
        return {kind: at for kind, at in found.items() if at is not None}

    @property
    def last_write(self) -> datetime | None:
        """The newest of all writes."""
        return max(self.writes.values(), default=None)

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

    @property
    def is_restarting(self) -> bool:
        """Whether a driver has started after the newest state was written, and has not saved one yet."""
        return (
            self.tuner_written is not None
            and self.state_written is not None
            and self.tuner_written - self.state_written > ONE_UPLOAD
        )


def patience(summary: StateSummary, stale_after: timedelta) -> tuple[timedelta, str]:
    """Return how long an experiment may be silent, and why so long.

    This is `stale_after`, but never shorter than the experiment's own rhythm explains: a driver that
    saves a snapshot every two hours, or whose trials report every two hours, is not dead after one.
    With `stale_after=0` the user states that the driver is dead.
    """
    if not stale_after:
        return stale_after, "the user states that its driver is dead"
    own = [
        (_INTERVALS * summary.longest_interval, "an iteration", summary.longest_interval),
        (
            _SNAPSHOTS * (summary.snapshot_period or 0.0),
            "a snapshot",
            summary.snapshot_period or 0.0,
        ),
    ]
    seconds, what, interval = max(own)
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
