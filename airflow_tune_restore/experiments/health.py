"""Is an experiment alive, dead, or done? Pure: the evidence and the clock are arguments."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from airflow_tune_restore.experiments.ends import describe_ends
from airflow_tune_restore.experiments.evidence import (
    CLOCK_AHEAD,
    Evidence,
    EvidenceKind,
    EvidenceRow,
    Indicates,
    ago,
    patience,
    span,
    span_of,
)
from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable, share
from airflow_tune_restore.storage.location import Location

DEFAULT_STALE_AFTER = timedelta(minutes=30)
"""A live driver rewrites its state every ten seconds or more, at most 19 times what a write takes."""


class Health(StrEnum):
    """The state of an experiment."""

    FINISHED = "finished"  # all trials ended, none with ERROR, all samples drawn
    ERRORED = "errored"  # all trials ended, some with ERROR
    INTERRUPTED = "interrupted"  # unfinished trials or samples left, and nothing writes any more
    RUNNING = "running"  # unfinished, and written to recently; or a restore is running
    NOT_STARTED = "not_started"  # the driver died before it saved a first trial
    UNREADABLE = "unreadable"


RESTORABLE = frozenset({Health.ERRORED, Health.INTERRUPTED})
"""Restored by default."""


class Verdict(NamedTuple):
    """The health of an experiment, why, and the evidence that counted, with what it indicated.

    Other evidence was outvoted or not needed.
    """

    health: Health
    reason: str
    counted: Mapping[EvidenceKind, Indicates]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentReport:
    """One line of a scan.

    Args:
        experiment: URI of the experiment directory.
        trials: Count by status.
        state_file: Name of the newest valid state file, if any.
        last_write: Newest write by the store's clock (UTC); None if unknown.
        samples_left: Samples not drawn; None if unknown, or if it was not checked because trials are
            unfinished anyway and the experiment lives.
        was_restored: Whether a restore may have been started on it: it has the package's own directory.
            Always False if it has no trials.
        abandoned: Epoch of the lease of a restore that died on it; None if none did.
    """

    experiment: str
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
        """Make texts fit to be shown: parts of them come from the experiment's files."""
        object.__setattr__(self, "reason", printable(self.reason, NOTE_LENGTH))
        warnings = tuple(printable(warning, NOTE_LENGTH) for warning in self.warnings)
        object.__setattr__(self, "warnings", warnings)

    @property
    def name(self) -> str:
        """Last part of the URI."""
        return Location.parse(self.experiment).name


def judge(summary: StateSummary, evidence: Evidence, *, stale_after: timedelta) -> Verdict:
    """Return the health of a readable experiment, why, and what that rests on.

    A running restore or a running driver means that it is alive. Once all trials have ended and all
    samples are drawn, a driver has nothing left to do, however recent the last write, unless a new one
    has just started. In every other case only silence tells dead from alive. This includes a searcher
    whose state cannot be read, because it may be about to draw more.
    """
    if (running := judge_running(evidence)) is not None:
        return running
    allowed, why = patience(summary, stale_after)
    silent, signs = _silence(evidence, allowed)
    if not silent and _silence(evidence, stale_after)[0]:
        signs[EvidenceKind.ALLOWED] = Indicates.ALIVE
    left = summary.samples_left
    if not summary.unfinished and (left == 0 or (left is None and silent)):
        return _ended(summary, evidence, silent, signs)
    undone = {}
    if summary.unfinished:
        undone[EvidenceKind.TRIALS] = counted(summary.unfinished, "unfinished trial")
    if left:
        undone[EvidenceKind.SAMPLES] = f"{counted(left, 'sample')} never drawn"
    elif not undone:
        undone[EvidenceKind.SAMPLES] = "a searcher that may draw more"
    limit = span(allowed) + (f", because {why}" if allowed != stale_after else "")
    return Verdict(
        Health.INTERRUPTED if silent else Health.RUNNING,
        f"{' and '.join(undone.values())}{_last_written(evidence, silent, limit)}",
        signs | dict.fromkeys(undone, Indicates.UNFINISHED),
    )


def judge_unstarted(why: str, evidence: Evidence, *, stale_after: timedelta) -> Verdict:
    """Return the health of an experiment without trials; `why` is the reason if its driver is dead."""
    if (running := judge_running(evidence)) is not None:
        return running
    silent, signs = _silence(evidence, stale_after)
    if silent:
        return Verdict(Health.NOT_STARTED, why, signs)
    written = _last_written(evidence, silent, span(stale_after))
    return Verdict(Health.RUNNING, f"no trial of it is saved yet{written}", signs)


def judge_running(evidence: Evidence) -> Verdict | None:
    """Return the verdict if a restore or a driver is known to run; then nothing else is checked."""
    restore, driver = evidence.restore, evidence.driver
    if restore is not None and restore.is_alive:
        reason = (
            f"{restore.lease.name} is running on it, "
            f"last seen {span_of(restore.silent_seconds)} ago{restore.found and f'. {restore.found}'}"
        )
        return Verdict(Health.RUNNING, reason, {EvidenceKind.RESTORE: Indicates.ALIVE})
    if driver is not None and driver.is_running:
        return Verdict(Health.RUNNING, driver.found, {EvidenceKind.DRIVER: Indicates.ALIVE})
    return None


def _silence(evidence: Evidence, allowed: timedelta) -> tuple[bool, dict[EvidenceKind, Indicates]]:
    """Return whether it was silent for longer than allowed, and which evidence shows it."""
    if not allowed:  # the user states that its driver is dead
        return True, {EvidenceKind.ALLOWED: Indicates.DEAD}
    if evidence.is_dated_absurdly:
        return True, {EvidenceKind.ROOT: Indicates.DEAD}
    if evidence.last_write is None:  # without times, death cannot be shown
        return False, {EvidenceKind.ROOT: Indicates.ALIVE}
    if evidence.is_last_by_restore:
        return True, {EvidenceKind.COMMIT: Indicates.DEAD}
    others = evidence.writes_by_driver
    fresh = [kind for kind, at in others.items() if evidence.now - at < allowed]
    if fresh:
        return False, dict.fromkeys(fresh, Indicates.ALIVE)
    by_runner = [EvidenceKind.RESTORE] if evidence.writes.keys() - others else []
    return True, dict.fromkeys([*others, *by_runner], Indicates.DEAD)


def _last_written(evidence: Evidence, silent: bool, limit: str) -> str:  # noqa: FBT001
    """Return the part of a reason about the last write."""
    if evidence.is_dated_absurdly:
        return f"; its files are dated more than {span(CLOCK_AHEAD)} in the future, which does not count"
    if evidence.last_write is None:
        return "; the store does not report when it was last written to"
    by_driver = evidence.writes_by_driver.values()
    if silent and evidence.last_write not in by_driver:
        return ", nothing written since it was last restored"
    age = evidence.now - max(by_driver, default=evidence.last_write)
    if silent:
        return f", nothing written for {span(age)}"
    return f", last written {ago(age)} (stale after {limit})"


def _ended(
    summary: StateSummary,
    evidence: Evidence,
    silent: bool,  # noqa: FBT001
    written: dict[EvidenceKind, Indicates],
) -> Verdict:
    if evidence.is_restarting and not silent:
        reason = "all its trials ended, but a new driver has started and has not saved a state yet"
        return Verdict(Health.RUNNING, reason, written | {EvidenceKind.START: Indicates.ALIVE})
    signs = {EvidenceKind.TRIALS: Indicates.ENDED}
    if summary.samples_left is not None:
        signs[EvidenceKind.SAMPLES] = Indicates.ENDED
    if summary.samples_left is None or evidence.is_restarting:
        signs |= written  # only silence shows that nothing continues
    if summary.errored:
        reason = f"{share(summary.errored, summary.total, 'trial')} ended with ERROR"
        return Verdict(Health.ERRORED, reason, signs)
    return Verdict(Health.FINISHED, describe_ends(summary.total, summary.ended_by), signs)
