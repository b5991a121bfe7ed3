"""The options of the commands. A new option is one field here, and its use.

A text beside the type of a field is its help; a flag that is off by default has no `--no-` form.
"""

from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from typing import Annotated, Any, get_args, get_type_hints

import typer

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH, ScanFilter
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT
from airflow_tune_restore.protocol.lease_watch import KNOWN_DEAD_SECONDS
from airflow_tune_restore.protocol.window import end_of_window, parse_time_of_day
from airflow_tune_restore.restore.choices import (
    AUTO,
    DEFAULT_MAX_MEMORY_BYTES,
    PlanChoices,
    Strategy,
)
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.only import Only
from airflow_tune_restore.restore.shown_rows import MAX_ROWS

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def _parse_span(seconds: str | timedelta) -> timedelta:
    """Parse a number of seconds; Typer passes the default through here, too."""
    if isinstance(seconds, timedelta):
        return seconds
    try:
        span = timedelta(seconds=float(seconds))
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{seconds} is not a number of seconds.") from None
    if span < timedelta():
        raise typer.BadParameter(f"{seconds} is less than 0.")
    return span


def _parse_limit(seconds: str | timedelta) -> timedelta:
    span = _parse_span(seconds)
    if not span:
        raise typer.BadParameter(f"{seconds} leaves no time.")
    return span


ExperimentUri = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="Experiment directory: a path, or a URL such as s3://bucket/experiment.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ListAll = Annotated[
    bool, typer.Option("--all", help=f"List every row of a table; by default the first {MAX_ROWS}.")
]
StaleAfter = Annotated[
    timedelta,
    typer.Option(
        parser=_parse_span,
        metavar="SECONDS",
        help="An unfinished experiment counts as dead if nothing was written for this long "
        f"({DEFAULT_STALE_AFTER.total_seconds():.0f}). 0: you are sure that its driver is dead.",
        show_default=False,
    ),
]

RecipePatterns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="The experiment's own .tune_restore/recipe.json may name modules that match, such as "
        "'team_a.*'. '*' allows all that it can hold. Can be repeated.",
    ),
]
ParamSpace = Annotated[
    str | None, typer.Option(metavar="MODULE:ATTR", help="Re-specified param_space.")
]
SearchAlg = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:ATTR",
        help="Searcher, function that returns one, Tuner or TuneConfig. It draws the samples that "
        "are left if the original searcher is lost with tuner.pkl.",
    ),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Module to import first, to register trainables. Can be repeated.",
    ),
]
CheckTimeout = Annotated[
    timedelta,
    typer.Option(
        parser=_parse_limit,
        metavar="SECONDS",
        show_default=False,
        help="How long the check of the trainable may take before anything starts "
        f"({DEFAULT_CHECK_TIMEOUT.total_seconds():.0f}).",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """Which experiments a scan looks at, and how."""

    stale_after: StaleAfter = DEFAULT_STALE_AFTER
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Only experiments that match, or that lie below a matching directory: a name, or with "
            "slashes a path from PREFIX, such as 'team_a/**'. Can be repeated.",
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out matching directories. Can be repeated."),
    ] = None
    max_depth: Annotated[int, typer.Option(min=0, help="Levels below PREFIX to look into.")] = (
        MAX_DEPTH
    )
    use_index: Annotated[
        bool,
        typer.Option(
            "--index/--no-index",
            help="Keep results in PREFIX/.tune_restore, and read only what has changed since.",
        ),
    ] = True
    explain: Annotated[bool, "Show the evidence for each verdict."] = False

    @property
    def selection(self) -> ScanFilter:
        """The filter of `--include`, `--exclude` and `--max-depth`."""
        return ScanFilter(
            include=tuple(self.include or ()),
            exclude=tuple(self.exclude or ()),
            max_depth=self.max_depth,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How the trials are restored: `PlanChoices` with Ray's flags in both forms."""

    resume_errored: Annotated[bool, "Resume ERROR trials from their checkpoint."] = False
    restart_errored: Annotated[bool, "Start ERROR trials over, as new trials."] = False
    resume_unfinished: Annotated[
        bool | None, "Resume unfinished trials (default), or let them become TERMINATED."
    ] = None
    resume_cut_short: Annotated[
        bool, "Resume trials that fail_fast marked TERMINATED when another one failed."
    ] = False
    finished: Annotated[ResumeType | None, "The choice for TERMINATED trials: skip by default."] = (
        None
    )
    unfinished: Annotated[
        ResumeType | None, "The choice for unfinished trials, in place of --resume-unfinished."
    ] = None
    errored: Annotated[
        ResumeType | None,
        "The choice for ERROR trials, in place of --resume-errored and --restart-errored.",
    ] = None
    strategy: Annotated[
        str,
        typer.Option(
            autocompletion=lambda: [AUTO, *Strategy],
            help="auto, per_trial, shared_driver or whole_experiment.",
        ),
    ] = AUTO
    fresh_budget: Annotated[
        bool, "Give resumed trials their failure budget (max_failures) back."
    ] = False
    trim_results: Annotated[
        bool, "Remove result rows after the checkpoint before a trial continues."
    ] = False
    newest_checkpoint: Annotated[
        bool, "Continue from the newest complete checkpoint, even if the state names an older one."
    ] = False
    allow_scratch: Annotated[
        bool, "Start trials over if all their recorded checkpoints are gone."
    ] = False
    remember_scheduler: Annotated[
        bool, "Give ASHA and MedianStopping the earlier results of all trials; Ray forgets them."
    ] = False
    ignore_tuner: Annotated[
        bool,
        "Restore from the state alone: tuner.pkl belongs to another run, or needs a module "
        "that is gone.",
    ] = False
    trust_name: Annotated[
        bool,
        "Restore by the trainable's name alone, against evidence that another trainable of this "
        "name made the experiment.",
    ] = False
    trials: Annotated[
        list[str] | None,
        typer.Option(
            "--trial",
            metavar="ID",
            help="Restore only this trial; the others stay as they are. Can be repeated.",
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Restore only those of the chosen trials that match; the others stay as they are. "
            "KEY is trial, status, cause, error (a regular expression), metric (as "
            "'metric=loss<0.5') or experiment (a glob). Can be repeated: all keys must match, by one "
            "of their values.",
        ),
    ] = None
    max_attempts: Annotated[
        int | None,
        typer.Option(
            min=1, help="Failed attempts, over all restores, after which a trial is quarantined."
        ),
    ] = None
    max_memory: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="BYTES",
            show_default=False,
            help="Most memory that a trial requests of a cluster after it ran out of memory "
            f"({DEFAULT_MAX_MEMORY_BYTES / 1024**3:.0f} GiB).",
        ),
    ] = DEFAULT_MAX_MEMORY_BYTES
    stale_after: StaleAfter = DEFAULT_STALE_AFTER

    def narrowing(self) -> Only:
        """Return which of the chosen trials are taken (InvalidInputError if it is not valid)."""
        return Only.parse(self.only) if self.only else Only()

    def choices(self) -> PlanChoices:
        """Return the choices for the plan.

        Raises:
            InvalidInputError: If both forms of a flag are given for the same trials.
        """
        return PlanChoices(
            flags=self._flags(),
            strategy=self.strategy,
            fresh_budget=self.fresh_budget,
            trim_results=self.trim_results,
            remember_scheduler=self.remember_scheduler,
            allow_scratch=self.allow_scratch,
            newest_checkpoint=self.newest_checkpoint,
            ignore_tuner=self.ignore_tuner,
            trust_name=self.trust_name,
            trials=tuple(self.trials or ()),
            max_attempts=self.max_attempts,
            max_memory_bytes=self.max_memory,
        )

    def _flags(self) -> ResumeFlags:
        """Join both forms of Ray's flags; each status is chosen by one of them."""
        refuse_two_choices(self)
        flags = ResumeFlags.from_flags(
            resume_unfinished=self.resume_unfinished is not False,
            resume_errored=self.resume_errored,
            restart_errored=self.restart_errored,
            resume_cut_short=self.resume_cut_short,
        )
        return replace(
            flags,
            finished=self.finished or flags.finished,
            unfinished=self.unfinished or flags.unfinished,
            errored=self.errored or flags.errored,
        )


def option_of_plan(name: str) -> Any:
    """Return how an option of `PlanOptions` is described, for another command that has it."""
    return get_args(get_type_hints(PlanOptions, include_extras=True)[name])[1]


def refuse_two_choices(given: Any) -> None:
    """Refuse both forms of Ray's flags for trials of the same status (InvalidInputError)."""
    given_twice = {
        ("--errored", "--resume-errored"): given.errored and given.resume_errored,
        ("--errored", "--restart-errored"): given.errored and given.restart_errored,
        ("--unfinished", "--resume-unfinished"): given.unfinished and given.resume_unfinished,
        ("--unfinished", "--no-resume-unfinished"): (
            given.unfinished and given.resume_unfinished is False
        ),
    }
    for (option, flag), is_given_twice in given_twice.items():
        if is_given_twice:
            raise InvalidInputError(
                f"{option} and {flag} are two choices for the same trials. Give one of them."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOptions:
    """How a restore takes the lease of another one that did not release it."""

    break_lease: Annotated[
        bool,
        "Take the lease of a restore that you know to be dead. It asks, and watches it for "
        f"{KNOWN_DEAD_SECONDS:.0f} s: it refuses if a heartbeat moves.",
    ] = False
    yes: Annotated[bool, "Break the lease without asking."] = False


def _parse_time(text: str | time) -> time:
    if isinstance(text, time):
        return text
    try:
        return parse_time_of_day(text)
    except ValueError:
        raise typer.BadParameter(f"{text} is not a time of day, such as 07:00.") from None


def _parse_length(text: str | timedelta) -> timedelta:
    """Parse a duration: `3h`, `90m`, or seconds."""
    if isinstance(text, timedelta):
        return text
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        length = timedelta(seconds=float(number) * unit)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text} is not a duration, such as 3h, 90m or 5400.") from None
    if length <= timedelta():
        raise typer.BadParameter(f"{text} leaves no time.")
    return length


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOptions:
    """How long a restore may run."""

    until: Annotated[
        time | None,
        typer.Option(
            parser=_parse_time,
            metavar="HH:MM",
            help="From this time on, by this machine's clock, nothing is started, and running trials are "
            "paused: they save snapshots, and their progress is committed.",
        ),
    ] = None
    max_duration: Annotated[
        timedelta | None,
        typer.Option(
            parser=_parse_length,
            metavar="DURATION",
            help="The same after so long: '3h', '90m', or seconds.",
        ),
    ] = None

    def end(self, now: datetime) -> datetime | None:
        """Return the end of a window that begins now (an aware time); None without one."""
        return end_of_window(now, None, self.until, self.max_duration)
