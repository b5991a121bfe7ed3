"""A scan for the shell: the health of each experiment, and its trials in quarantine."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from airflow_tune_restore.cli.options import ScanOptions
from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.budget import ByteBudget
from airflow_tune_restore.experiments.health import RESTORABLE, ExperimentReport
from airflow_tune_restore.experiments.scan import THREADS, scan
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.location import Location

_IN_FLIGHT = ByteBudget(64 * 1024 * 1024)
"""Most bytes of ledgers that all threads hold at the same time."""


def scan_prefix(
    store: ObjectStore, options: ScanOptions
) -> list[tuple[ExperimentReport, list[str] | None]]:
    """Return a report for each experiment, with the ids of its quarantined trials.

    They are None (unknown) if the ledger cannot be read; the reason of the report shows it.

    Raises:
        InvalidInputError: If the prefix is a path that is not a directory.
    """
    reports = scan(
        store,
        stale_after=options.stale_after,
        selection=options.selection,
        use_index=options.use_index,
        explains=options.explain,
    )
    if not reports:
        _check_is_directory(store)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda report: _with_quarantined(store, report), reports))


def _check_is_directory(store: ObjectStore) -> None:
    """Refuse a mistyped path. A nightly DAG must not: its first sweep creates the directory."""
    if isinstance(store, LocalStore) and not os.path.isdir(store.uri):  # noqa: PTH112  never raises
        raise InvalidInputError(
            f"{store.uri} is not a directory. Give the directory that holds the experiments, or a URL "
            "such as s3://bucket/prefix."
        )


def _with_quarantined(
    store: ObjectStore, report: ExperimentReport
) -> tuple[ExperimentReport, list[str] | None]:
    if report.health not in RESTORABLE or not report.was_restored:
        return report, []
    top, found = (Location.parse(uri).place for uri in (store.uri, report.experiment))
    path = found.removeprefix(top).strip("/")
    quarantined: Sequence[str] | None
    try:
        quarantined, warning = _read_quarantined(store.at(path) if path else store)
    except TuneRestoreError as error:
        quarantined, warning = None, f"its ledger cannot be read: {error}"
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the other reports
        quarantined, warning = None, str(report_unexpected(report.experiment, error))
    if warning:
        report = replace(report, reason=f"{report.reason}; {warning}")
    return report, quarantined


def _read_quarantined(store: ObjectStore) -> tuple[list[str], str]:
    """Return the quarantined trials, and a warning if the ledger is not valid."""
    beside = store.list_dir(layout.ROOT)
    sizes = [entry.size_bytes for entry in beside if f"{layout.ROOT}/{entry.name}" == layout.LEDGER]
    if not sizes:
        return [], ""
    with _IN_FLIGHT.hold(max(sizes)):
        ledger, warning = read_ledger(store)
    return [key for key, history in ledger.trials.items() if history.quarantined], warning
