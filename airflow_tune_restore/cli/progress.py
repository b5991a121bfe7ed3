"""Progress bars of a restore. A module of its own, because only that command pays for importing it."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from airflow_tune_restore.restore.plan import TrialPlan
from airflow_tune_restore.restore.request import RunnerOutcome, RunnerProgress
from airflow_tune_restore.restore.summary import printable


class Progress:
    """Progress bars on stderr, one a trial, under a scrolling log; silent when `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True, markup=False, highlight=False, emoji=False),
            disable=quiet,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        if not self._bars.disable:
            self._bars.console.print(printable(text))

    def start(self, trial: TrialPlan) -> None:
        """Show a trial that is about to run."""
        self._tasks[trial.trial_id] = self._bars.add_task(
            f"{trial.action} {trial.trial_id}", total=None, note="starting"
        )

    def advance(self, trial_id: str, progress: RunnerProgress) -> None:
        """Show a reported result."""
        if trial_id not in self._tasks:  # a sample that was drawn just now
            self._tasks[trial_id] = self._bars.add_task(
                printable(f"draw {trial_id}"), total=None, note=""
            )
        shown = ", ".join(f"{k}={v}" for k, v in list(progress.metrics.items())[:3])
        note = printable(f"iteration {progress.iteration} {shown}")
        self._bars.update(self._tasks[trial_id], note=note)

    def end(self, trial_id: str, outcome: RunnerOutcome | None) -> None:
        """Show how a trial ended."""
        note = outcome.result if outcome else "ended without a word"
        self._bars.update(self._tasks[trial_id], total=1, completed=1, note=note)
