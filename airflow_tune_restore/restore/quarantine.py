"""The trials in quarantine of many experiments, as the shell and Airflow list them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.budget import ByteBudget
from airflow_tune_restore.experiments.health import RESTORABLE, ExperimentReport
from airflow_tune_restore.experiments.scan import THREADS
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.ledger import History, read_ledger
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.location import Location

_IN_FLIGHT = ByteBudget(64 * 1024 * 1024)
"""Most bytes of ledgers that all threads hold at the same time."""


def read_quarantines(
    store: ObjectStore, reports: Sequence[ExperimentReport]
) -> list[tuple[ExperimentReport, dict[str, History] | None]]:
    """Return with each report of a scan the histories of its quarantined trials, by trial id.

    They are None (unknown) if the ledger cannot be read; the reason of the report then shows it. `store`
    is the scanned prefix.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda report: _read_quarantine(store, report), reports))


def _read_quarantine(
    store: ObjectStore, report: ExperimentReport
) -> tuple[ExperimentReport, dict[str, History] | None]:
    if report.health not in RESTORABLE or not report.was_restored:
        return report, {}
    top, found = (Location.parse(uri).place for uri in (store.uri, report.experiment))
    path = found.removeprefix(top).strip("/")
    quarantined: dict[str, History] | None
    try:
        quarantined, warning = _read_ledger(store.at(path) if path else store)
    except TuneRestoreError as error:
        quarantined, warning = None, f"its ledger cannot be read: {error}"
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the other reports
        quarantined, warning = None, str(report_unexpected(report.experiment, error))
    if warning:
        report = replace(report, reason=f"{report.reason}; {warning}")
    return report, quarantined


def _read_ledger(store: ObjectStore) -> tuple[dict[str, History], str]:
    """Return the quarantined trials, and a warning if the ledger is not valid."""
    beside = store.list_dir(layout.ROOT)
    sizes = [entry.size_bytes for entry in beside if f"{layout.ROOT}/{entry.name}" == layout.LEDGER]
    if not sizes:
        return {}, ""
    with _IN_FLIGHT.hold(max(sizes)):
        ledger, warning = read_ledger(store)
    return {key: history for key, history in ledger.trials.items() if history.quarantined}, warning
