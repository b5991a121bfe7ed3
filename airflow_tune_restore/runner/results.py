"""Result rows past the checkpoint a trial resumes from.

Ray alone appends to result.json and so repeats those rows. Rows that stood there before this restore
are left to Ray's way unless `trim_results` asks otherwise. Rows that an earlier attempt of this same
restore wrote are dropped always: that attempt died, and the trial reports them again.
"""

import csv
import io
import json

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import RunnerRequest
from airflow_tune_restore.storage.base import ObjectStore


def prepare_results(
    store: ObjectStore, request: RunnerRequest, trial_dir: str, iteration: int
) -> None:
    """Drop the rows of a trial that its resumed run will report again.

    Args:
        store: Rooted at the experiment directory.
        request: The attempt about to run.
        trial_dir: Ray's directory of the trial.
        iteration: `training_iteration` it resumes after.
    """
    first = _rows_at_start(store, request, trial_dir)
    for name, trim in ((layout.RESULT_FILE, _trim_json), (layout.PROGRESS_FILE, _trim_csv)):
        key = f"{trial_dir}/{name}"
        text = _get(store, key)
        if text is None:
            continue
        trimmed = trim(text, 0 if request.trim_results else first, iteration)
        if trimmed == text:
            continue
        if name == layout.RESULT_FILE and request.trim_results:
            _back_up(store, request, text)
        store.put(key, trimmed.encode())


def _rows_at_start(store: ObjectStore, request: RunnerRequest, trial_dir: str) -> int:
    """Return how many rows there were before this restore; the first to ask writes it down."""
    ours = layout.trial_dir(request.restore_id, request.trial_id)
    key = f"{ours}/start-{layout.segment(trial_dir)}.json"
    known = _get(store, key)
    if known is None:
        rows = len((_get(store, f"{trial_dir}/{layout.RESULT_FILE}") or "").splitlines())
        store.put(key, json.dumps({"rows": rows}).encode())
        return rows
    return int(json.loads(known)["rows"])


def _trim_json(text: str, first: int, iteration: int) -> str:
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines[first:] if _iteration(line) <= iteration]
    return "".join(lines[:first] + kept)


def _iteration(line: str) -> float:
    """Return the iteration of a row; one that a killed writer left unfinished is past everything."""
    try:
        return float(json.loads(line)["training_iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _trim_csv(text: str, first: int, iteration: int) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or "training_iteration" not in rows[0]:
        return text
    column = rows[0].index("training_iteration")
    kept = [row for row in rows[1 + first :] if len(row) > column and int(row[column]) <= iteration]
    if len(kept) == len(rows[1 + first :]):
        return text
    out = io.StringIO()
    csv.writer(out).writerows(rows[: 1 + first] + kept)  # Ray writes them with the same dialect
    return out.getvalue()


def _back_up(store: ObjectStore, request: RunnerRequest, text: str) -> None:
    """Keep the rows as they were, once."""
    key = layout.results_backup_key(request.restore_id, request.trial_id)
    if _get(store, key) is None:
        store.put(key, text.encode())


def _get(store: ObjectStore, key: str) -> str | None:
    try:
        return store.get(key).decode("utf-8", "replace")
    except KeyNotFoundError:
        return None
