"""What the commands print: tables for people, JSON for machines. Nothing else prints."""

import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from airflow_tune_restore.experiments.health import ExperimentReport
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.request import RunnerOutcome, RunnerProgress
from airflow_tune_restore.restore.summary import CommitSummary, printable


def print_reports(reports: Sequence[ExperimentReport], *, prefix: str, as_json: bool) -> None:
    """Print a scan."""
    if as_json:
        _print_json([_report_json(report) for report in reports])
        return
    if not reports:
        _out().print(f"No Tune experiment at or below {prefix}.")
        return
    table = _table("experiment", "health", "trials", "last write", "why")
    for report in reports:
        counts = " ".join(f"{count} {status}" for status, count in report.trials.items())
        written = f"{report.last_write:%Y-%m-%d %H:%M:%S}" if report.last_write else "-"
        table.add_row(
            printable(report.experiment),
            report.health.value,
            counts,
            written,
            printable(report.reason),
        )
    _out().print(table)


def print_plan(plan: RestorePlan, *, as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        _print_json(
            {
                "experiment": plan.experiment,
                "strategy": plan.strategy,
                "strategy_reason": plan.strategy_reason,
                "samples_left": plan.samples_left,
                "state_file": plan.base.name,
                "trainable_name": plan.trainable_name,
                "warnings": plan.warnings,
                "trials": [_trial_json(trial) for trial in plan.trials],
            }
        )
        return
    table = _table("trial", "status", "action", "checkpoint", "iteration", "why")
    for trial in plan.trials:
        table.add_row(
            trial.trial_id,
            trial.status.value,
            trial.action.value,
            trial.checkpoint or "-",
            str(trial.iteration),
            printable(trial.reason),
        )
    out = _out()
    out.print(table)
    left = "unknown" if plan.samples_left is None else plan.samples_left
    out.print(
        f"{len(plan.to_run)} of {len(plan.trials)} trials to run; samples never drawn: {left}"
    )
    out.print(f"strategy {plan.strategy}: {plan.strategy_reason}")
    for warning in plan.warnings:
        out.print(f"note: {printable(warning)}")


def print_summary(summary: CommitSummary | None, *, experiment: str, as_json: bool) -> None:
    """Print what a restore did; None stands for nothing to do."""
    if as_json:
        _print_json(_summary_json(summary, experiment))
        return
    if summary is None:
        _out().print(f"Nothing to restore in {experiment}.")
        return
    _out().print(summary.table())
    _out().print(summary.headline())


def print_error(error: Exception) -> None:
    """Print one of our errors on stderr."""
    Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(f"error: {error}")


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
        shown = ", ".join(f"{k}={v}" for k, v in list(progress.metrics.items())[:3])
        note = printable(f"iteration {progress.iteration} {shown}")
        self._bars.update(self._tasks[trial_id], note=note)

    def end(self, trial_id: str, outcome: RunnerOutcome | None) -> None:
        """Show how a trial ended."""
        note = outcome.result if outcome else "ended without a word"
        self._bars.update(self._tasks[trial_id], total=1, completed=1, note=note)


def _report_json(report: ExperimentReport) -> dict[str, Any]:
    return {
        "experiment": report.experiment,
        "health": report.health,
        "reason": report.reason,
        "trials": report.trials,
        "state_file": report.state_file,
        "last_write": report.last_write.isoformat() if report.last_write else None,
        "samples_left": report.samples_left,
    }


def _trial_json(trial: TrialPlan) -> dict[str, Any]:
    return {
        "trial_id": trial.trial_id,
        "status": trial.status,
        "action": trial.action,
        "checkpoint": trial.checkpoint,
        "iteration": trial.iteration,
        "reason": trial.reason,
        "resources": trial.resources,
        "new_trial_id": trial.new_trial_id,
    }


def _summary_json(summary: CommitSummary | None, experiment: str) -> dict[str, Any]:
    if summary is None:
        return {"experiment": experiment, "state_file": None, "failed": [], "trials": []}
    return {
        "experiment": summary.experiment,
        "restore_id": summary.restore_id,
        "state_file": summary.state_file,
        "samples_left": summary.samples_left,
        "failed": [change.trial_id for change in summary.failed],
        "trials": [
            {
                "trial_id": change.trial_id,
                "final_trial_id": change.final_trial_id,
                "action": change.action,
                "status_before": change.status_before,
                "status_after": change.status_after,
                "iteration_before": change.iteration_before,
                "iteration_after": change.iteration_after,
                "metric_before": change.metric_before,
                "metric_after": change.metric_after,
                "note": change.note,
            }
            for change in summary.changes
        ],
    }


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _out() -> Console:
    # a pipe has no width: wide enough that a table is not broken in the middle of a URI
    width = None if sys.stdout.isatty() else 200
    return Console(markup=False, highlight=False, emoji=False, width=width)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, default=str, allow_nan=False)
    sys.stdout.write("\n")
