"""The output of a runner in the log of a task: each line at its own level, tracebacks folded.

Airflow's log page folds the lines between `::group::` and `::endgroup::`. Lines of a runner cannot open
or close such a group: `printable` takes these words apart.
"""

from collections.abc import Iterable

from airflow_tune_restore.launch.log_lines import Level, Log, LogLine, describe_line, read_line
from airflow_tune_restore.protocol.failures import classify
from airflow_tune_restore.protocol.request import RunnerProgress

MOST_HELD = 1000
"""Lines of a traceback; the rest is shown after its group."""

_BEGINNINGS = ("Traceback (most recent call last):", "ray::")


class RunnerLog:
    """Shows the lines of one runner in a log.

    A traceback is held back until its exception comes, which names the group. Call `end` after the last
    line.

    Args:
        log: The log.
        metric: The metric of a result that is shown first.
        of_many: Whether results start with the id of their trial.
    """

    def __init__(self, log: Log, metric: str | None = None, *, of_many: bool = False) -> None:
        self._log = log
        self._metric = metric
        self._of_many = of_many
        self._held: list[LogLine] = []
        self._level = Level.INFO  # of the line before

    def show(self, line: str) -> None:
        """Show a line, or hold it back if it is a part of a traceback."""
        if RunnerProgress.from_line(line) is not None:
            self.end()
            self._write(Level.INFO, describe_line(line, self._metric, of_many=self._of_many))
            return
        new = read_line(line)
        if self._held and _continues(self._held, new):
            self._held.append(new)
            if _is_exception(new) or len(self._held) >= MOST_HELD:
                self.end()
            return
        self.end()
        if new.level is None and new.text.startswith(_BEGINNINGS):
            self._held.append(new)
            return
        self._level = new.level or Level.INFO
        self._write(self._level, f"{new.source}{new.text}")

    def show_all(self, lines: Iterable[str]) -> None:
        """Show some lines."""
        for line in lines:
            self.show(line)

    def end(self) -> None:
        """Show what is held back."""
        held, self._held = self._held, []
        if not held:
            return
        if len(held) == 1:  # not a traceback
            self._write(Level.INFO, f"{held[0].source}{held[0].text}")
            return
        failure = classify("\n".join(line.text for line in held))
        raised = f"{failure.type}: {failure.message}".strip(": ") or "an error"
        place = f" (at {failure.place})" if failure.place else ""
        # the level of the line that announced it; a traceback without one was not caught
        level = Level.ERROR if self._level is Level.INFO else self._level
        self._write(level, f"{held[0].source}{raised}{place}")
        self._log.info("%s", f"::group::Traceback of {raised}")
        for line in held:
            self._log.info("%s", line.text)
        self._log.info("%s", "::endgroup::")
        self._level = Level.INFO

    def _write(self, level: Level, text: str) -> None:
        getattr(self._log, level.value)("%s", text)


def _continues(held: list[LogLine], new: LogLine) -> bool:
    """Whether a line belongs to the traceback before it: of the same process, and not a log record."""
    if new.source != held[0].source or new.level is not None or not new.text:
        return False
    if new.text.startswith("… "):  # counts lines that were left out
        return False
    is_first_frame = len(held) == 1
    return new.text.startswith(" ") or (not is_first_frame and not new.text.startswith(_BEGINNINGS))


def _is_exception(line: LogLine) -> bool:
    """Whether a line of a traceback is its exception. Frames of the worker follow Ray's own."""
    return not line.text.startswith(" ") and ": ray::" not in line.text
