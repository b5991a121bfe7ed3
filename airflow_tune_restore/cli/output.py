"""Prints the results of the commands: tables for people, JSON for programs. Nothing else prints them."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_tune_restore.cli.option_groups import flag_of
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    LeaseHeldError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.protocol.numbers import strict_json
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable, share
from airflow_tune_restore.protocol.request import RUN_ACTIONS
from airflow_tune_restore.restore.columns import Column, needed_width, render, render_columns
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.kept import FATES, STAYS, describe_kept, fate_of
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.recipe import Recipe
from airflow_tune_restore.restore.record_json import indented
from airflow_tune_restore.restore.release import describe_released
from airflow_tune_restore.restore.shown_rows import MAX_ROWS, describe_hidden, first_rows
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.restore.trial_table import coloured, render_trials
from airflow_tune_restore.restore.undo import UndoneCommit
from airflow_tune_restore.storage.location import Location, explain_percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from airflow_tune_restore.cli.progress import Progress
    from airflow_tune_restore.cli.restore import NothingToRestore

_HEALTH_STYLES: Mapping[str, str] = {
    Health.FINISHED: "green",
    Health.RUNNING: "cyan",
    Health.INTERRUPTED: "yellow",
    Health.ERRORED: "red",
    Health.NOT_STARTED: "yellow",
    Health.UNREADABLE: "magenta",
}

_LEFT_OUT = (Health.RUNNING, Health.FINISHED)
"""The experiments that a long table leaves out: the last ones first."""

_HINT = "--all lists them, --json has them."

_Report = tuple[ExperimentReport, Sequence[str] | None]


def print_reports(
    reports: Sequence[_Report],
    *,
    prefix: str,
    as_json: bool,
    around: str | None = None,
    explain: bool = False,
    list_all: bool = False,
) -> None:
    """Print a scan: each experiment, the number of its quarantined trials, and the evidence if asked.

    `around` is the experiment that a prefix without experiments lies inside of. Without `list_all`, a
    long table ends in the number of the others, as in all that follow.
    """
    if as_json:
        _print_json([_report_json(*report, explain=explain) for report in reports])
        return
    if not reports:
        where = f" It lies inside {around}: `tune-restore scan {quote(around)}`." if around else ""
        _print(f"No Tune experiment at or below {prefix}{explain_percent(prefix)}.{where}")
        return
    out = _out()
    shown, hidden = _first_reports(reports, list_all=list_all)
    places = [report.experiment for report, _ in shown]
    counts = [" ".join(f"{n} {status}" for status, n in r.trials.items()) for r, _ in shown]
    written = [r.last_write and f"{r.last_write:%Y-%m-%d %H:%M:%S}" for r, _ in shown]
    columns = [
        Column("experiment", places),
        Column("health", [coloured(r.health.value, _HEALTH_STYLES) for r, _ in shown]),
        Column("trials", [coloured(text) for text in counts]),
        Column("last write (UTC)", [text or "-" for text in written]),
        Column("why", [r.reason + (f"; {len(q)} quarantined" if q else "") for r, q in shown]),
    ]
    if out.is_terminal and needed_width(columns) > out.width:
        _print(f"Experiments below {prefix}:")
        columns[0] = Column("experiment", [_below(prefix, place) for place in places])
    # a pipe has no width
    width = out.width if out.is_terminal else max(out.width, needed_width(columns))
    _write(out, render_columns(columns, width, in_colour=_is_in_colour(out)) + hidden)
    if explain:
        for report, _ in shown:
            _print_evidence(report)


def _first_reports(reports: Sequence[_Report], *, list_all: bool) -> tuple[Sequence[_Report], str]:
    """Return the experiments to show in their order, and the line for the others.

    Finished ones are the first that are left out, then running ones.
    """

    def rank(numbered: tuple[int, _Report]) -> int:
        health = numbered[1][0].health
        return _LEFT_OUT.index(health) if health in _LEFT_OUT else -1

    most = None if list_all else MAX_ROWS
    shown, hidden = first_rows(list(enumerate(reports)), rank, most)
    counts = Counter(report.health.value for _, (report, _) in hidden)
    return [each for _, each in sorted(shown, key=itemgetter(0))], describe_hidden(counts, _HINT)


def _below(prefix: str, experiment: str) -> str:
    """Return the path of an experiment from the prefix; `.` for the prefix itself."""
    top, found = (Location.parse(text).place for text in (prefix, experiment))
    return found.removeprefix(top).strip("/") or "."


def _print_evidence(report: ExperimentReport) -> None:
    table = _table("evidence", "found", "indicates")
    for row in report.evidence:
        _add_row(table, row.name, row.found, row.indicates or "-")
    _print(f"{report.experiment} is {report.health.value}", _HEALTH_STYLES)
    _print_table(table)


def print_plan(
    plan: RestorePlan,
    refusals: Sequence[TuneRestoreError] = (),
    *,
    as_json: bool,
    list_all: bool = False,
) -> None:
    """Print a plan, and the reasons for which its restore would be refused now; who is at work first."""
    busy = [e for e in refusals if isinstance(e, ExperimentRunningError | LeaseHeldError)]
    if as_json:
        shown = "experiment strategy strategy_reason samples_left trainable_name warnings"
        values = {name: getattr(plan, name) for name in shown.split()}
        values |= {"state_file": plan.base.name, "refusals": [str(error) for error in refusals]}
        running = [e.reason for e in busy if isinstance(e, ExperimentRunningError)]
        holders = [e.holder for e in busy if isinstance(e, LeaseHeldError)]
        values |= {"running": (*running, None)[0], "leased_by": (*holders, None)[0]}
        _print_json(values | {"trials": [_trial_json(trial) for trial in plan.trials]})
        return
    for error in busy:
        about = str(error).replace(error.experiment, "This experiment", 1)
        _print(about, {"This experiment": "bold yellow"})
    _print_trials(plan, most=None if list_all else MAX_ROWS)
    left = "samples" if plan.samples_left is None else counted(plan.samples_left, "sample")
    unknown = ": unknown" if plan.samples_left is None else ""
    to_run = share(len(plan.to_run), len(plan.trials), "trial")
    _print(f"{to_run} to run; {left} never drawn{unknown}")
    for sentence in describe_kept(plan, flag_of):
        _print(sentence)
    _print(f"strategy {plan.strategy}: {plan.strategy_reason}")
    for warning in plan.warnings:
        _print(f"note: {warning}")
    for refusal in refusals:
        if refusal not in busy:
            _print(f"note: a restore would be refused now: {refusal}")


def _print_trials(plan: RestorePlan, *, most: int | None) -> None:
    trials, hidden = first_rows(plan.trials, lambda trial: fate_of(trial) == STAYS, most)
    counts, out = Counter(map(fate_of, hidden)), _out()
    columns = [
        Column("trial", [trial.trial_id for trial in trials]),
        Column("status", [coloured(trial.status.value) for trial in trials]),
        Column("action", [trial.action.value for trial in trials]),
        Column("checkpoint", [trial.checkpoint or "-" for trial in trials]),
        Column("iteration", [str(t.iteration) if t.action in RUN_ACTIONS else "-" for t in trials]),
        Column("why", [trial.reason for trial in trials]),
    ]
    repeats = all((trial.checkpoint or "") in trial.reason for trial in trials)
    text = render_trials(
        columns,
        [trial.parameters for trial in trials],
        out.width,
        more=plan.more_parameters,
        optional="checkpoint" if repeats else "",
        hidden=describe_hidden({fate: counts[fate] for fate in FATES if counts[fate]}, _HINT),
        in_colour=_is_in_colour(out),
    )
    _write(out, text)


def print_summary(
    summary: "CommitSummary | NothingToRestore | None",
    *,
    experiment: str,
    as_json: bool,
    list_all: bool = False,
) -> None:
    """Print the result of a restore; None if another one has done its work meanwhile."""
    if as_json:
        _print_json(_summary_json(summary, experiment))
        return
    if not isinstance(summary, CommitSummary):
        _print(f"Nothing to restore in {experiment}.")
        return
    out = _out()
    most = None if list_all else MAX_ROWS
    _write(out, summary.table(out.width, most=most, hint=_HINT, in_colour=_is_in_colour(out)))
    for sentence in summary.describe_failures():
        _print(sentence)
    _print(summary.headline())


def confirm_undo(foreseen: UndoneCommit, progress: "Progress") -> bool:
    """Ask whether a commit is to be undone, and return the answer; the question names the files.

    Raises:
        InvalidInputError: If nobody can answer.
    """
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "undo asks before it deletes anything, and without a terminal nobody can answer: add --yes "
            "if you are sure. Nothing was changed."
        )
    files = " and ".join(foreseen.deleted) or "nothing more"
    then = f"{foreseen.newest} is the newest state" if foreseen.newest else "no state is left"
    question = (
        f"Undo the commit of restore {foreseen.restore_id} to {foreseen.experiment}? It deletes {files}; "
        f"then {then}."
    )
    is_yes = False
    try:
        is_yes = progress.confirm(question)
    finally:
        if not is_yes:
            progress.warn("Nothing was changed.")
    return is_yes


def print_undone(undone: UndoneCommit, *, as_json: bool) -> None:
    """Print which commit was undone."""
    if as_json:
        _print_json(asdict(undone))
        return
    _print(undone.describe(undone.experiment))


def print_released(history: History, *, experiment: str, trial_id: str, as_json: bool) -> None:
    """Print from which failures a trial was released."""
    if as_json:
        released = {"experiment": experiment, "trial_id": trial_id}
        _print_json(released | msgspec.structs.asdict(history))
        return
    _print(describe_released(trial_id, experiment, history))


def print_recipe(recipe: Recipe, sentence: str, *, as_json: bool, **facts: Any) -> None:
    """Print the recipe of a sweep as it stands in its file; a program gets the facts in the sentence."""
    shown = json.loads(recipe.to_json())
    _print_json({**facts, "recipe": shown} if as_json else shown)
    if not as_json:
        _print(sentence)


def print_report(path: Path, size_bytes: int, *, as_json: bool) -> None:
    """Print where a report was written, and how large it is."""
    if as_json:
        _print_json({"report": str(path), "bytes": size_bytes})
        return
    _print(
        f"Wrote {printable(str(path))} ({size_bytes / 1000:,.0f} KB). A browser opens it offline."
    )


def print_versions() -> None:
    """Print the versions of this package, of Python, and of the Ray of this interpreter."""
    from importlib.metadata import PackageNotFoundError, version  # no other command needs it
    from platform import python_version

    _print(f"airflow-tune-restore {version('airflow-tune-restore')}")
    _print(f"Python {python_version()} ({sys.executable})")
    try:
        _print(f"Ray {version('ray')}")
    except PackageNotFoundError:
        _print("Ray is not installed here; trials can run with another interpreter (--python)")


def print_error(error: Exception) -> None:
    """Print an error of this package on stderr."""
    from rich.text import Text

    out = console(stderr=True)
    style = "bold red" if _is_in_colour(out) else ""
    out.print(Text.assemble(("error:", style), f" {printable(str(error), NOTE_LENGTH)}"))


def print_stopped(*, trials_started: bool = False) -> None:
    """Print on stderr that the user has stopped a command."""
    kept = " What the trials have done is kept; run the command again to continue." * trials_started
    sys.stderr.write(f"Stopped.{kept}\n")  # importing rich takes time, and Ctrl-C may come again


def console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """Return a console that prints text as it is; one line stays one line in a narrow terminal."""
    from rich.console import Console

    return Console(
        stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True, width=width
    )


def _report_json(
    report: ExperimentReport, quarantined: Sequence[str] | None, *, explain: bool
) -> dict[str, Any]:
    evidence = {"evidence": [asdict(row) for row in report.evidence]} if explain else {}
    shown = "experiment health reason trials state_file"
    return {name: getattr(report, name) for name in shown.split()} | {
        "last_write": report.last_write.isoformat() if report.last_write else None,
        "samples_left": report.samples_left,
        "quarantined": quarantined,
        **evidence,
    }


def _trial_json(trial: TrialPlan) -> dict[str, Any]:
    shown = "trial_id status action checkpoint iteration reason resources new_trial_id quarantined"
    shown += " runs_with parameters"
    return {name: getattr(trial, name) for name in shown.split()}


def _summary_json(
    summary: "CommitSummary | NothingToRestore | None", experiment: str
) -> dict[str, Any]:
    if not isinstance(summary, CommitSummary):
        nothing: dict[str, Any] = {
            "experiment": experiment,
            "state_file": None,
            "failed": [],
            "trials": [],
        }
        why = asdict(summary) if summary else {"reason": "", "quarantined": []}
        return nothing | why
    shown = "experiment restore_id state_file samples_left searcher_lost broke_off"
    return {name: getattr(summary, name) for name in shown.split()} | {
        "failed": [change.trial_id for change in summary.failed],
        "paused": [change.trial_id for change in summary.paused],
        "quarantined": summary.quarantined,
        "trials": summary.describe_changes(),
    }


def _print(text: str, styles: Mapping[str, str] | None = None) -> None:
    out, shown = _out(), printable(text, NOTE_LENGTH)
    out.print(coloured(shown, styles) if styles and _is_in_colour(out) else shown)


def _add_row(table: "Table", *cells: str) -> None:
    table.add_row(*(printable(cell, NOTE_LENGTH) for cell in cells))


def _print_table(table: "Table") -> None:
    out = _out()
    _write(out, render(table, out.width, in_colour=_is_in_colour(out)))


def _write(out: "Console", rendered: str) -> None:
    """Write a rendered table; rich would print its colours as text."""
    out.file.write(f"{rendered}\n")


def _is_in_colour(out: "Console") -> bool:
    """Whether colours are shown: in a terminal that has some, unless NO_COLOR is set."""
    return out.is_terminal and out.color_system is not None and not out.no_color


def _table(*headings: str) -> "Table":
    from rich import box  # not needed with --json
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(printable(heading), overflow="fold")
    return table


def _out() -> "Console":
    # a pipe has no width: wide enough that a table is not broken in the middle of a URI
    return console(width=None if sys.stdout.isatty() else 200)


def _print_json(value: Any) -> None:
    # ASCII: a terminal must not obey control characters in a name, and not every name can be encoded
    plain = strict_json(msgspec.to_builtins(value))
    # two colons occur only in strings; `::group::` would fold the log of a task that runs the command
    sys.stdout.write(indented(plain).replace("::", ":\\u003a") + "\n")
