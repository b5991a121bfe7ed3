"""The table of evidence: what a verdict rests on, line by line. Pure, and decides nothing."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from airflow_tune_restore.experiments.evidence import (
    CLOCKS_AGREE,
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

_NOT_CHECKED = "not checked"
_UNKNOWN = "unknown"


def describe_evidence(
    summary: StateSummary | None,
    evidence: Evidence,
    counted: Mapping[EvidenceKind, Indicates],
    *,
    stale_after: timedelta,
) -> tuple[EvidenceRow, ...]:
    """Return the table of one experiment.

    Args:
        summary: Summary of its newest state; None if it has no readable state.
        evidence: The other evidence.
        counted: What the verdict rests on.
        stale_after: Silence after which an experiment counts as dead.
    """
    allowed, why = (
        (stale_after, "stale_after") if summary is None else patience(summary, stale_after)
    )
    found = {
        EvidenceKind.ROOT: _written(evidence.root_written, evidence) or "no time from the store",
        EvidenceKind.TRIAL_DIRS: _trial_dirs(evidence),
        EvidenceKind.ALLOWED: f"{span(allowed)} ({why})",
        EvidenceKind.RESTORE: _restore(evidence),
        EvidenceKind.DRIVER: evidence.driver.found if evidence.driver else _NOT_CHECKED,
    }
    if summary is not None:
        trials = (f"{count} {status}" for status, count in summary.trials.items())
        slowest = summary.longest_interval
        found |= {
            EvidenceKind.COMMIT: _commit(evidence),
            EvidenceKind.TRIALS: ", ".join(trials),
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
        f"(dead after {span_of(status.lease.ttl_seconds)})"
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
