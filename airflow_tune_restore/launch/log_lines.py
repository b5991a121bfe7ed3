"""The output of a runner as a log shows it: which lines, and in which form. Standard library only."""

import heapq
import re
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from airflow_tune_restore.protocol.printable import printable, shortened
from airflow_tune_restore.protocol.request import RunnerProgress

MOST_LINES = 1000
MOST_CHARACTERS = 256 * 1024
"""Limits of what is shown per poll, for results and for other lines each: the newest."""

LONGEST_LINE = 16_000
"""Characters of a line that are kept: `printable` reads only these."""

_SHOWN_METRICS = 3
_LINE_LENGTH = 4000

_SOURCE = re.compile(r"\([^()]{1,200}\) ")
"""The process whose output Ray forwards: `(train pid=17, ip=10.0.0.2) `, `(raylet) `."""

_MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
_LEVEL = r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_RECORDS = (
    re.compile(rf"{_MOMENT}\s{_LEVEL} [^ ]{{1,200}}:\d+ -- "),  # ray._private.ray_constants, 2.60
    re.compile(
        rf"\[{_MOMENT} (?P<level>[DIWEFC]) \d+ \d+\] (?:\(\w+\) )?[^ ]{{1,200}}:\d+: +"
    ),  # C++
    re.compile(rf"{_LEVEL} airflow_tune_restore\.[\w.]+: "),  # the runner's own
    re.compile(rf"{_LEVEL}[ :](?=[\w.]+:)"),  # of other libraries in the runner, or in a worker
)
_WARNINGS, _ERRORS = frozenset({"WARNING", "W"}), frozenset({"ERROR", "CRITICAL", "E", "F", "C"})


class Level(StrEnum):
    """The level of a line in the log that shows it."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogLine(NamedTuple):
    """A line of a runner as a log shows it. `source` is the process that Ray names, or ""."""

    level: Level | None  # None if the line has none
    source: str
    text: str


class Log(Protocol):
    """A logger of the standard library, or Airflow's."""

    def info(self, message: str, /, *args: Any) -> Any:
        """Log a message with its %-arguments."""

    def warning(self, message: str, /, *args: Any) -> Any:
        """Log a warning with its %-arguments."""

    def error(self, message: str, /, *args: Any) -> Any:
        """Log an error with its %-arguments."""


class NewestLines:
    """Keeps the newest lines of a runner, within limits for each kind.

    Results are kept apart, so that a flood of other lines does not push them out.
    """

    def __init__(
        self, most_lines: int = MOST_LINES, most_characters: int = MOST_CHARACTERS
    ) -> None:
        self._lines = _Newest("line", most_lines, most_characters)
        self._results = _Newest("result", most_lines, most_characters)
        self._count = 0

    def add(self, line: str) -> None:
        """Keep a line, and drop the oldest lines that are too many."""
        self._count += 1
        self._lines.add(self._count, shortened(line, LONGEST_LINE))

    def add_result(self, line: str) -> None:
        """Keep a line that is a result."""
        self._count += 1
        self._results.add(self._count, line)

    def take(self, where: str) -> list[str]:
        """Return the lines in order, and drop them.

        A line in the place of those left out counts them, and ends in `where` to read them.
        """
        kept = heapq.merge(self._lines.take(where), self._results.take(where))
        return [line for _, line in kept]


def newest_results(reports: Iterable[RunnerProgress]) -> list[str]:
    """Return the newest results as lines; a line counts those left out."""
    kept = NewestLines()
    for report in reports:
        kept.add_result(report.to_line())
    return kept.take("all are in the trial's result.json.")


class _Newest:
    """The newest lines of one kind, each with its position among all lines."""

    def __init__(self, name: str, most_lines: int, most_characters: int) -> None:
        self._name = name
        self._most_lines = most_lines
        self._most_characters = most_characters
        self._forget()

    def add(self, place: int, line: str) -> None:
        kept = self._kept
        kept.append((place, line))
        self._size += len(line)
        while len(kept) > self._most_lines or self._size > self._most_characters:
            self._gap, gone = kept.popleft()
            self._size -= len(gone)
            self._left_out += 1

    def take(self, where: str) -> list[tuple[int, str]]:
        lines = list(self._kept)
        if self._left_out:
            name = self._name if self._left_out == 1 else f"{self._name}s"
            lines.insert(0, (self._gap, f"… {self._left_out:,} {name} left out here; {where}"))
        self._forget()
        return lines

    def _forget(self) -> None:
        self._kept: deque[tuple[int, str]] = deque()
        self._size = self._gap = self._left_out = 0


def read_line(line: str) -> LogLine:
    """Split a line that is not a result into level, source and text, without its time and its logger.

    The log that shows it has a time and a level of its own.
    """
    text = printable(line, _LINE_LENGTH)
    source = match[0] if (match := _SOURCE.match(text)) else ""
    text = text.removeprefix(source)
    found = next(filter(None, (record.match(text) for record in _RECORDS)), None)
    if found is None:
        return LogLine(None, source, text)
    name = found["level"]
    level = Level.WARNING if name in _WARNINGS else Level.ERROR if name in _ERRORS else Level.INFO
    return LogLine(level, source, text[found.end() :])


def describe_line(line: str, metric: str | None, *, of_many: bool = False) -> str:
    """Return one line of a runner for a log: a result in words, other lines without time and level.

    With `of_many`, a result starts with the id of its trial.
    """
    progress = RunnerProgress.from_line(line)
    if progress is None:
        plain = read_line(line)
        return f"{plain.source}{plain.text}"
    names: list[str] = [name for name in (metric,) if name in progress.metrics]
    names += [name for name in progress.metrics if name not in names]
    shown = [f"{name}={_number(progress.metrics[name])}" for name in names[:_SHOWN_METRICS]]
    prefix = f"{progress.trial_id}: " if of_many else ""
    return printable(f"{prefix}{', '.join([f'iteration {progress.iteration}', *shown])}")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
