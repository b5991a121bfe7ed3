"""One experiment -> its page: health and why, and its trials column by column, as strict JSON."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.evidence import EvidenceKind, EvidenceRow
from airflow_tune_restore.experiments.examine import ExamineOptions, examine_listed
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, ExperimentReport
from airflow_tune_restore.experiments.root import Root
from airflow_tune_restore.protocol.lease_objects import AskHolder, was_restored
from airflow_tune_restore.protocol.printable import counted, printable
from airflow_tune_restore.restore.history import FailedAttempt, History
from airflow_tune_restore.restore.ledger import Ledger, read_ledger
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import IN_FLIGHT
from airflow_tune_restore.views.columns import (
    CONFIG,
    MAX_NAMES,
    METRICS,
    TIME_TOTAL,
    Cell,
    shown_name,
)
from airflow_tune_restore.views.showable import as_iso
from airflow_tune_restore.views.shown import ShownExperiment

MOST_COLUMN_CHARACTERS = 1_500_000
"""Of the first columns of an experiment as JSON; the others are asked for one by one."""

MOST_PARAMETERS = 6
"""Columns of differing hyper-parameters that are shown at first."""


def show_experiment(
    store: ObjectStore,
    root: Root,
    shown: ShownExperiment,
    *,
    path: str = "",
    address: str = "",
    stale_after: timedelta = DEFAULT_STALE_AFTER,
    ask_holder: AskHolder | None = None,
    report: ExperimentReport | None = None,
) -> dict[str, Any]:
    """Return what the page of an experiment shows first; writes nothing.

    `path` is its path below the prefix, and `address` its address for commands and DAGs. Health and
    ledger are read anew: they change while the root stays the same. A caller may give the `report` that
    `examine_shown` has just returned.
    """
    if report is None:
        report = examine_shown(store, root, shown, stale_after=stale_after, ask_holder=ask_holder)
    ledger, ledger_warning = read_ledger_of(store, shown)
    columns = _first_columns(shown, ledger)
    left_out = shown.columns.left_out
    warnings = [*report.warnings]
    if left_out:
        warnings.append(f"the values of {counted(left_out, 'trial')} are too many to be shown")
    trainables = shown.experiment.trainables if shown.experiment is not None else ()
    named = shown.tuner.trainable_name if shown.tuner is not None else None
    return {
        "path": path,
        "name": printable(report.name),
        "place": printable(store.uri),
        "address": address or printable(store.uri),
        "health": report.health.value,
        "reason": report.reason,
        "evidence": _evidence(report, shown.older_row),
        "warnings": warnings,
        "metric": printable(shown.metric) if shown.metric else None,
        "mode": shown.mode,
        "scheduler": printable(shown.tuner.scheduler) if shown.tuner is not None else None,
        "trainable": printable(", ".join(trainables) or named or "") or None,
        "state_file": report.state_file,
        "last_write": as_iso(report.last_write),
        "samples_left": report.samples_left,
        "trials": {
            "ids": [trial.trial_id for trial in shown.trials],
            "columns": columns,
            "order": list(columns),
        },
        "available": _available(shown),
        "quarantine": {
            trial_id: history.quarantined
            for trial_id, history in ledger.trials.items()
            if history.quarantined and trial_id in shown.numbers
        },
        "ledger_warning": ledger_warning,
    }


def examine_shown(
    store: ObjectStore,
    root: Root,
    shown: ShownExperiment,
    *,
    stale_after: timedelta = DEFAULT_STALE_AFTER,
    ask_holder: AskHolder | None = None,
) -> ExperimentReport:
    """Report on an experiment without reading its state again; a restore that runs on it counts.

    Before one with unfinished trials is called dead, their directories are listed: two requests for each.
    """
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        options = ExamineOptions(
            now=root.now,
            stale_after=stale_after,
            ask_holder=ask_holder,
            lists_again=False,  # the page is as old as the listing that its trials are from
            read_state=shown.read_state,
            pool=pool,
        )
        return examine_listed(store, root.entries, "", options)[0]


def show_column(store: ObjectStore, shown: ShownExperiment, name: str) -> dict[str, Any]:
    """Return one column of the trials, in the order of their ids.

    Raises:
        InvalidInputError: If no column can have this name.
    """
    of_ledger = name in _OF_LEDGER
    ledger = read_ledger_of(store, shown)[0] if of_ledger else Ledger()
    return {
        "name": name,
        "state_file": shown.state_file,
        "values": _column(shown, ledger, name),
    }


def read_ledger_of(store: ObjectStore, shown: ShownExperiment) -> tuple[Ledger, str]:
    """Return the ledger, and a warning; an error of the store costs the ledger alone."""
    if not was_restored(shown.entries):
        return Ledger(), ""
    try:
        return read_ledger(store)
    except TuneRestoreError as error:
        return Ledger(), printable(f"its ledger cannot be read: {error}")


def _evidence(report: ExperimentReport, older: EvidenceRow | None) -> list[dict[str, str]]:
    """Return the table of evidence; older runs were looked for when the state was read."""
    rows = [
        older if older is not None and row.name == EvidenceKind.OLDER else row
        for row in report.evidence
    ]
    return [
        {"name": str(row.name), "found": row.found, "indicates": str(row.indicates)} for row in rows
    ]


def _last_failure(ledger: Ledger, trial_id: str) -> FailedAttempt | None:
    failures = ledger.trials.get(trial_id, History()).failures
    return failures[-1] if failures else None


def _of_last_failure(name: str) -> Callable[[ShownExperiment, Ledger], list[Cell]]:
    def values(shown: ShownExperiment, ledger: Ledger) -> list[Cell]:
        last = (_last_failure(ledger, trial.trial_id) for trial in shown.trials)
        return ["" if failure is None else getattr(failure, name) for failure in last]

    return values


_FIXED: Mapping[str, Callable[[ShownExperiment, Ledger], list[Cell]]] = {
    "status": lambda shown, _: [trial.status.value for trial in shown.trials],
    "iteration": lambda shown, _: [trial.iteration for trial in shown.trials],
    "checkpoint": lambda shown, _: [facts.checkpoint for facts in shown.columns.all_facts()],
    "cause": _of_last_failure("cause"),
    "error": _of_last_failure("message"),
    "runtime": lambda shown, _: shown.columns.column(f"{METRICS}{TIME_TOTAL}"),
}
"""The columns that every experiment has. Cause and error are those of the last failure that counts."""

_OF_LEDGER = ("cause", "error")


def _column(shown: ShownExperiment, ledger: Ledger, name: str) -> list[Cell]:
    if name in _FIXED:
        return _FIXED[name](shown, ledger)
    if name.startswith((CONFIG, METRICS)):
        return shown.columns.column(name)
    raise InvalidInputError(
        f"No column has the name {printable(name)!r}. Columns are {', '.join(_FIXED)}, and those that "
        f"begin with {CONFIG} or {METRICS}."
    )


def _first_columns(shown: ShownExperiment, ledger: Ledger) -> dict[str, list[Cell]]:
    """Return status, iteration, metric, errors on record and differing parameters, if not too large."""
    names = ["status", "iteration"]
    if shown.metric:
        names.append(f"{METRICS}{shown_name(shown.metric)}")
    always = len(names)
    if any(_last_failure(ledger, trial.trial_id) for trial in shown.trials):
        names.append("error")
    names += shown.columns.differing[:MOST_PARAMETERS]
    columns: dict[str, list[Cell]] = {}
    left = MOST_COLUMN_CHARACTERS
    for number, name in enumerate(names):
        values = _column(shown, ledger, name)
        left -= len(json.dumps(values, ensure_ascii=False))
        if left >= 0 or number < always:
            columns[name] = values
    return columns


def _available(shown: ShownExperiment) -> list[str]:
    metric = [f"{METRICS}{shown_name(shown.metric)}"] if shown.metric else []
    return list(dict.fromkeys([*_FIXED, *metric, *shown.columns.names]))[:MAX_NAMES]
