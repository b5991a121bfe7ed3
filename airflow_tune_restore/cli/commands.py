"""The commands of `tune-restore`: the same restore from a shell, without Airflow. `output` prints."""

import contextlib
import gc
import io
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from airflow_tune_restore.cli import output
from airflow_tune_restore.cli.launchers import LauncherOptions
from airflow_tune_restore.cli.option_groups import flag_of, with_options
from airflow_tune_restore.cli.options import (
    ExperimentUri,
    Json,
    LeaseOptions,
    ListAll,
    PlanOptions,
    ScanOptions,
    WindowOptions,
)
from airflow_tune_restore.cli.places import (
    experiment_around,
    open_experiment,
    open_place,
    runner_credentials,
)
from airflow_tune_restore.cli.recipe import app as recipe_app
from airflow_tune_restore.cli.signals import EXIT_SIGNAL, sigterm_as_ctrl_c
from airflow_tune_restore.cli.trainables import RunOptions, TrainableOptions
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    LeaseHeldError,
    LeaseLostError,
    RestoredMeanwhileError,
    TuneRestoreError,
)
from airflow_tune_restore.launch.base import Launcher, LauncherName
from airflow_tune_restore.restore.prepare import preview_restore
from airflow_tune_restore.restore.prepared import PrepareOptions

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_BUSY = 3
BUSY = (ExperimentRunningError, LeaseHeldError, LeaseLostError, RestoredMeanwhileError)
"""Errors that exit with `EXIT_BUSY`: a driver or another restore is or was at work."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its panels cut the names of options off in a narrow terminal
    context_settings={"help_option_names": ["--help", "-h"]},  # the latter is Airflow's
)

app.add_typer(recipe_app, name="recipe")


def _show_version(is_asked: bool) -> None:  # noqa: FBT001  Typer's signature
    if is_asked:
        output.print_versions()
        raise typer.Exit


@app.callback()
def tune_restore(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the versions of this package, of Python and of Ray.",
        ),
    ] = False,
) -> None:
    """Restore failed Ray Tune experiments."""


@app.command()
@with_options
def scan(
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Where to look: a path or a URL.")
    ],
    *,
    options: ScanOptions,
    list_all: ListAll = False,
    as_json: Json = False,
) -> None:
    """List the experiments at or below PREFIX, and their health."""
    from airflow_tune_restore.cli.scan import scan_prefix

    store = open_place(prefix)
    with sigterm_as_ctrl_c():  # it may be writing the index
        reports = scan_prefix(store, options)
    around = None if reports else experiment_around(prefix, store)
    output.print_reports(
        reports,
        prefix=store.uri,
        around=around,
        explain=options.explain,
        list_all=list_all,
        as_json=as_json,
    )


@app.command(short_help="Show what a restore would do. Writes nothing.")
@with_options
def plan(
    experiment: ExperimentUri,
    *,
    options: PlanOptions,
    which: TrainableOptions,
    list_all: ListAll = False,
    as_json: Json = False,
) -> None:
    """Show what a restore of EXPERIMENT would do, and what would refuse it. Writes nothing.

    The flags of a recipe count if --trainable or --recipes is given. Nothing that it names is imported.
    """
    store = open_experiment(experiment)
    made, refusals = preview_restore(
        store,
        PrepareOptions(
            choices=options.choices(),
            only=options.narrowing(),
            stale_after=options.stale_after,
            recipes=which.parse() if which.are_given else None,
        ),
    )
    output.print_plan(made, refusals, list_all=list_all, as_json=as_json)


@app.command(short_help="Plan, run and commit a restore.")
@with_options
def restore(  # noqa: PLR0913  one group of options per subject
    context: typer.Context,
    experiment: ExperimentUri,
    *,
    plan: PlanOptions,
    run: RunOptions,
    where: LauncherOptions,
    lease: LeaseOptions,
    window: WindowOptions,
    list_all: ListAll = False,
    as_json: Json = False,
) -> None:
    """Plan, run and commit a restore of EXPERIMENT, and print each trial before and after.

    Samples that were never drawn are drawn by the original searcher, or by --search-alg. With
    --param-space, an experiment that never started is started. A trainable in a file and a recipe can
    have their own param_space, flags and interpreter, which count in place of these options.

    Ctrl-C (or SIGTERM) stops all trials: they save snapshots, and their progress is committed.

    Exit code 0: every resumed trial finished and every sample is drawn, or there was nothing to do. 1:
    trials failed again or are paused, a run broke off, or samples are left (progress is committed). 2:
    bad usage or refused input. 3: the experiment is running, or another restore holds its lease. 130:
    Ctrl-C. 143: SIGTERM.
    """
    from airflow_tune_restore.cli.lease import refuse_without_terminal
    from airflow_tune_restore.cli.progress import Progress
    from airflow_tune_restore.cli.restore import RestoreOptions, restore_experiment
    from airflow_tune_restore.restore.recipe import Recipe
    from airflow_tune_restore.restore.summary import CommitSummary

    if lease.break_lease and not lease.yes:
        refuse_without_terminal()

    options = RestoreOptions(
        prepare=PrepareOptions(
            choices=plan.choices(),
            only=plan.narrowing(),
            stale_after=plan.stale_after,
            can_start=run.param_space is not None,
            can_search=run.search_alg is not None,
            name_option=flag_of,
            recipes=run.parse(),
            pause_at=window.end(datetime.now(UTC)),
            in_pods=where.on is LauncherName.KUBERNETES,
        ),
        run=run,
        address=where.runner_address,
        break_lease=lease.break_lease,
        yes=lease.yes,
    )
    store = open_experiment(experiment)
    with (
        sigterm_as_ctrl_c() as stop,
        runner_credentials(experiment) as store_env,
        Progress(quiet=as_json) as progress,
        contextlib.ExitStack() as launchers,
    ):
        where.build(store_env)  # an option that cannot be used is refused before anything is read

        def build_launcher(recipe: Recipe) -> Launcher:
            if unused := where.unused_fields(recipe):
                names = ", ".join(unused)
                progress.say(
                    f"note: --on {where.on} does not use these fields of the recipe: {names}"
                )
            launcher = where.build(store_env, recipe)
            if isinstance(launcher, contextlib.AbstractContextManager):
                launchers.enter_context(launcher)
            return launcher

        try:
            summary = restore_experiment(store, build_launcher, options, progress)
        finally:
            context.ensure_object(_Ending).trials_started = progress.has_started
    output.print_summary(summary, experiment=store.uri, list_all=list_all, as_json=as_json)
    if stop.signal:
        raise typer.Exit(EXIT_SIGNAL + stop.signal)
    if isinstance(summary, CommitSummary) and not summary.is_done:
        raise typer.Exit(EXIT_FAILED)


@app.command(short_help="Let a quarantined trial run again.")
def release(
    experiment: ExperimentUri,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="Trial id, as `plan` shows it.")],
    *,
    as_json: Json = False,
) -> None:
    """Let a quarantined TRIAL of EXPERIMENT run again: its failures so far no longer count."""
    from airflow_tune_restore.cli.lease import show_waits
    from airflow_tune_restore.cli.progress import Progress
    from airflow_tune_restore.cli.restore import holder
    from airflow_tune_restore.restore.release import release_trials

    store = open_experiment(experiment)
    with sigterm_as_ctrl_c(), Progress(quiet=as_json) as progress:
        released = release_trials(store, [trial], holder=holder(), on_wait=show_waits(progress))
    output.print_released(released[trial], experiment=store.uri, trial_id=trial, as_json=as_json)


@app.command(short_help="Undo the last commit.")
def undo(
    experiment: ExperimentUri,
    *,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask. Needed where nobody can answer.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Undo the last commit to EXPERIMENT, unless something newer was written since.

    It asks before it deletes anything. Exit code 1: the answer was no.
    """
    from airflow_tune_restore.cli.lease import show_waits
    from airflow_tune_restore.cli.progress import Progress
    from airflow_tune_restore.cli.restore import holder
    from airflow_tune_restore.restore.undo import StateFiles, foresee_undo, undo_commit

    store = open_experiment(experiment)
    files = StateFiles()
    foreseen = foresee_undo(store, files)
    with sigterm_as_ctrl_c(), Progress(quiet=as_json) as progress:
        if not yes and not output.confirm_undo(foreseen, progress):
            raise typer.Exit(EXIT_FAILED)
        undone = undo_commit(
            store,
            holder=holder(),
            on_wait=show_waits(progress),
            restore_id=foreseen.restore_id,
            files=files,
        )
    output.print_undone(undone, as_json=as_json)


@app.command(short_help="Write an experiment to one HTML file.")
def report(
    experiment: ExperimentUri,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write it; replaced if it is there."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Write trials, curves, plan and restores of EXPERIMENT to one HTML file, for tickets and mail.

    It opens in a browser without a network. The experiment itself is only read.
    """
    from airflow_tune_restore.cli.report import write_report

    size = write_report(experiment, out)
    output.print_report(out, size, as_json=as_json)


def run(arguments: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Run a command line, that of the process by default; an error of this package is one sentence."""
    ending = _Ending()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows the rest
    gc.disable()  # a short process with many small values and few cycles
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app(arguments, prog_name=program, obj=ending)
    except TuneRestoreError as error:
        output.print_error(error)
        sys.exit(EXIT_BUSY if isinstance(error, BUSY) else EXIT_REFUSED)
    except SystemExit as ended:
        if ended.code in (EXIT_SIGNAL + signal.SIGINT, EXIT_SIGNAL + signal.SIGTERM):
            output.print_stopped(trials_started=ending.trials_started)
        raise


@dataclass
class _Ending:
    """How far a command came: `restore` has started trials."""

    trials_started: bool = False
