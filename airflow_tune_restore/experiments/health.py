"""Is an experiment alive, dead, or done? Pure: the evidence and the clock are arguments."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from airflow_tune_restore.experiments.claims import RestoreSign
from airflow_tune_restore.experiments.facts import Facts

DEFAULT_STALE_AFTER = timedelta(minutes=30)
"""A live driver rewrites its state every ten seconds or more, at most 19 times what a write takes."""

MAX_PATIENCE = timedelta(days=2)
"""However long a trial says that its iterations take: the number may be anybody's."""

ONE_UPLOAD = timedelta(minutes=1)
"""A restored driver uploads `tuner.pkl` with every state (Ray 2.60), in no order within this time."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One line of the table of evidence.

    Args:
        name: What was looked at.
        found: What was seen there.
        speaks_for: `alive`, `dead`, or "" if it decides nothing.
    """

    name: str
    found: str
    speaks_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverSign:
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
        was_restored: Whether a restore was ever begun on it.
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
    warnings: tuple[str, ...] = ()
    evidence: tuple[Sign, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """When things were written, by the store's clock (UTC), and who was asked.

    Args:
        root_written: Newest write to the root, our commits left out; None if the store does not say.
        trials_written: Newest write to the directories of unfinished trials; None if they were not
            looked at, or hold nothing.
        state_written: When the newest state was written.
        tuner_written: When `tuner.pkl` was written, which a driver does when it starts.
        committed_at: When a restore committed the newest state, if one did. What was written before is
            its own doing, and no sign of a living driver.
        restore: The lease of a restore that has not ended.
        driver: What was said of its driver, if anybody was asked.
        now: The time.
    """

    root_written: datetime | None
    trials_written: datetime | None = None
    state_written: datetime | None = None
    tuner_written: datetime | None = None
    committed_at: datetime | None = None
    restore: RestoreSign | None = None
    driver: DriverSign | None = None
    now: datetime

    @property
    def last_write(self) -> datetime | None:
        """The newest of all."""
        times = (self.root_written, self.trials_written)
        return max((time for time in times if time is not None), default=None)

    @property
    def is_our_own(self) -> bool:
        """Whether the last write was a restore's."""
        return (
            self.last_write is not None
            and self.committed_at is not None
            and self.last_write <= self.committed_at
        )

    @property
    def is_restarting(self) -> bool:
        """Whether a driver has begun after the newest state was written, and has not saved one yet."""
        return (
            self.tuner_written is not None
            and self.state_written is not None
            and self.tuner_written > self.state_written + ONE_UPLOAD
        )


def patience(facts: Facts, stale_after: timedelta) -> tuple[timedelta, str]:
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


def judge(facts: Facts, evidence: Evidence, *, stale_after: timedelta) -> tuple[Health, str]:
    """Return the health of a readable experiment, and why.

    A restore at work, or a driver that is said to run, means that it is alive. Once all trials have
    ended and all samples are drawn, no driver has anything left to do, however recent the last write,
    unless one has just begun anew. In every other case only silence tells dead from alive; so does a
    searcher whose state we cannot read, because it may be about to draw more.
    """
    if evidence.restore is not None and evidence.restore.is_alive:
        return Health.RUNNING, _at_work(evidence.restore)
    if evidence.driver is not None and evidence.driver.is_running:
        return Health.RUNNING, evidence.driver.found
    allowed, why = patience(facts, stale_after)
    left = facts.samples_left or 0
    last_write = evidence.last_write
    age = None if last_write is None else evidence.now - last_write
    silent = evidence.is_our_own or (age is not None and age >= allowed)
    may_draw_more = facts.samples_left is None and not facts.unfinished and not silent
    if not facts.unfinished and not left and not may_draw_more:
        return _ended(facts, evidence, silent=silent)
    what = " and ".join(
        part
        for part in (
            f"{facts.unfinished} unfinished trials" if facts.unfinished else "",
            f"{left} samples never drawn" if left else "",
            "a searcher that may draw more" if may_draw_more else "",
        )
        if part
    )
    if evidence.is_our_own:
        return Health.INTERRUPTED, f"{what}, nothing written since it was last restored"
    if age is None:
        return Health.RUNNING, f"{what}; the store does not say when it was last written to"
    if not silent:
        limit = span(allowed) + (f", because {why}" if allowed != stale_after else "")
        return Health.RUNNING, f"{what}, last written {span(age)} ago (stale after {limit})"
    return Health.INTERRUPTED, f"{what}, nothing written for {span(age)}"


def judge_unstarted(evidence: Evidence, *, stale_after: timedelta) -> Health:
    """Return the health of an experiment without any trial: has its driver died before the first one."""
    restore, driver, last_write = evidence.restore, evidence.driver, evidence.last_write
    lives = (
        (restore is not None and restore.is_alive)
        or (driver is not None and driver.is_running)
        or (last_write is not None and evidence.now - last_write < stale_after)
    )
    return Health.RUNNING if lives else Health.NOT_STARTED


def _ended(facts: Facts, evidence: Evidence, *, silent: bool) -> tuple[Health, str]:
    if evidence.is_restarting and not silent:
        return (
            Health.RUNNING,
            "all its trials ended, but a driver has begun anew and saved nothing yet",
        )
    if facts.errored:
        return Health.ERRORED, f"{facts.errored} of {facts.total} trials ended with ERROR"
    return Health.FINISHED, f"all {facts.total} trials ended well"


def _at_work(restore: RestoreSign) -> str:
    lease = restore.lease
    seen = span_of(restore.silent_seconds)
    return f"restore {lease.restore_id} of {lease.holder} is at work on it, last seen {seen} ago"


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
