"""Is an experiment alive, dead, or done? Pure: the evidence and the clock are arguments."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from airflow_tune_restore.experiments.experiment import Experiment

DEFAULT_STALE_AFTER = timedelta(minutes=30)
"""A live driver rewrites its state every ten seconds or more, at most 19 times what a write takes."""


class Health(StrEnum):
    """What state an experiment is in."""

    FINISHED = "finished"  # all trials ended, none with ERROR, all samples drawn
    ERRORED = "errored"  # all trials ended, some with ERROR
    INTERRUPTED = "interrupted"  # unfinished trials or samples left, and nothing writes any more
    RUNNING = "running"  # unfinished, and written to recently
    NOT_STARTED = "not_started"  # the driver died before it saved a first trial
    UNREADABLE = "unreadable"


RESTORABLE = frozenset({Health.ERRORED, Health.INTERRUPTED})
"""What a recovery DAG looks for unless told otherwise."""


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
        samples_left: Samples not drawn; None if unknown.
        warnings: What was odd.
    """

    experiment: str
    name: str
    health: Health
    reason: str
    trials: dict[str, int]
    state_file: str | None
    last_write: datetime | None
    samples_left: int | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """When things were written, by the store's clock (UTC).

    Args:
        last_write: Newest write; None if the store does not say.
        committed_at: When a restore committed the newest state, if one did. What was written before is
            its own doing, and no sign of a living driver.
        now: The time.
    """

    last_write: datetime | None
    committed_at: datetime | None = None
    now: datetime

    @property
    def is_our_own(self) -> bool:
        """Whether the last write was a restore's."""
        return (
            self.last_write is not None
            and self.committed_at is not None
            and self.last_write <= self.committed_at
        )


def judge(
    experiment: Experiment, evidence: Evidence, *, stale_after: timedelta
) -> tuple[Health, str]:
    """Return the health of a readable experiment, and why.

    Once all trials have ended and all samples are drawn, no driver has anything left to do, however
    recent the last write. In every other case only silence for `stale_after` tells dead from alive;
    so does a searcher whose state we cannot read, because it may be about to draw more.
    """
    unfinished = sum(not trial.is_finished for trial in experiment.trials)
    errored = experiment.count_by_status.get("ERROR", 0)
    left = experiment.samples_left or 0
    last_write, now = evidence.last_write, evidence.now
    silent = evidence.is_our_own or (last_write is not None and now - last_write >= stale_after)
    may_draw_more = experiment.samples_left is None and not silent
    if not unfinished and not left and not may_draw_more:
        if errored:
            return Health.ERRORED, f"{errored} of {len(experiment.trials)} trials ended with ERROR"
        return Health.FINISHED, f"all {len(experiment.trials)} trials ended well"
    what = " and ".join(
        part
        for part in (
            f"{unfinished} unfinished trials" if unfinished else "",
            f"{left} samples never drawn" if left else "",
            "a searcher that may draw more" if may_draw_more else "",
        )
        if part
    )
    if evidence.is_our_own:
        return Health.INTERRUPTED, f"{what}, nothing written since it was last restored"
    if last_write is None:
        return Health.RUNNING, f"{what}; the store does not say when it was last written to"
    age = now - last_write
    if age < stale_after:
        return (
            Health.RUNNING,
            f"{what}, last written {_span(age)} ago (stale after {_span(stale_after)})",
        )
    return Health.INTERRUPTED, f"{what}, nothing written for {_span(age)}"


def _span(length: timedelta) -> str:
    seconds = max(0, round(length.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172800 else f"{seconds // 86400} days"
