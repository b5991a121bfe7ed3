"""A scan as the shell shows it: each experiment's health, and its trials in quarantine."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.budget import ByteBudget
from airflow_tune_restore.experiments.health import RESTORABLE, ExperimentReport
from airflow_tune_restore.experiments.scan import THREADS
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.location import Location

_IN_FLIGHT = ByteBudget(64 * 1024 * 1024)
"""What all threads hold of ledgers while they read them."""


def with_quarantined(
    store: ObjectStore, reports: Sequence[ExperimentReport]
) -> list[tuple[ExperimentReport, list[str] | None]]:
    """Add the ids of the quarantined trials of experiments that could be restored.

    Asks only where a restore has been. A ledger that cannot be used is named in the report's reason and
    keeps nobody from seeing the others; None then stands for ids that cannot be told.

    Args:
        store: The one that was scanned.
        reports: What the scan has found.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda report: _with_quarantined(store, report), reports))


def _with_quarantined(
    store: ObjectStore, report: ExperimentReport
) -> tuple[ExperimentReport, list[str] | None]:
    if report.health not in RESTORABLE or not report.was_restored:
        return report, []
    top, found = (Location.parse(uri).place for uri in (store.uri, report.experiment))
    path = found.removeprefix(top).strip("/")
    try:
        quarantined, warning = _read_quarantined(store.at(path) if path else store)
    except TuneRestoreError as error:
        quarantined, warning = None, f"its ledger cannot be read: {error}"
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the others
        quarantined, warning = None, str(report_unexpected(report.experiment, error))
    if warning:
        report = replace(report, reason=f"{report.reason}; {warning}")
    return report, quarantined


def _read_quarantined(store: ObjectStore) -> tuple[list[str] | None, str]:
    """Return the trials in quarantine, and a warning if the ledger makes no sense."""
    beside = store.list_dir(layout.ROOT)
    sizes = [entry.size_bytes for entry in beside if f"{layout.ROOT}/{entry.name}" == layout.LEDGER]
    if not sizes:
        return [], ""
    with _IN_FLIGHT.hold(max(sizes)):
        ledger, warning = read_ledger(store)
    return [key for key, history in ledger.trials.items() if history.quarantined], warning
