"""Is an experiment alive, dead, or done? Pure: the evidence and the clock are arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, Self

from airflow_tune_restore.experiments.ends import describe_ends
from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol.lease_objects import CLOCKS_AGREE_SECONDS, LeaseStatus
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable

DEFAULT_STALE_AFTER = timedelta(minutes=30)
"""A live driver rewrites its state every ten seconds or more, at most 19 times what a write takes."""

MAX_PATIENCE = timedelta(days=2)
"""However long a trial says that its iterations take: the number may be anybody's."""

ONE_UPLOAD = timedelta(minutes=1)
"""A restored driver uploads `tuner.pkl` with every state (Ray 2.60), in no order within this time."""

CLOCKS_AGREE = timedelta(seconds=CLOCKS_AGREE_SECONDS)

CLOCK_AHEAD = timedelta(days=1)
"""A clock may be wrong by its time zone. A write further in the future is nobody's sign of life: it would
be one for years."""

_TEN_YEARS = 315360000.0

_INTERVALS, _SNAPSHOTS = 2, 3
"""How many of its own intervals an experiment may be silent for: of results, and of snapshots."""


class Health(StrEnum):
    """What state an experiment is in."""

    FINISHED = "finished"  # all trials ended, none with ERROR, all samples drawn
    ERRORED = "errored"  # all trials ended, some with ERROR
    INTERRUPTED = "interrupted"  # unfinished trials or samples left, and nothing writes any more
    RUNNING = "running"  # unfinished, and written to recently; or a restore is at work
    NOT_STARTED = "not_started"  # the driver died before it saved a first trial
    UNREADABLE = "unreadable"


RESTORABLE = frozenset({Health.ERRORED, Health.INTERRUPTED})
"""What a recovery DAG looks for unless told otherwise."""


class EvidenceKind(StrEnum):
    """What is looked at, in the words of the table of evidence."""

    ROOT = "newest write to its root"
    TRIAL_DIRS = "newest write to its unfinished trials"
    ALLOWED = "silence allowed"
    COMMIT = "commit of a restore"
    RESTORE = "restore at work"
    DRIVER = "driver on Ray"
    TRIALS = "trials"
    SAMPLES = "samples"
    START = "start of a new driver"
    SNAPSHOTS = "snapshots of its driver"
    ITERATION = "slowest iteration"
    CLOCK = "clock of its driver"
    OLDER = "older runs under its name"


class Indicates(StrEnum):
    """What a clue speaks for."""

    ALIVE = "alive"  # somebody writes, or is about to
    DEAD = "dead"  # nobody does any more
    UNFINISHED = "unfinished"  # there is something left to do
    ENDED = "ended"  # there is nothing left to do


class Verdict(NamedTuple):
    """How an experiment is.

    Args:
        health: The verdict.
        reason: Why, in words.
        counted: The clues that it rests on, and what each spoke for. Others were outvoted, or not needed.
    """

    health: Health
    reason: str
    counted: Mapping[EvidenceKind, Indicates]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRow:
    """One line of the table of evidence.

    Args:
        name: What was looked at.
        found: What was seen there; or that nobody looked.
        speaks_for: A `Indicates`, or "" if it did not count for the verdict.
    """

    name: str
    found: str
    speaks_for: str = ""

    def __post_init__(self) -> None:
        """Make fit to be shown what was found."""
        object.__setattr__(self, "found", printable(self.found))


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStatus:
    """What somebody who knows drivers said of one, when asked.

    Args:
        is_running: Whether one runs for this experiment. False decides nothing: it may run elsewhere.
        found: The answer in words.
    """

    is_running: bool
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentReport:
    """One line of a scan.

    Args:
        experiment: URI of the experiment directory.
        name: Last part of it.
        health: The verdict.
        reason: Why, in words.
        trials: Count by status.
        state_file: Name of the newest valid state file, if any.
        last_write: Newest write by the store's clock (UTC); None if nothing tells.
        samples_left: Samples not drawn; None if unknown, or if it was not asked because trials are
            unfinished anyway and the experiment lives.
        was_restored: Whether a restore was ever begun on it; not told of one without trials.
        abandoned: Epoch of the lease of a restore that died at work on it; None if none did.
        warnings: What was odd.
        evidence: What the verdict rests on.
    """

    experiment: str
    name: str
    health: Health
    reason: str
    trials: dict[str, int]
    state_file: str | None
    last_write: datetime | None
    samples_left: int | None
    was_restored: bool = False
    abandoned: int | None = None
    warnings: tuple[str, ...] = ()
    evidence: tuple[EvidenceRow, ...] = ()

    def __post_init__(self) -> None:
        """Make fit to be shown what is only shown: it is made of what stands in the experiment."""
        object.__setattr__(self, "reason", printable(self.reason, NOTE_LENGTH))
        warnings = tuple(printable(warning, NOTE_LENGTH) for warning in self.warnings)
        object.__setattr__(self, "warnings", warnings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """When things were written, by the store's clock (UTC), and who was asked.

    Args:
        root_written: Newest write to the root, our commits left out; None if the store does not say.
        trials_written: Newest write to the directories of unfinished trials; None if they hold nothing.
        state_written: When the newest state was written.
        tuner_written: When `tuner.pkl` was written, which a driver does when it starts.
        committed_at: When a restore committed the newest state, if one did. What was written before is
            its own doing, and no sign of a living driver.
        restore: The lease of a restore that has not ended.
        driver: What was said of its driver, if anybody was asked.
        older_runs: What older runs under the same name left that its newest state hides, in words.
        looked_at: Which of the clues that cost requests were looked at; of the others None says nothing.
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
    looked_at: frozenset[EvidenceKind] = frozenset()
    now: datetime

    @property
    def writes(self) -> dict[EvidenceKind, datetime]:
        """The newest write in each place where one is known, and can be anybody's."""
        return {clue: at for clue, at in self._known.items() if at - self.now <= CLOCK_AHEAD}

    @property
    def is_dated_absurdly(self) -> bool:
        """Whether all that is known of its writes is that they lie in the future."""
        return bool(self._known) and not self.writes

    @property
    def _known(self) -> dict[EvidenceKind, datetime]:
        found = {EvidenceKind.ROOT: self.root_written, EvidenceKind.TRIAL_DIRS: self.trials_written}
        return {clue: at for clue, at in found.items() if at is not None}

    @property
    def last_write(self) -> datetime | None:
        """The newest of all."""
        return max(self.writes.values(), default=None)

    @property
    def is_our_own(self) -> bool:
        """Whether the last write was a restore's."""
        return self.last_write is not None and self.is_by_restore(self.last_write)

    def having_looked_at(self, clue: EvidenceKind) -> Self:
        """Return the same, knowing that what it says of this clue is all there is."""
        return replace(self, looked_at=self.looked_at | {clue})

    def is_by_restore(self, at: datetime) -> bool:
        """Whether what was written at that time is a restore's own doing."""
        if self.committed_at is None or self.committed_at - self.now > CLOCKS_AGREE:
            return False  # or all that is written until then would pass for ours
        return at <= self.committed_at

    @property
    def is_restarting(self) -> bool:
        """Whether a driver has begun after the newest state was written, and has not saved one yet."""
        return (
            self.tuner_written is not None
            and self.state_written is not None
            and self.tuner_written - self.state_written > ONE_UPLOAD
        )


def patience(facts: StateSummary, stale_after: timedelta) -> tuple[timedelta, str]:
    """Return how long an experiment may be silent, and why so long.

    As the user says, but never shorter than what its own rhythm explains: a driver that was told to
    save a snapshot every two hours, or whose trials report every two hours, is not dead after one.
    A user who says 0 knows that the driver is dead.
    """
    if not stale_after:
        return stale_after, "its driver was said to be dead"
    own = [
        (_INTERVALS * facts.longest_interval, "an iteration", facts.longest_interval),
        (_SNAPSHOTS * (facts.snapshot_period or 0.0), "a snapshot", facts.snapshot_period or 0.0),
    ]
    seconds, what, interval = max(own)
    seconds = min(seconds, MAX_PATIENCE.total_seconds())
    if seconds <= stale_after.total_seconds():
        return stale_after, "stale_after"
    return timedelta(seconds=seconds), f"{what} of it takes {span_of(interval)}"


def judge(facts: StateSummary, evidence: Evidence, *, stale_after: timedelta) -> Verdict:
    """Return the health of a readable experiment, why, and what that rests on.

    A restore at work, or a driver that is said to run, means that it is alive. Once all trials have
    ended and all samples are drawn, no driver has anything left to do, however recent the last write,
    unless one has just begun anew. In every other case only silence tells dead from alive; so does a
    searcher whose state we cannot read, because it may be about to draw more.
    """
    if (working := at_work(evidence)) is not None:
        return working
    allowed, why = patience(facts, stale_after)
    silent, counted = _silence(evidence, allowed)
    if not silent and _silence(evidence, stale_after)[0]:
        counted[EvidenceKind.ALLOWED] = Indicates.ALIVE
    left = facts.samples_left
    if not facts.unfinished and (left == 0 or (left is None and silent)):
        return _ended(facts, evidence, silent, counted)
    undone = (
        {EvidenceKind.TRIALS: f"{facts.unfinished} unfinished trials"} if facts.unfinished else {}
    )
    if left:
        undone[EvidenceKind.SAMPLES] = f"{left} samples never drawn"
    elif not undone:
        undone[EvidenceKind.SAMPLES] = "a searcher that may draw more"
    limit = span(allowed) + (f", because {why}" if allowed != stale_after else "")
    return Verdict(
        Health.INTERRUPTED if silent else Health.RUNNING,
        f"{' and '.join(undone.values())}{_last_written(evidence, silent, limit)}",
        counted | dict.fromkeys(undone, Indicates.UNFINISHED),
    )


def judge_unstarted(why: str, evidence: Evidence, *, stale_after: timedelta) -> Verdict:
    """Return the health of an experiment without any trial: has its driver died before the first one.

    Args:
        why: What it looks like if its driver is dead.
        evidence: What was seen of it.
        stale_after: Silence after which it is.
    """
    if (working := at_work(evidence)) is not None:
        return working
    silent, counted = _silence(evidence, stale_after)
    if silent:
        return Verdict(Health.NOT_STARTED, why, counted)
    written = _last_written(evidence, silent, span(stale_after))
    return Verdict(Health.RUNNING, f"no trial of it is saved yet{written}", counted)


def at_work(evidence: Evidence) -> Verdict | None:
    """Return the verdict if somebody is known to be at work: then nothing else is asked."""
    restore, driver = evidence.restore, evidence.driver
    if restore is not None and restore.is_alive:
        reason = (
            f"restore {restore.lease.restore_id} of {restore.lease.holder} is at work on it, "
            f"last seen {span_of(restore.silent_seconds)} ago"
        )
        return Verdict(Health.RUNNING, reason, {EvidenceKind.RESTORE: Indicates.ALIVE})
    if driver is not None and driver.is_running:
        return Verdict(Health.RUNNING, driver.found, {EvidenceKind.DRIVER: Indicates.ALIVE})
    return None


def _silence(evidence: Evidence, allowed: timedelta) -> tuple[bool, dict[EvidenceKind, Indicates]]:
    """Say whether it was silent for as long as it may be, and what tells."""
    if not allowed:  # a user said that its driver is dead
        return True, {EvidenceKind.ALLOWED: Indicates.DEAD}
    if evidence.is_dated_absurdly:
        return True, {EvidenceKind.ROOT: Indicates.DEAD}
    if evidence.last_write is None:
        return False, {
            EvidenceKind.ROOT: Indicates.ALIVE
        }  # a store that tells no times shows no death
    if evidence.is_our_own:
        return True, {EvidenceKind.COMMIT: Indicates.DEAD}
    others = {clue: at for clue, at in evidence.writes.items() if not evidence.is_by_restore(at)}
    fresh = [clue for clue, at in others.items() if evidence.now - at < allowed]
    if fresh:
        return False, dict.fromkeys(fresh, Indicates.ALIVE)
    return True, dict.fromkeys(others, Indicates.DEAD)


def _last_written(evidence: Evidence, silent: bool, limit: str) -> str:  # noqa: FBT001
    """Return the part of a reason that tells of the last write."""
    if evidence.is_dated_absurdly:
        return f"; its files are dated more than {span(CLOCK_AHEAD)} in the future, which tells nothing"
    if evidence.last_write is None:
        return "; the store does not say when it was last written to"
    if evidence.is_our_own:
        return ", nothing written since it was last restored"
    age = evidence.now - evidence.last_write
    return (
        f", nothing written for {span(age)}"
        if silent
        else f", last written {ago(age)} (stale after {limit})"
    )


def _ended(
    facts: StateSummary,
    evidence: Evidence,
    silent: bool,  # noqa: FBT001
    written: dict[EvidenceKind, Indicates],
) -> Verdict:
    if evidence.is_restarting and not silent:
        return Verdict(
            Health.RUNNING,
            "all its trials ended, but a driver has begun anew and saved nothing yet",
            written | {EvidenceKind.START: Indicates.ALIVE},
        )
    counted = {EvidenceKind.TRIALS: Indicates.ENDED}
    if facts.samples_left is not None:
        counted[EvidenceKind.SAMPLES] = Indicates.ENDED
    if facts.samples_left is None or evidence.is_restarting:
        counted |= written  # only silence says that nobody goes on
    if facts.errored:
        reason = f"{facts.errored} of {facts.total} trials ended with ERROR"
        return Verdict(Health.ERRORED, reason, counted)
    return Verdict(Health.FINISHED, describe_ends(facts.total, facts.ended_by), counted)


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
    """Return a number of seconds in words; the number may be anybody's."""
    return span(timedelta(seconds=min(seconds, _TEN_YEARS)))
