"""Shows how a restore proceeds. Imported only by that command, because importing rich takes time."""

import contextlib
import math
import sys
from typing import Self

import typer
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from airflow_tune_restore.cli.output import console
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import RunnerOutcome, RunnerProgress
from airflow_tune_restore.restore.plan import TrialPlan

_LINE_LENGTH = 4000
_SHOWN_METRICS = 3

COUNT_DOWN_SECONDS = 30.0
"""Without a terminal, a wait is shown by one line in this time."""


class Progress:
    """Progress on stderr: in a terminal one bar per trial under a scrolling log, elsewhere lines."""

    def __init__(self, *, quiet: bool) -> None:
        out = console(stderr=True)
        self._quiet = quiet
        self._has_bars = out.is_terminal and not quiet
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=out,
            disable=not self._has_bars,
        )
        self._tasks: dict[str, TaskID] = {}
        self._wait: TaskID | None = None
        self._told_left = math.inf
        self.has_started = False
        """Whether a trial was started."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print a line above the bars, even if the progress is not shown."""
        self._bars.console.print(printable(text, _LINE_LENGTH))

    def confirm(self, question: str) -> bool:
        """Ask a question on stderr; Enter alone means no. KeyboardInterrupt if the user stops."""
        self._bars.stop()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the last blank of the question, too
                return typer.confirm(printable(question, _LINE_LENGTH), err=True)
        except typer.Abort:
            raise KeyboardInterrupt from None
        finally:
            self._bars.start()

    def count_down(self, left: float, total: float) -> None:
        """Show how long a wait still takes, in seconds; 0 at its end."""
        note = f"{left:.0f} s left of {total:.0f} s"
        if self._has_bars:
            if self._wait is None:
                self._wait = self._bars.add_task("watching the lease", total=total, note=note)
            self._bars.update(self._wait, completed=total - left, note=note, visible=left > 0)
        elif left > 0 and self._told_left - left >= COUNT_DOWN_SECONDS:
            self._told_left = left
            self.say(f"watching the lease: {note}")

    def start(self, trial: TrialPlan) -> None:
        """Show a trial that is about to run."""
        where = f" from {trial.checkpoint}" if trial.checkpoint else ""
        self._show(trial.trial_id, f"{trial.action} {trial.trial_id}", f"starting{where}")

    def advance(self, trial_id: str, progress: RunnerProgress) -> None:
        """Show a reported result. A trial that was not started here is a sample drawn just now."""
        shown = [
            f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in list(progress.metrics.items())[:_SHOWN_METRICS]
        ]
        note = ", ".join([f"iteration {progress.iteration}", *shown])
        self._show(trial_id, f"draw {trial_id}", note)

    def end(self, trial_id: str, outcome: RunnerOutcome | None) -> None:
        """Show how a trial ended; None if it left no outcome."""
        how = outcome.result if outcome else "exited without recording an outcome"
        self._show(trial_id, trial_id, how)
        self._bars.update(self._tasks[trial_id], total=1, completed=1)

    def _show(self, trial_id: str, name: str, note: str) -> None:
        note = printable(note)
        if trial_id not in self._tasks:
            self._tasks[trial_id] = self._bars.add_task(printable(name), total=None, note=note)
        else:
            self._bars.update(self._tasks[trial_id], note=note)
        if not self._has_bars:
            self.say(f"{trial_id} | {note}")
