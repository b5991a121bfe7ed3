"""Store -> the rows of one trial's `result.json` as one curve of one metric.

The file is read as a stream, and of each row four numbers are kept: a file of any allowed size takes
little memory. Its writer is untrusted.

Iterations of a curve grow. Ray appends to the file, so a trial that went back to a checkpoint reports
iterations again (a restore, Ray's own retries, PBT). The rows from such an iteration on are then those of
the newest run, and the earlier ones of the same iterations are left out: the curve is the line that led
to the last row. If a trainable counts in another way, so that most rows do not grow, its rows are
numbered instead.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments.budget import IN_MEMORY, read_limit
from airflow_tune_restore.experiments.trial import follow_metric
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.numbers import read_iteration
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.result_rows import parse_row
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.views.columns import TIME_TOTAL, number_columns
from airflow_tune_restore.views.showable import finite

_KEPT_ROWS = 20_000
"""Of one trial: forty times the points that are shown. Every second one goes if there are more."""

_LOOKED_AT = 4
"""Rows at the begin of a file whose metrics are named; the last row is looked at, too."""

_ROW = msgspec.json.Decoder(dict[str, Any])


class Limits(NamedTuple):
    """Bytes of one file: a larger one is not read; of a larger one, rows in equal steps are decoded."""

    read_bytes: int = layout.MAX_RESULT_BYTES
    decoded_bytes: int = 32 * 1024 * 1024


class Point(NamedTuple):
    """One row: the value is None if it is NaN or infinite. Times are None if they are not numbers."""

    iteration: float
    time: float | int | None
    clock: float | int | None
    value: float | int | None


@dataclass(slots=True)
class Curve:
    """One metric of one trial. Iterations of the points grow strictly.

    Args:
        metrics: Flat names of the numbers in some of its rows.
        rows: How many rows were decoded, also those without the metric.
        numbered: Whether rows are numbered because most of their iterations do not grow.
        problem: What is wrong with the file, or was left out; "" if nothing.
    """

    points: list[Point] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    rows: int = 0
    numbered: bool = False
    problem: str = ""


def read_curve(store: ObjectStore, trial_dir: str | None, metric: str, limits: Limits) -> Curve:
    """Read the curve of one trial; what is wrong with its file is told in the curve."""
    if trial_dir is None:
        return Curve(problem="it never started")
    key = f"{trial_dir}/{layout.RESULT_FILE}"
    try:
        listed = [e.size_bytes for e in store.list_dir(trial_dir) if e.name == layout.RESULT_FILE]
        if not listed:
            return Curve(problem=f"it has no {layout.RESULT_FILE}")
        if listed[0] > limits.read_bytes:
            return Curve(
                problem=f"its {layout.RESULT_FILE} of {_megabytes(listed[0])} is too large"
            )
        limit = read_limit(listed[0], layout.MAX_RESULT_BYTES)
        with IN_MEMORY.hold(listed[0]):  # some stores have it in one piece
            return _read(store.stream(key, max_bytes=limit), metric, listed[0], limits)
    except KeyNotFoundError:
        return Curve(problem=f"it has no {layout.RESULT_FILE}")
    except TuneRestoreError as error:
        return Curve(problem=printable(f"its {layout.RESULT_FILE} cannot be read: {error}"))


def _read(pieces: Iterable[bytes], metric: str, size_bytes: int, limits: Limits) -> Curve:
    rows = _Rows(metric, step=max(1, math.ceil(size_bytes / limits.decoded_bytes)))
    for line in _lines(pieces):
        rows.add(line)
    return rows.curve(size_bytes)


class _Rows:
    """Collects the rows of one file, line by line."""

    def __init__(self, metric: str, step: int) -> None:
        self._metric = metric
        self._step = step
        self._lines = self._decoded = self._broken = self._without = 0
        self._skipped: bytes | None = None
        self._points: list[Point] = []
        self._metrics: dict[str, None] = {}
        self._last: dict[str, Any] = {}

    def add(self, line: bytes) -> None:
        """Take the next line, or leave it out if there are too many."""
        self._lines += 1
        if (self._lines - 1) % self._step:
            self._skipped = line
            return
        self._skipped = None
        self._decode(line)
        if len(self._points) > _KEPT_ROWS:
            self._points = self._points[::2]
            self._step *= 2

    def curve(self, size_bytes: int) -> Curve:
        """Return the curve of the lines so far."""
        if self._skipped is not None:  # the last row always counts
            self._decode(self._skipped)
        self._name_metrics(self._last)
        points, numbered = _growing(self._points)
        return Curve(
            points,
            list(self._metrics),
            self._decoded,
            numbered,
            self._problem(size_bytes, numbered),
        )

    def _decode(self, line: bytes) -> None:
        row = _parse(line)
        if row is None:
            self._broken += 1
            return
        self._decoded += 1
        self._last = row
        if self._decoded <= _LOOKED_AT:
            self._name_metrics(row)
        value = follow_metric(row, self._metric)
        if type(value) not in (int, float):
            self._without += 1
            return
        iteration = read_iteration(row.get("training_iteration"))
        if iteration is None or not math.isfinite(iteration):
            iteration = self._points[-1].iteration + 1 if self._points else 1
        self._points.append(
            Point(
                finite(iteration) or 0,
                finite(row.get(TIME_TOTAL)),
                finite(row.get("timestamp")),
                finite(value),
            )
        )

    def _name_metrics(self, row: dict[str, Any]) -> None:
        own = {name: value for name, value in row.items() if name != "config"}
        self._metrics.update(dict.fromkeys(number_columns(own)))

    def _problem(self, size_bytes: int, numbered: bool) -> str:  # noqa: FBT001
        found = []
        if not self._lines:
            found.append(f"its {layout.RESULT_FILE} is empty")
        if self._step > 1:
            size = _megabytes(size_bytes)
            found.append(
                f"its {layout.RESULT_FILE} has {size} and {self._lines} rows: one row in {self._step} "
                "counts"
            )
        if self._broken:
            found.append(f"{self._broken} of its rows cannot be read")
        if self._metric and self._decoded and self._without == self._decoded:
            found.append(f"none of its rows has the metric {printable(self._metric, 100)}")
        if numbered:
            found.append("its iterations do not grow: its rows are numbered instead")
        return "; ".join(found)


def _growing(points: list[Point]) -> tuple[list[Point], bool]:
    """Return the points whose iterations grow, and whether they are numbers of rows instead."""
    kept: list[Point] = []
    backward = 0
    for before, point in zip([None, *points], points, strict=False):
        backward += before is not None and point.iteration <= before.iteration
        while kept and kept[-1].iteration >= point.iteration:
            kept.pop()
        kept.append(point)
    if 2 * backward <= len(points):
        return kept, False
    return [point._replace(iteration=place) for place, point in enumerate(points, 1)], True


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream that are not empty; one that is too large counts as not readable."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(rest) > bounded_json.MAX_DOCUMENT_BYTES:
            rest = rest[: bounded_json.MAX_DOCUMENT_BYTES + 1]
    if rest.strip():
        yield rest


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a row; None for a line that was cut off, or is too large (`bounded_json`)."""
    if len(line) > bounded_json.MAX_DOCUMENT_BYTES:
        return None
    with bounded_json.alone(len(line)):
        try:
            bounded_json.check_values(line)
        except ValueError:
            return None
        try:
            return _ROW.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError):  # NaN and infinities, or worse
            return parse_row(line.decode(errors="replace"))


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1_000_000:.1f} MB"
