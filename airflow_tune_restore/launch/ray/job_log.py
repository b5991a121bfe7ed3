"""The log of a Ray job. A cluster returns it from its beginning; it is read in pieces, kept in part."""

import codecs
import json
import re
from collections import deque
from typing import Protocol

from airflow_tune_restore.launch.log_lines import LONGEST_LINE, NewestLines
from airflow_tune_restore.protocol.printable import shortened
from airflow_tune_restore.protocol.request import PROGRESS_PREFIX, RunnerProgress

LONGEST_REST = 2 * 1024**2
"""Characters of a line without an end, after which it counts as a whole line."""

LONGEST_LOG = 1024**2
"""Characters that are read while the job runs; the rest is shown when the job has ended."""

LAST_LINES = 20
"""How many of the last lines are kept, shown or not: they explain why a job ended."""

_OPENING = re.compile(r'\s*\{\s*"logs"\s*:\s*(?P<text>"|null)')
_TEXT = re.compile(r'(?:[^"\\]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_LONGEST_OPENING = 64
_ESCAPE_LENGTH = 6


class LogTaker(Protocol):
    """Takes a log in pieces, until it has enough."""

    @property
    def is_enough(self) -> bool:
        """Whether no more is read."""

    def take(self, text: str) -> None:
        """Add the next part of the log."""


class LogText:
    """Reads `{"logs": "…"}` in pieces, so that a log of any length takes little memory."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._has_begun = False
        self.is_whole = False  # whether the end of the text was read

    def read(self, piece: bytes) -> str:
        """Return the text that a piece adds. ValueError if it is not such JSON."""
        if self.is_whole:
            return ""
        raw = self._rest + self._utf8.decode(piece)
        if not self._has_begun:
            opening = _OPENING.match(raw)
            if opening is None:
                if len(raw) > _LONGEST_OPENING:
                    raise ValueError("it is not a log")
                self._rest = raw
                return ""
            self._has_begun, self.is_whole = True, opening["text"] == "null"
            raw = raw[opening.end() :]
        return "" if self.is_whole else self._unescape(raw)

    def _unescape(self, raw: str) -> str:
        """Read all but what the next piece may complete: an escape, or a surrogate pair."""
        end = _TEXT.match(raw).end()  # type: ignore[union-attr]  # it matches anything
        self.is_whole = raw.startswith('"', end)
        if not self.is_whole and len(raw) - end >= _ESCAPE_LENGTH:
            raise ValueError("it holds an escape that JSON does not have")
        text: str = json.loads(f'"{raw[:end]}"', strict=False)
        if not self.is_whole and "\ud800" <= text[-1:] <= "\udbff":
            text, end = text[:-1], end - _ESCAPE_LENGTH
        self._rest = raw[end:]
        return text


class JobLog:
    """One reading of a job's log: the newest lines that were not shown yet.

    Args:
        offset: Characters of the log that were shown before. Results are counted apart.
        results: Results that were shown before; None to leave out all results.
        most: Characters after which to stop; None to read to the end.
    """

    def __init__(self, *, offset: int = 0, results: int | None, most: int | None = None) -> None:
        self.length = 0  # characters that were read, up to the last whole line
        self.read = 0  # characters that were read
        self.newest = NewestLines()
        self.last: deque[str] = deque(maxlen=LAST_LINES)  # shown or not
        self._offset = offset
        self._results = results
        self._most = most
        self.result_count = 0
        self._rest: list[str] = []
        self._rest_length = 0

    @property
    def is_enough(self) -> bool:
        """Whether `most` characters were read."""
        return self._most is not None and self.read >= self._most

    def take(self, text: str) -> None:
        """Add the next part of the log. A line without an end is kept: the job may still write to it."""
        self.read += len(text)
        whole, newline, rest = text.rpartition("\n")
        if newline:
            self._rest.append(whole + newline)
            self.end()
        self._rest.append(rest)
        self._rest_length += len(rest)
        if self._rest_length > LONGEST_REST:
            self.end()

    def end(self) -> None:
        """Count the last line as whole, although it has no line end."""
        self._split("".join(self._rest))
        self._rest, self._rest_length = [], 0

    def _split(self, text: str) -> None:
        position, offset, add = self.length, self._offset, self.newest.add
        lines = text.splitlines(keepends=True)
        for line in lines:
            is_result = line.startswith(PROGRESS_PREFIX) and self._is_result(line.rstrip("\r\n"))
            if position >= offset and not is_result:
                add(line.rstrip("\r\n"))
            position += len(line)
        self.length = position
        self.last.extend(shortened(line.rstrip(), LONGEST_LINE) for line in lines[-LAST_LINES:])

    def _is_result(self, line: str) -> bool:
        """Whether a line is a result; if so, count it, and keep it if it was not shown."""
        if RunnerProgress.from_line(line) is None:
            return False
        self.result_count += 1
        if self._results is not None and self.result_count > self._results:
            self.newest.add_result(line)
        return True
