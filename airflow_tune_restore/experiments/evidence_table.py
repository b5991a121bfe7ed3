"""The table of evidence: what a verdict rests on, line by line. Pure, and decides nothing."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from airflow_tune_restore.experiments.health import (
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

_NOT_LOOKED_AT = "not looked at"


def describe_evidence(
    facts: StateSummary | None,
    evidence: Evidence,
    counted: Mapping[EvidenceKind, Indicates],
    *,
    stale_after: timedelta,
) -> tuple[EvidenceRow, ...]:
    """Return the table of one experiment.

    Args:
        facts: What its newest state says; None where none could be read.
        evidence: What was seen besides.
        counted: What the verdict rests on.
        stale_after: Silence after which an experiment counts as dead.
    """
    allowed, why = (stale_after, "stale_after") if facts is None else patience(facts, stale_after)
    found = {
        EvidenceKind.ROOT: _written(evidence.root_written, evidence) or "the store does not say",
        EvidenceKind.TRIAL_DIRS: _trial_dirs(evidence),
        EvidenceKind.ALLOWED: f"{span(allowed)} ({why})",
        EvidenceKind.RESTORE: _restore(evidence),
        EvidenceKind.DRIVER: "nobody was asked"
        if evidence.driver is None
        else evidence.driver.found,
    }
    if facts is not None:
        found |= {
            EvidenceKind.COMMIT: _commit(evidence),
            EvidenceKind.TRIALS: ", ".join(
                f"{count} {status}" for status, count in facts.trials.items()
            ),
            EvidenceKind.SAMPLES: _samples(facts, evidence),
            EvidenceKind.START: _start(evidence),
            EvidenceKind.SNAPSHOTS: _snapshots(facts),
            EvidenceKind.ITERATION: span_of(facts.longest_interval)
            if facts.longest_interval
            else "not recorded",
            EvidenceKind.CLOCK: _clock(facts, evidence),
            EvidenceKind.OLDER: _older(evidence),
        }
    return tuple(
        EvidenceRow(name=clue, found=text, speaks_for=counted.get(clue, ""))
        for clue, text in found.items()
    )


def _written(at: datetime | None, evidence: Evidence) -> str:
    if at is None:
        return ""
    by_restore = ", by a restore" if evidence.is_by_restore(at) else ""
    return f"{at:%Y-%m-%d %H:%M:%S}, {ago(evidence.now - at)}{by_restore}"


def _trial_dirs(evidence: Evidence) -> str:
    if EvidenceKind.TRIAL_DIRS not in evidence.looked_at:
        return _NOT_LOOKED_AT
    return _written(evidence.trials_written, evidence) or "none"


def _commit(evidence: Evidence) -> str:
    at = evidence.committed_at
    return f"the newest state, {at:%Y-%m-%d %H:%M:%S}" if at else "did not make the newest state"


def _restore(evidence: Evidence) -> str:
    if EvidenceKind.RESTORE not in evidence.looked_at:
        return _NOT_LOOKED_AT
    if (sign := evidence.restore) is None:
        return "none"
    silent = f"silent for {span_of(sign.silent_seconds)}"
    if math.isinf(sign.silent_seconds):
        silent = "last seen at a time that the store does not tell"
    elif sign.silent_seconds < -CLOCKS_AGREE.total_seconds():
        silent = f"last seen {span_of(-sign.silent_seconds)} in the future, which tells nothing"
    return (
        f"{sign.lease.restore_id} of {sign.lease.holder}, {silent} "
        f"(dead after {span_of(sign.lease.ttl_seconds)})"
    )


def _samples(facts: StateSummary, evidence: Evidence) -> str:
    if facts.samples_left is not None:
        return f"{facts.samples_left} never drawn"
    return "not known" if EvidenceKind.SAMPLES in evidence.looked_at else _NOT_LOOKED_AT


def _older(evidence: Evidence) -> str:
    if EvidenceKind.OLDER not in evidence.looked_at:
        return _NOT_LOOKED_AT
    return "; ".join(evidence.older_runs) or "none"


def _start(evidence: Evidence) -> str:
    if evidence.tuner_written is None or evidence.state_written is None:
        return "cannot be told"
    if not evidence.is_restarting:
        return "none since the newest state"
    return f"tuner.pkl was written {evidence.tuner_written:%H:%M:%S}, after the newest state"


def _snapshots(facts: StateSummary) -> str:
    every = facts.snapshot_period
    return "as often as they are cheap" if every is None else f"every {every:g} s"


def _clock(facts: StateSummary, evidence: Evidence) -> str:
    """Hold the driver's clock against the store's; which of them is right does not matter to us."""
    if facts.last_result is None or evidence.state_written is None or evidence.committed_at:
        return "cannot be told"
    try:
        ahead = datetime.fromtimestamp(facts.last_result, UTC) - evidence.state_written
    except (OverflowError, OSError, ValueError):
        return "tells no time"
    if ahead > CLOCKS_AGREE:  # a state is written soon after the newest result in it
        return f"{span(ahead)} ahead of the store's"
    return f"not ahead of the store's; newest result {span(-ahead)} before the newest state"
