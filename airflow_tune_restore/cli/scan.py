"""A scan for the shell: the health of each experiment, and its trials in quarantine."""

import os
from dataclasses import replace

from airflow_tune_restore.cli.options import ScanOptions
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import ExperimentReport
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.quarantine import read_quarantines
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.local import LocalStore


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
    return [_with_warning(*quarantine) for quarantine in read_quarantines(store, reports)]


def _with_warning(
    report: ExperimentReport, trials: dict[str, History] | None, warning: str
) -> tuple[ExperimentReport, list[str] | None]:
    if warning:
        report = replace(report, reason=f"{report.reason}; {warning}")
    return report, None if trials is None else list(trials)


def _check_is_directory(store: ObjectStore) -> None:
    """Refuse a mistyped path. A nightly DAG must not: its first sweep creates the directory."""
    if isinstance(store, LocalStore) and not os.path.isdir(store.uri):  # noqa: PTH112  never raises
        raise InvalidInputError(
            f"{store.uri} is not a directory. Give the directory that holds the experiments, or a URL "
            "such as s3://bucket/prefix."
        )
