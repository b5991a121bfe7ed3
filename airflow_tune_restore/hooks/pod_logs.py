"""The log of a container as the provider follows it, within bounds."""

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLogsConsumer

from airflow_tune_restore.launch.kubernetes.bounded_client import PIECE_BYTES
from airflow_tune_restore.launch.kubernetes.container_log import LONGEST_LINE, add_line, time_of
from airflow_tune_restore.launch.log_lines import NewestLines

LOOK_SECONDS = 5.0
LINES_PER_LOOK = 1000
"""Lines per `LOOK_SECONDS` that are shown at once; if there are more, the newest are shown afterwards."""

CATCH_UP_SECONDS = 300.0
"""How long a log that is not followed is read."""


class FollowedLog(PodLogsConsumer):
    """The lines of a followed log, as the provider reads them; of a flood, the newest lines.

    Args:
        where: How all of the log can be read.
        seconds: How long to read; None to follow it to its end.
        **options: Arguments of `PodLogsConsumer`.
    """

    def __init__(
        self,
        *,
        where: str,
        seconds: float | None,
        monotonic: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._seconds = seconds
        self._where = where
        self._monotonic = monotonic

    def __iter__(self) -> Generator[bytes, None, None]:
        """Yield lines. At the end, or before a broken stream raises, the lines that were held back."""
        held, begun, shown = NewestLines(), self._monotonic(), 0
        broken: Exception | None = None
        lines = self._lines()
        while True:
            try:
                line = next(lines, None)
            except Exception as error:  # noqa: BLE001  raised after the lines before it are shown
                broken, line = error, None
            if line is not None:
                add_line(held, line.decode(errors="replace"))
            if line is None or self._monotonic() - begun >= LOOK_SECONDS:
                begun, shown = self._monotonic(), 0
            if shown < LINES_PER_LOOK:
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


def stamped(lines: list[str]) -> list[str]:
    """Give lines that count missing ones the time of the next line: the provider needs a time."""
    stamps = [line.partition(" ")[0] if time_of(line) is not None else "" for line in lines]
    return [
        f"{next((other for other in stamps[i + 1 :] if other), '')} {line}".lstrip()
        if line.startswith("… ")
        else line
        for i, line in enumerate(lines)
    ]
