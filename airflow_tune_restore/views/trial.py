"""One trial -> all that its row, the ledger and its `error.txt` tell of it, as strict JSON."""

from typing import Any

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments.budget import IN_MEMORY
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.storage.base import ERROR_FILE, ObjectStore
from airflow_tune_restore.views.experiment import read_ledger_of
from airflow_tune_restore.views.shown import ShownExperiment

MAX_ERROR_BYTES = 4 * 1024 * 1024
"""A larger `error.txt` is not read: a traceback has some KB."""

MAX_ERROR_CHARACTERS, _LINE_LENGTH = 20_000, 2000


def show_trial(store: ObjectStore, shown: ShownExperiment, trial_id: str) -> dict[str, Any]:
    """Return one trial in full.

    Raises:
        UnknownTrialError: If the experiment has no such trial.
    """
    number = shown.number_of(store.uri, trial_id)
    trial, facts = shown.trials[number], shown.columns.facts(number)
    history = read_ledger_of(store, shown)[0].trials.get(trial_id, History())
    return {
        "trial_id": trial.trial_id,
        "status": trial.status.value,
        "directory": printable(trial.trial_dir) if trial.trial_dir else None,
        "iteration": trial.iteration,
        "config": facts.config,
        "metrics": facts.result,
        "checkpoint": facts.checkpoint,
        "resources": facts.resources,
        "problem": printable(trial.unusable),
        "error_file": _read_error(store, trial.trial_dir),
        "failures": [
            {**msgspec.structs.asdict(failure), "released": released}
            for failures, released in ((history.released, True), (history.failures, False))
            for failure in failures
        ],
        "quarantined": history.quarantined,
    }


def _read_error(store: ObjectStore, trial_dir: str | None) -> str:
    """Return the end of `error.txt`, fit to be shown; "" without one, else why it cannot be read."""
    if trial_dir is None:
        return ""
    try:
        with IN_MEMORY.hold(MAX_ERROR_BYTES):
            body = store.get(f"{trial_dir}/{ERROR_FILE}", max_bytes=MAX_ERROR_BYTES)
    except KeyNotFoundError:
        return ""
    except TuneRestoreError as error:
        return printable(f"{ERROR_FILE} cannot be read: {error}")
    end = body[-4 * MAX_ERROR_CHARACTERS :].decode(errors="replace")
    lines = (printable(line, _LINE_LENGTH) for line in end.splitlines())
    return "\n".join(lines)[-MAX_ERROR_CHARACTERS:]
