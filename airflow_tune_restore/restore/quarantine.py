"""The trials in quarantine of many experiments, as the shell and Airflow list them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.budget import ByteBudget
from airflow_tune_restore.experiments.health import RESTORABLE, ExperimentReport
from airflow_tune_restore.experiments.scan import THREADS
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.location import Location

_IN_FLIGHT = ByteBudget(64 * 1024 * 1024)
"""Most bytes of ledgers that all threads hold at the same time."""


class Quarantine(NamedTuple):
    """The quarantine of one experiment.

    `trials` holds the histories of the quarantined trials by id; None (unknown) if the ledger cannot be
    read. `warning` is what is wrong with the ledger, or "".
    """

    report: ExperimentReport
    trials: dict[str, History] | None
    warning: str = ""


def read_quarantines(store: ObjectStore, reports: Sequence[ExperimentReport]) -> list[Quarantine]:
    """Read the quarantine of each experiment of a scan; `store` is the scanned prefix."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda report: _read_quarantine(store, report), reports))


def path_below(store: ObjectStore, report: ExperimentReport) -> str:
    """Return the path of an experiment below the prefix that was scanned; "" for the prefix itself."""
    top, found = (Location.parse(uri).place for uri in (store.uri, report.experiment))
    return found.removeprefix(top).strip("/")


def _read_quarantine(store: ObjectStore, report: ExperimentReport) -> Quarantine:
    if report.health not in RESTORABLE or not report.was_restored:
        return Quarantine(report, {})
    path = path_below(store, report)
    try:
        return Quarantine(report, *_read_ledger(store.at(path) if path else store))
    except TuneRestoreError as error:
        return Quarantine(report, None, f"its ledger cannot be read: {error}")
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the other reports
        return Quarantine(report, None, str(report_unexpected(report.experiment, error)))


def _read_ledger(store: ObjectStore) -> tuple[dict[str, History], str]:
    """Return the quarantined trials, and a warning if the ledger is not valid."""
    beside = store.list_dir(layout.ROOT)
    sizes = [entry.size_bytes for entry in beside if f"{layout.ROOT}/{entry.name}" == layout.LEDGER]
    if not sizes:
        return {}, ""
    with _IN_FLIGHT.hold(max(sizes)):
        ledger, warning = read_ledger(store)
    return {key: history for key, history in ledger.trials.items() if history.quarantined}, warning
