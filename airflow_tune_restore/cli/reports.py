"""A scan as the shell shows it: each experiment's health, and its trials in quarantine."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from airflow_tune_restore.experiments.health import RESTORABLE, ExperimentReport
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.fs import open_store

_CONCURRENCY = 16


def with_quarantined(
    reports: Sequence[ExperimentReport],
) -> list[tuple[ExperimentReport, list[str]]]:
    """Add the ids of the quarantined trials of experiments that could be restored."""
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        return list(zip(reports, pool.map(_quarantined, reports), strict=True))


def _quarantined(report: ExperimentReport) -> list[str]:
    if report.health not in RESTORABLE:
        return []
    ledger, _ = read_ledger(open_store(report.experiment))
    return [trial_id for trial_id, history in ledger.trials.items() if history.quarantined]
