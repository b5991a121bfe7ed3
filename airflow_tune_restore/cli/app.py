"""`tune-restore`: the same restore from a shell, without Airflow. Commands compute, `output` prints."""

import gc
import io
import logging
import os
import sys
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, NamedTuple

import typer

from airflow_tune_restore.cli import output
from airflow_tune_restore.cli.reports import with_quarantined
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    LeaseHeldError,
    LeaseLostError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.experiments.scan import scan as scan_experiments
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH, ScanFilter
from airflow_tune_restore.restore.choices import DEFAULT_MAX_MEMORY_BYTES, PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.prepare import PrepareOptions, foresee_refusals, plan_restore
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.local import LocalStore

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_BUSY = 3

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its panels cut the names of options off in a narrow terminal
    help="Bring failed Ray Tune experiments back.",
)


class LauncherName(StrEnum):
    """Where trials can be run."""

    LOCAL = "local"


def _span(seconds: str | timedelta) -> timedelta:
    """Read a length of time; Typer passes the default through here, too."""
    if isinstance(seconds, timedelta):
        return seconds
    try:
        span = timedelta(seconds=float(seconds))
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{seconds} is no number of seconds.") from None
    if span < timedelta():
        raise typer.BadParameter(f"{seconds} is less than 0.")
    return span


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
StaleAfter = Annotated[
    timedelta,
    typer.Option(
        parser=_span,
        metavar="SECONDS",
        help="An unfinished experiment counts as dead when nothing was written for this long "
        f"({DEFAULT_STALE_AFTER.total_seconds():.0f}). 0: you know that its driver is dead.",
        show_default=False,
    ),
]
ExperimentUri = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="Experiment directory: a path, or a URL such as s3://bucket/experiment.",
    ),
]
ResumeErrored = Annotated[
    bool, typer.Option("--resume-errored", help="Resume ERROR trials from their checkpoint.")
]
RestartErrored = Annotated[
    bool, typer.Option("--restart-errored", help="Start ERROR trials over, as new trials.")
]
ResumeCutShort = Annotated[
    bool,
    typer.Option(
        "--resume-cut-short",
        help="Resume trials that fail_fast marked TERMINATED when another one failed.",
    ),
]
ResumeUnfinished = Annotated[
    bool | None,
    typer.Option(
        "--resume-unfinished/--no-resume-unfinished",
        help="Resume unfinished trials, as by default; else they become TERMINATED.",
    ),
]
Finished = Annotated[
    ResumeType | None, typer.Option(help="What to do with TERMINATED trials: skip by default.")
]
Unfinished = Annotated[
    ResumeType | None,
    typer.Option(help="What to do with unfinished trials, in place of --resume-unfinished."),
]
Errored = Annotated[
    ResumeType | None,
    typer.Option(
        help="What to do with ERROR trials, in place of --resume-errored and --restart-errored."
    ),
]
IgnoreTuner = Annotated[
    bool,
    typer.Option(
        "--ignore-tuner",
        help="Restore from the state alone: tuner.pkl belongs to another run, or needs what is gone.",
    ),
]
Strategy = Annotated[str, typer.Option(help="auto, per_trial or whole_experiment.")]

AllowScratch = Annotated[
    bool,
    typer.Option(
        "--allow-scratch", help="Start trials over whose recorded checkpoints are all gone."
    ),
]
MaxAttempts = Annotated[
    int | None,
    typer.Option(
        min=1, help="Failed attempts, over all nights, after which a trial is quarantined."
    ),
]


@app.command()
def scan(  # noqa: PLR0913  a command line has as many arguments as it has options
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Where to look: a path or a URL.")
    ],
    stale_after: StaleAfter = DEFAULT_STALE_AFTER,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Only experiments that match, or lie below a directory that does: a name, or with "
            "slashes a path from PREFIX, as 'team_a/**'. Can be repeated.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out directories that match. Can be repeated."),
    ] = None,
    max_depth: Annotated[
        int, typer.Option(min=0, help="Levels below PREFIX that are looked into.")
    ] = MAX_DEPTH,
    use_index: Annotated[
        bool,
        typer.Option(
            "--index/--no-index",
            help="Keep in PREFIX/.tune_restore what was read, and get only what has changed since.",
        ),
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the evidence for each verdict.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the experiments at or below PREFIX, and how they are."""
    store = open_store(prefix, in_bulk=True)
    reports = scan_experiments(
        store,
        stale_after=stale_after,
        selection=ScanFilter(
            include=tuple(include or ()), exclude=tuple(exclude or ()), max_depth=max_depth
        ),
        use_index=use_index,
        explains=explain,
    )
    if not reports:
        _refuse_what_is_no_directory(store)
    output.print_reports(
        with_quarantined(store, reports), prefix=store.uri, explain=explain, as_json=as_json
    )


@app.command(short_help="Show what a restore would do. Writes nothing.")
def plan(  # noqa: PLR0913  a command line has as many arguments as it has options
    experiment: ExperimentUri,
    resume_errored: ResumeErrored = False,
    restart_errored: RestartErrored = False,
    resume_unfinished: ResumeUnfinished = None,
    resume_cut_short: ResumeCutShort = False,
    finished: Finished = None,
    unfinished: Unfinished = None,
    errored: Errored = None,
    ignore_tuner: IgnoreTuner = False,
    strategy: Strategy = "auto",
    allow_scratch: AllowScratch = False,
    max_attempts: MaxAttempts = None,
    stale_after: StaleAfter = DEFAULT_STALE_AFTER,
    as_json: Json = False,
) -> None:
    """Show what a restore of EXPERIMENT would do, and what would refuse it. Writes nothing."""
    store = open_store(experiment, in_bulk=True)
    flags = _flags(
        _Flags(resume_errored, restart_errored, resume_unfinished, resume_cut_short),
        finished=finished,
        unfinished=unfinished,
        errored=errored,
    )
    choices = PlanChoices(
        flags=flags,
        strategy=strategy,
        allow_scratch=allow_scratch,
        ignore_tuner=ignore_tuner,
        max_attempts=max_attempts,
    )
    made = plan_restore(store, "preview", PrepareOptions(choices=choices)).plan
    refusals = foresee_refusals(store, made, stale_after=stale_after)
    output.print_plan(made, refusals, as_json=as_json)


@app.command(short_help="Plan, run and commit a restore.")
def restore(  # noqa: PLR0913  a command line has as many arguments as it has options
    experiment: ExperimentUri,
    trainable: Annotated[
        str,
        typer.Option(metavar="MODULE:ATTR", help="The trainable, or a name registered with Tune."),
    ],
    resume_errored: ResumeErrored = False,
    restart_errored: RestartErrored = False,
    resume_unfinished: ResumeUnfinished = None,
    resume_cut_short: ResumeCutShort = False,
    finished: Finished = None,
    unfinished: Unfinished = None,
    errored: Errored = None,
    ignore_tuner: IgnoreTuner = False,
    param_space: Annotated[
        str | None, typer.Option(metavar="MODULE:ATTR", help="Re-specified param_space.")
    ] = None,
    search_alg: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:ATTR",
            help="Searcher, function that makes one, Tuner or TuneConfig; draws the samples that are "
            "left where the original searcher is lost with tuner.pkl.",
        ),
    ] = None,
    strategy: Strategy = "auto",
    allow_scratch: AllowScratch = False,
    max_attempts: MaxAttempts = None,
    max_memory: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="BYTES",
            show_default=False,
            help="Most memory a trial is given after it ran out of it; with --address. "
            f"({DEFAULT_MAX_MEMORY_BYTES / 1024**3:.0f} GiB)",
        ),
    ] = DEFAULT_MAX_MEMORY_BYTES,
    remember_scheduler: Annotated[
        bool,
        typer.Option(
            "--remember-scheduler",
            help="Tell ASHA and MedianStopping what all trials reported before; Ray forgets it.",
        ),
    ] = False,
    stale_after: StaleAfter = DEFAULT_STALE_AFTER,
    on: Annotated[LauncherName, typer.Option(help="Where the trials run.")] = LauncherName.LOCAL,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use; without, each trial gets a private Ray.")
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Module to import first, where trainables are registered. Can be repeated.",
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Trials run at the same time.")] = 1,
    as_json: Json = False,
) -> None:
    """Plan, run and commit a restore of EXPERIMENT, and print each trial before and after.

    Samples that were never drawn are drawn by the original searcher, or by the one you name. With a
    param_space, an experiment that never started is started.

    Exit code 0: every resumed trial finished and every sample is drawn, or there was nothing to do. 1:
    trials failed again, a run broke off, or samples are still left (progress is committed). 2: bad usage
    or refused input. 3: the experiment is live or leased.
    """
    from airflow_tune_restore.cli.progress import Progress
    from airflow_tune_restore.cli.restore import RestoreOptions, restore_experiment

    del on  # one launcher so far
    options = RestoreOptions(
        prepare=PrepareOptions(
            choices=PlanChoices(
                flags=_flags(
                    _Flags(resume_errored, restart_errored, resume_unfinished, resume_cut_short),
                    finished=finished,
                    unfinished=unfinished,
                    errored=errored,
                ),
                ignore_tuner=ignore_tuner,
                strategy=strategy,
                allow_scratch=allow_scratch,
                max_attempts=max_attempts,
                max_memory_bytes=max_memory,
                remember_scheduler=remember_scheduler,
            ),
            stale_after=stale_after,
            can_start=param_space is not None,
            can_search=search_alg is not None,
        ),
        trainable=trainable,
        param_space=param_space,
        search_alg=search_alg,
        address=address,
        imports=tuple(imports or ()),
        parallel=parallel,
    )
    store = open_store(experiment)
    with Progress(quiet=as_json) as progress:
        summary = restore_experiment(store, options, progress)
    output.print_summary(summary, experiment=store.uri, as_json=as_json)
    if summary is not None and not summary.is_done:
        raise typer.Exit(EXIT_FAILED)


@app.command(short_help="Let a quarantined trial run again.")
def release(
    experiment: ExperimentUri,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="Trial id, as `plan` shows it.")],
    as_json: Json = False,
) -> None:
    """Let a quarantined TRIAL of EXPERIMENT run again: its failures so far no longer count."""
    from airflow_tune_restore.cli.restore import holder
    from airflow_tune_restore.restore.release import release_trial

    store = open_store(experiment)
    history = release_trial(store, trial, holder=holder())
    output.print_released(history, experiment=store.uri, trial_id=trial, as_json=as_json)


@app.command(short_help="Take back the last commit.")
def undo(experiment: ExperimentUri, as_json: Json = False) -> None:
    """Take back the last commit to EXPERIMENT, unless something newer was written since."""
    from airflow_tune_restore.cli.restore import holder
    from airflow_tune_restore.restore.undo import undo_commit

    output.print_undone(undo_commit(open_store(experiment), holder=holder()), as_json=as_json)


def main() -> None:
    """Run the command line; our own errors are one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only gets the rest
    gc.disable()  # a short process that makes many small values and no cycles to speak of
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (ExperimentRunningError, LeaseHeldError, LeaseLostError) as error:
        output.print_error(error)
        sys.exit(EXIT_BUSY)
    except TuneRestoreError as error:
        output.print_error(error)
        sys.exit(EXIT_REFUSED)


def _refuse_what_is_no_directory(store: ObjectStore) -> None:
    """Tell an empty directory from a slip. To a nightly DAG both are empty: its first sweep makes it."""
    if isinstance(store, LocalStore) and not os.path.isdir(store.uri):  # noqa: PTH112  never raises
        raise InvalidInputError(
            f"{store.uri} is no directory. Give the directory that holds the experiments, or a URL such "
            "as s3://bucket/prefix."
        )


class _Flags(NamedTuple):
    """Ray's flags as they were given; None for one that was not."""

    resume_errored: bool
    restart_errored: bool
    resume_unfinished: bool | None
    resume_cut_short: bool


def _flags(
    given: _Flags,
    *,
    finished: ResumeType | None,
    unfinished: ResumeType | None,
    errored: ResumeType | None,
) -> ResumeFlags:
    """Join both forms; each status is chosen by one of them."""
    both = {
        ("--errored", "--resume-errored"): errored and given.resume_errored,
        ("--errored", "--restart-errored"): errored and given.restart_errored,
        ("--unfinished", "--resume-unfinished"): unfinished and given.resume_unfinished,
        ("--unfinished", "--no-resume-unfinished"): unfinished and given.resume_unfinished is False,
    }
    for (option, flag), is_given in both.items():
        if is_given:
            raise InvalidInputError(
                f"{option} and {flag} are two choices for the same trials. Give one of them."
            )
    flags = ResumeFlags.from_flags(
        resume_unfinished=given.resume_unfinished is not False,
        resume_errored=given.resume_errored,
        restart_errored=given.restart_errored,
        resume_cut_short=given.resume_cut_short,
    )
    return replace(
        flags,
        finished=finished or flags.finished,
        unfinished=unfinished or flags.unfinished,
        errored=errored or flags.errored,
    )


if __name__ == "__main__":
    main()
