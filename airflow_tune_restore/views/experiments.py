"""Reports of a scan -> the list of experiments below a prefix, as strict JSON."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from airflow_tune_restore.experiments.evidence import EvidenceKind, Indicates
from airflow_tune_restore.experiments.health import ExperimentReport
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.restore.quarantine import Quarantine, path_below
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.views.best_values import Best, BestValues
from airflow_tune_restore.views.showable import as_iso


def list_experiments(
    store: ObjectStore,
    quarantines: Sequence[Quarantine],
    best_values: BestValues,
    *,
    prefix: str,
    scanned_at: datetime,
) -> dict[str, Any]:
    """Return the list of the experiments below a prefix, with the best values that are known by now.

    `store` is the scanned prefix, whose label is `prefix`. `quarantines` are the reports of a scan, with
    what `restore.quarantine.read_quarantines` adds. They may be listed again until nothing is pending.
    """
    rows, pending = [], 0
    for quarantine in quarantines:
        path = path_below(store, quarantine.report)
        found = best_values.ask(store.at(path) if path else store, quarantine.report, prefix)
        pending += found.is_pending
        rows.append(show_row(quarantine, path, found.best))
    return {
        "prefix": prefix,
        "place": printable(store.uri),
        "scanned_at": as_iso(scanned_at),
        "pending": pending,
        "experiments": rows,
    }


def show_row(quarantine: Quarantine, path: str, best: Best) -> dict[str, Any]:
    """Return one row of the list."""
    report = quarantine.report
    warnings = [*report.warnings, quarantine.warning]
    return {
        "path": path,
        "name": printable(report.name),
        "health": report.health.value,
        "reason": report.reason,
        "trials": {printable(status): count for status, count in report.trials.items()},
        "samples_left": report.samples_left,
        "metric": best.metric,
        "mode": best.mode,
        "best": best.value,
        "best_trial": best.trial_id,
        "last_write": as_iso(report.last_write),
        "restore": _restore_at_work(report),
        "quarantined": None if quarantine.trials is None else len(quarantine.trials),
        "warnings": [printable(warning, NOTE_LENGTH) for warning in warnings if warning],
    }


def _restore_at_work(report: ExperimentReport) -> str | None:
    """Return who restores it now, in words; None if no one does, or if its lease was not read.

    The lease is read where it decides. A living restore then decides, and counts as a sign of life.
    """
    for row in report.evidence:
        if row.name == EvidenceKind.RESTORE and row.indicates == Indicates.ALIVE:
            return row.found
    return None
