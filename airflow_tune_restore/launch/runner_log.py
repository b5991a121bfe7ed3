"""The output of a runner in the log of a task: each line at its own level, tracebacks folded.

Airflow's log page folds the lines between `::group::` and `::endgroup::`. Lines of a runner cannot open
or close such a group: `printable` takes these words apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from airflow_tune_restore.launch.log_lines import Level, Log, LogLine, describe_line, read_line
from airflow_tune_restore.protocol.failures import classify
from airflow_tune_restore.protocol.request import RunnerProgress

MOST_HELD = 1000
"""Lines of tracebacks; the rest is shown after their groups."""

_MOST_OF_MESSAGE = 20
"""Lines of a message after its first. A plain line after a traceback cannot be told from them."""

_GROUP = "  + Exception Group Traceback (most recent call last):"
_BEGINNINGS = ("Traceback (most recent call last):", "ray::", _GROUP)


class RunnerLog:
    """Shows the lines of one runner in a log.

    A traceback is held back until its exception comes, which names the group, and until the message of
    the exception ends. Lines of other processes may come between those of a traceback. Call `end` after
    the last line.

    Args:
        log: The log.
        metric: The metric of a result that is shown first.
        of_many: Whether results start with the id of their trial.
    """

    def __init__(self, log: Log, metric: str | None = None, *, of_many: bool = False) -> None:
        self._log = log
        self._metric = metric
        self._of_many = of_many
        self._held: dict[str, _Traceback] = {}  # by source
        self._level = Level.INFO  # of the line before

    def show(self, line: str) -> None:
        """Show a line, or hold it back if it is a part of a traceback."""
        if RunnerProgress.from_line(line) is not None:
            self._end_all_but(None)
            self._end("")
            self._write(Level.INFO, describe_line(line, self._metric, of_many=self._of_many))
            return
        new = read_line(line)
        self._end_all_but(new.source)
        held = self._held.get(new.source)
        if held is not None and held.takes(new):
            held.add(new)
            if sum(len(each.lines) for each in self._held.values()) >= MOST_HELD:
                self.end()
            return
        self._end(new.source)
        if new.level is None and new.text.startswith(_BEGINNINGS):
            self._held[new.source] = _Traceback(self._level, [new])
            return
        self._level = new.level or Level.INFO
        self._write(self._level, f"{new.source}{new.text}")

    def show_all(self, lines: Iterable[str]) -> None:
        """Show some lines."""
        for line in lines:
            self.show(line)

    def end(self) -> None:
        """Show what is held back."""
        for source in list(self._held):
            self._end(source)

    def _end_all_but(self, source: str | None) -> None:
        """Show the tracebacks of other sources that have their exception."""
        for other, held in list(self._held.items()):
            if other != source and held.message_lines:
                self._end(other)

    def _end(self, source: str) -> None:
        held = self._held.pop(source, None)
        if held is None:
            return
        if len(held.lines) == 1:  # not a traceback
            self._write(Level.INFO, f"{source}{held.lines[0].text}")
            return
        failure = classify("\n".join(line.text for line in held.lines))
        raised = f"{failure.type}: {failure.message}".strip(": ") or "an error"
        place = f" (at {failure.place})" if failure.place else ""
        # the level of the line that announced it; a traceback without one was not caught
        level = Level.ERROR if held.level is Level.INFO else held.level
        self._write(level, f"{source}{raised}{place}")
        self._log.info("%s", f"::group::Traceback of {raised}")
        for line in held.lines:
            self._log.info("%s", line.text)
        self._log.info("%s", "::endgroup::")
        self._level = Level.INFO

    def _write(self, level: Level, text: str) -> None:
        getattr(self._log, level.value)("%s", text)


@dataclass
class _Traceback:
    """A traceback that is held back."""

    level: Level  # of the line before it
    lines: list[LogLine]
    message_lines: int = 0  # 0 before its exception

    def takes(self, new: LogLine) -> bool:
        """Whether a line of the same process belongs to it."""
        if new.level is not None or not new.text.strip():
            return False
        if new.text.startswith("… "):  # counts lines that were left out
            return False
        is_first_frame = len(self.lines) == 1
        if is_first_frame or self.lines[0].text == _GROUP:
            return new.text.startswith(" ")
        if self.message_lines > _MOST_OF_MESSAGE:
            return False
        return not new.text.startswith(_BEGINNINGS)

    def add(self, new: LogLine) -> None:
        """Add its next line."""
        self.lines.append(new)
        if self.message_lines or self._is_exception(new.text):
            self.message_lines += 1

    def _is_exception(self, text: str) -> bool:
        """Whether a line is its exception, or the end of a group of them.

        Frames of the worker follow Ray's own exception.
        """
        if self.lines[0].text == _GROUP:
            return text.startswith("    +--") and not text.strip("+- ")
        return not text.startswith(" ") and ": ray::" not in text
