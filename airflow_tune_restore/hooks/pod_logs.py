"""The log of a container, which may print as fast as it likes: so much of it a look, the newest.

Lines carry the time of the container's node, `2026-11-24T13:51:40.123456789Z said`.
"""

import time
from collections.abc import Callable, Generator, Iterator
from datetime import datetime
from typing import Any

from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLogsConsumer

from airflow_tune_restore.launch.log_lines import NewestLines
from airflow_tune_restore.protocol.request import PROGRESS_PREFIX

LOOK_SECONDS = 5.0
LINES_A_LOOK = 1000
"""Lines that are shown as they come, in so many seconds; of more, the newest when these are over."""

CATCH_UP_SECONDS = 300.0
"""How long a log is read that is not followed."""

LONGEST_LINE = 256 * 1024
PIECE_BYTES = 64 * 1024


def whole_log(name: str, namespace: str, container: str) -> str:
    """Say how all of a log can be read."""
    return f"the whole log: kubectl -n {namespace} logs {name} -c {container}"


class PodLog:
    """One look at a container's log: the newest lines that were not shown yet.

    Args:
        since: From when on lines are new; None for all.
        now: When it was asked for. This second is not over, and left to the next look.

    Attributes:
        newest: The lines.
        is_empty: Whether there was none, old or new.
    """

    def __init__(self, since: datetime | None, now: datetime) -> None:
        self.newest = NewestLines()
        self.is_empty = True
        self._since = since
        self._now = now.replace(microsecond=0)
        self._is_new = True
        self._rest = b""

    def take(self, piece: bytes) -> None:
        """Take what follows in the log."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._add(line)

    def end(self) -> None:
        """Take the last line for whole, although no line end follows."""
        self._add(self._rest)
        self._rest = b""

    def _add(self, raw: bytes) -> None:
        if not raw:
            return
        self.is_empty = False
        line = raw.decode(errors="replace")
        at = _time_of(line)
        if at is not None:
            self._is_new = (self._since is None or at >= self._since) and (
                at.replace(microsecond=0) != self._now
            )
        if self._is_new:
            add(self.newest, line)


class FollowedLog(PodLogsConsumer):
    """The lines of a log that is followed, as the provider reads them; of a flood, the newest.

    Args:
        where: How all of the log can be read.
        seconds: How long to read a log that is not followed; None for one that is.
        monotonic: Seconds.
        **of_provider: Arguments of the provider's.
    """

    def __init__(
        self,
        *,
        where: str,
        seconds: float | None,
        monotonic: Callable[[], float] = time.monotonic,
        **of_provider: Any,
    ) -> None:
        super().__init__(**of_provider)
        self._seconds = seconds
        self._where = where
        self._monotonic = monotonic

    def __iter__(self) -> Generator[bytes, None, None]:
        """Yield lines; at the end, and if the stream breaks, those that were held back first."""
        held, begun, shown = NewestLines(), self._monotonic(), 0
        broken: Exception | None = None
        lines = self._lines()
        while True:
            try:
                line = next(lines, None)
            except Exception as error:  # noqa: BLE001  raised when what came before it is shown
                broken, line = error, None
            if line is not None:
                add(held, line.decode(errors="replace"))
            if line is None or self._monotonic() - begun >= LOOK_SECONDS:
                begun, shown = self._monotonic(), 0
            if shown < LINES_A_LOOK:
                for one in stamped(held.take(self._where)):
                    shown += 1
                    yield f"{one}\n".encode()
            if broken is not None:
                raise broken
            if line is None:
                return

    def _lines(self) -> Iterator[bytes]:
        rest, begun = b"", self._monotonic()
        if not self._may_come():
            return
        while piece := self.response.read1(PIECE_BYTES, decode_content=False):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
            if len(rest) > LONGEST_LINE:
                yield rest
                rest = b""
            if self._seconds is not None and self._monotonic() - begun > self._seconds:
                raise TimeoutError(f"The log has not ended after {self._seconds:g} s")
            if not self._may_come():
                break
        if rest:
            yield rest

    def _may_come(self) -> bool:
        return bool(self.logs_available())  # type: ignore[no-untyped-call]  # as the provider has it


def add(newest: NewestLines, line: str) -> None:
    """Keep a line of a pod's log: its result, or what else it says."""
    if line.partition(" ")[2].startswith(PROGRESS_PREFIX):
        newest.add_result(line)
    else:
        newest.add(line)


def stamped(lines: list[str]) -> list[str]:
    """Give lines that count what is missing the time of their neighbour: the provider drops them else."""
    stamps = [line.partition(" ")[0] if _time_of(line) is not None else "" for line in lines]
    return [
        f"{next((other for other in stamps[i + 1 :] if other), '')} {line}".lstrip()
        if line.startswith("… ")
        else line
        for i, line in enumerate(lines)
    ]


def _time_of(line: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(line.partition(" ")[0])
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
