"""The log of a container, which may print as fast as it likes: the newest lines of each look.

Lines begin with the time of the container's node: `2026-11-24T13:51:40.123456789Z text`.
"""

from collections.abc import Callable
from datetime import datetime

from airflow_tune_restore.launch.log_lines import NewestLines
from airflow_tune_restore.protocol.request import PROGRESS_PREFIX

LONGEST_LINE = 256 * 1024
"""Bytes of an unfinished line that are kept before it is taken as a line."""


def whole_log(name: str, namespace: str, container: str) -> str:
    """Return how all of a log can be read."""
    return f"the whole log: kubectl -n {namespace} logs {name} -c {container}"


class ContainerLog:
    """One look at a container's log: the newest lines that were not shown yet.

    Args:
        is_new: Whether a line of this time was not shown yet. Called for each line, in order; a line
            without a time belongs to the line before.

    Attributes:
        newest: The lines.
        is_empty: Whether there was no line, old or new.
    """

    def __init__(self, is_new: Callable[[datetime], bool]) -> None:
        self.newest = NewestLines()
        self.is_empty = True
        self._decide = is_new
        self._is_new = True
        self._rest = b""

    def take(self, piece: bytes) -> None:
        """Take the next piece of the log."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._add(line)

    def end(self) -> None:
        """Take the rest as the last line, although no line end follows."""
        self._add(self._rest)
        self._rest = b""

    def _add(self, raw: bytes) -> None:
        if not raw:
            return
        self.is_empty = False
        line = raw.decode(errors="replace")
        at = time_of(line)
        if at is not None:
            self._is_new = self._decide(at)
        if self._is_new:
            add_line(self.newest, line)


class LogPosition:
    """Where in a container's log the reader is; so each line is shown once, whatever a look returns.

    It depends on the times of the lines alone, and on no clock of this machine. Lines of the same
    microsecond are counted.
    """

    def __init__(self) -> None:
        self._newest: datetime | None = None
        self._count = 0
        self._shown: tuple[datetime | None, int] = (None, 0)
        self._repeated = 0

    def begin_look(self) -> None:
        """Begin a new look, which may return lines that were shown before."""
        self._shown, self._repeated = (self._newest, self._count), 0

    def is_new(self, at: datetime) -> bool:
        """Whether the next line of the look was not shown yet."""
        newest, count = self._shown
        if newest is not None and at < newest:
            return False
        if at == newest:
            self._repeated += 1
            if self._repeated <= count:
                return False
        if self._newest is None or at > self._newest:
            self._newest, self._count = at, 0
        self._count += 1
        return True


def add_line(newest: NewestLines, line: str) -> None:
    """Keep a line of a container's log: a result, or an ordinary line."""
    if line.partition(" ")[2].startswith(PROGRESS_PREFIX):
        newest.add_result(line)
    else:
        newest.add(line)


def time_of(line: str) -> datetime | None:
    """Return the time of a line; None if it has none."""
    try:
        at = datetime.fromisoformat(line.partition(" ")[0])
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
