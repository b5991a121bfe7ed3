"""Result rows after the checkpoint that a trial resumes from.

Ray only appends to result.json, so a resumed trial repeats these rows. Rows from before this restore
stay, as in Ray, unless `trim_results` is set. Rows of an earlier attempt of this restore are always
dropped, because the trial reports them again. So are rows of the previous restore, if the trial did not
end in it.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

from airflow_tune_restore.exceptions import KeyNotFoundError, RecordUnreadableError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.numbers import read_iteration
from airflow_tune_restore.protocol.planned import read_planned
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import RunnerRequest, TrialAction
from airflow_tune_restore.protocol.result_rows import parse_row
from airflow_tune_restore.storage.base import ObjectStore

_CHECKPOINT, _ITERATION = "checkpoint_dir_name", "training_iteration"


class Start(NamedTuple):
    """The checkpoint directory that a trial starts from; `iteration` is None if it is not a number."""

    checkpoint: str
    iteration: float | None


def prepare_results(
    store: ObjectStore, request: RunnerRequest, trial_dir: str, start: Start | None
) -> None:
    """Drop the rows that the resumed trial will report again.

    Args:
        store: Rooted at the experiment directory.
        request: The attempt that starts.
        trial_dir: Ray's directory of the trial.
        start: The checkpoint it starts from; None to start from scratch, because Ray then starts new
            files (ray.tune.logger.LoggerCallback._restore_from_remote, 2.60).
    """
    texts = {name: _get(store, f"{trial_dir}/{name}") for name in _TRIM}
    is_new = start is None or request.action == TrialAction.DRAW
    starts = _rows_at_start(store, request, trial_dir, None if is_new else texts)
    if start is None:
        _back_up(store, request, texts[layout.RESULT_FILE])
        return
    for name, text in texts.items():
        first = 0 if request.trim_results else starts[name]
        trimmed = _TRIM[name](text, first, start)
        if trimmed == text:
            continue
        if name == layout.RESULT_FILE:
            _back_up(store, request, text)
        store.put(f"{trial_dir}/{name}", trimmed.encode(errors="surrogateescape"))


def _rows_at_start(
    store: ObjectStore, request: RunnerRequest, trial_dir: str, texts: dict[str, str] | None
) -> dict[str, int]:
    """Return how many rows must stay; the first attempt of the restore records it."""
    key = _start_key(request.restore_id, request.new_trial_id or request.trial_id, trial_dir)
    if not _get(store, key):
        died = _rows_before_death(store, request, trial_dir) if texts else ""
        kept = texts if texts and not request.trim_results else dict.fromkeys(_TRIM, "")
        rows = {name: _COUNT[name](kept[name]) for name in _TRIM}
        store.put(key, died.encode() if died else json.dumps(rows).encode())
    return read_record(store, key, _row_counts)


def _row_counts(body: bytes) -> dict[str, int]:
    known = json.loads(body)
    if not isinstance(known, dict) or any(type(known.get(name)) is not int for name in _TRIM):
        raise ValueError("it does not hold numbers of rows")
    return known


def _rows_before_death(store: ObjectStore, request: RunnerRequest, trial_dir: str) -> str:
    """Return the record of the previous restore of the trial; "" if the trial ended in it, or none."""
    trial_id = request.trial_id
    for restore_id in lease.earlier_restores(store, request.restore_id):
        rows = _get(store, _start_key(restore_id, trial_id, trial_dir))
        if rows:
            records = AttemptRecords(store, restore_id, trial_id)
            if not records.numbers():  # it may have taken the place of another trial
                # mypy: protocols are not hashable; a store is, by its identity
                units = _units_by_final_id(store, restore_id)  # type: ignore[arg-type]
                unit = units.get(trial_id, trial_id)
                records = AttemptRecords(store, restore_id, unit)
            outcome = records.outcome()
            has_ended = outcome is not None and outcome.ends_trial
            return "" if has_ended else rows
    return ""


@lru_cache(maxsize=4)
def _units_by_final_id(store: ObjectStore, restore_id: str) -> dict[str, str]:
    """Return the trials of the plan of an earlier restore, by the ids that they had after it.

    A run of all trials asks for each of them; a plan never changes.
    """
    try:
        trials = read_planned(store, restore_id).trials
    except (KeyNotFoundError, RecordUnreadableError):
        return {}  # of a restore long ago: it must not stop this one
    return {trial.final_trial_id: trial.trial_id for trial in trials}


def _start_key(restore_id: str, trial_id: str, trial_dir: str) -> str:
    return f"{layout.trial_dir(restore_id, trial_id)}/start-{layout.segment(trial_dir)}.json"


def _trim_json(text: str, first: int, start: Start) -> str:
    lines = list(io.StringIO(text, newline="\n"))  # no other line ends: as rows are counted
    fields = (_CHECKPOINT, _ITERATION)
    rows = [parse_row(line, fields=fields) if line.endswith("\n") else None for line in lines]
    if rows and rows[-1] is None:
        lines.pop()  # truncated during an upload: the next row would be appended to it
    kept = _choose_kept([row or {} for row in rows], start)
    return "".join([*lines[:first], *compress(lines[first:], kept[first:])])


def _choose_kept(rows: Sequence[Mapping[str, Any]], start: Start) -> list[bool]:
    """Return for each row whether it stays: all rows up to the one that reported the checkpoint.

    A trainable may count its iterations in any way, so they decide only if no row has the checkpoint.
    Then a row whose iteration is not a number stays.
    """
    named = [n for n, row in enumerate(rows) if row.get(_CHECKPOINT) == start.checkpoint]
    if named:
        return [number <= named[-1] for number in range(len(rows))]
    if start.iteration is None:
        return [True] * len(rows)
    iterations = [read_iteration(row.get(_ITERATION)) for row in rows]
    return [number is None or number <= start.iteration for number in iterations]


def _trim_csv(text: str, first: int, start: Start) -> str:
    """Drop rows, and keep the bytes of the others; a quoted field may hold line ends."""
    records = list(_csv_records(text))
    if not records or _ITERATION not in records[0][1]:
        return text
    (header, names), body = records[0], records[1:]
    if body and not (body[-1][0].endswith("\n") and len(body[-1][1]) == len(names)):
        body.pop()  # truncated
    rows = [dict(zip(names, fields, strict=False)) for _, fields in body]
    kept = _choose_kept([{**row, **_number_of(row)} for row in rows], start)
    raws = [raw for raw, _ in body]
    return "".join([header, *raws[:first], *compress(raws[first:], kept[first:])])


def _number_of(row: Mapping[str, str]) -> dict[str, float | None]:
    try:
        return {_ITERATION: float(row[_ITERATION])}
    except (KeyError, ValueError):
        return {_ITERATION: None}


def _csv_records(text: str) -> Iterator[tuple[str, list[str]]]:
    consumed: list[str] = []
    csv.field_size_limit(layout.MAX_RESULT_BYTES)  # the default limit is too small for some results

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            consumed.append(line)
            yield line

    for row in csv.reader(lines()):
        yield "".join(consumed), row
        consumed.clear()


_TRIM = {layout.RESULT_FILE: _trim_json, layout.PROGRESS_FILE: _trim_csv}
_COUNT: dict[str, Callable[[str], int]] = {
    layout.RESULT_FILE: lambda text: text.count("\n"),
    layout.PROGRESS_FILE: lambda text: max(
        0, sum(raw.endswith("\n") for raw, _ in _csv_records(text)) - 1
    ),
}


def _back_up(store: ObjectStore, request: RunnerRequest, text: str) -> None:
    """Save the rows from before this restore, once."""
    key = layout.results_backup_key(request.restore_id, request.trial_id)
    if text and not _get(store, key):
        store.put(key, text.encode(errors="surrogateescape"))


def _get(store: ObjectStore, key: str) -> str:
    try:
        body = store.get(key, max_bytes=layout.MAX_RESULT_BYTES)
        return body.decode("utf-8", "surrogateescape")
    except KeyNotFoundError:
        return ""
