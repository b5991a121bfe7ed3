"""The records that launchers and runners exchange, as JSON.

Field names are a wire format: only add fields, each with a default. Standard library only: the runner
imports this inside Ray images, which hold only ray and the user's code.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Self

from airflow_tune_restore.protocol import record_fields as kinds
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.record_fields import Count, Moment, Name, Record, StateName

PROGRESS_PREFIX = "::tune-restore-progress:: "
"""A line on a runner's stdout that starts with this holds one `RunnerProgress`."""

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_FENCED = 3
EXIT_INTERRUPTED = 4
EXIT_PAUSED = 5
"""Exit codes are for readers of logs; only the outcome record in storage counts."""

MOST_REPORTS = 1000
"""Reports in one `ProgressTail`, and lines; a runner keeps 200 of each."""


class Result(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"  # the trial is TERMINATED
    FAILED = "failed"  # the trial is ERROR: its own exception, retries spent
    INTERRUPTED = "interrupted"  # stopped; a snapshot is saved, the trial is unfinished
    PAUSED = "paused"  # as interrupted, because the window of the restore has ended
    REFUSED = "refused"  # invalid input (trainable, param_space): nothing was started or written
    FENCED = "fenced"  # a newer attempt or restore has started: nothing more was written


class TrialAction(StrEnum):
    """The action of a restore for one trial."""

    KEEP = "keep"
    RESUME = "resume"
    RESTART = "restart"
    TERMINATE = "terminate"
    DRAW = "draw"  # never in a plan: a sample that the searcher suggests during the restore
    RUN = "run"  # only in the request of a run of many: the plan or the seed has the action of each trial
    SWEEP = "sweep"  # only in the request of a sweep's own script


RUN_ACTIONS = frozenset({TrialAction.RESUME, TrialAction.RESTART})
"""The actions of trials that a restore runs."""


@dataclass(frozen=True, kw_only=True)
class RunnerRequest(Record):
    """One attempt of one trial. Stored at `layout.request_key`; holds no credential.

    Args:
        experiment: URI of the experiment directory; credentials come from the environment.
        trial_id: Trial id in the plan; `layout.WHOLE_EXPERIMENT` for the whole-experiment run;
            `layout.SHARED_DRIVER` for a shared driver.
        attempt: From 1; a runner that finds a higher one stops.
        trainable: `package.module:attribute`, or a name registered with Tune.
        trainable_name: The recorded name that the trainable must have.
        action: `resume` or `restart`; `run` for the whole-experiment run; `sweep` for a sweep's script.
        checkpoint, iteration, new_trial_id: As in `planned.PlannedTrial`.
        fresh_budget: Whether the trial gets its failure budget (`max_failures`) back.
        trim_results: Whether result rows after the checkpoint are dropped first (a backup is kept).
        param_space: `package.module:attribute` of a re-specified param_space, or None.
        search_alg: `package.module:attribute` of a searcher, for a whole-experiment run whose own
            searcher is lost with `tuner.pkl`; or None.
        imports: Modules to import first (they may register trainables or environments).
        address: Ray cluster to connect to; None starts a private one in the runner.
        resources: What the trial requested when it was recorded, or last; with more memory after it ran
            out of memory.
        sized: Whether its pod or job was made for `resources`: if the trial requests more now, it is not
            run, and the outcome has its resources.
        runtime_env: Ray runtime_env for the connection.
        reports: Whether results are also written to storage, for a follower that cannot read stdout.
        remember_scheduler: Whether the scheduler gets the earlier results, which Ray forgets.
        ignore_tuner: Whether the state alone is restored, without `tuner.pkl`.
        trust_name: Whether the runner only warns of evidence that another trainable of the same name made
            the experiment.
        state: Name of the state file that the plan was made from; "" if it had none, or in requests of
            older versions.
        entrypoint: Command line of a sweep's own script; None in all other requests.
        is_shared: Whether a driver that other trials share runs it, and not a runner of its own.
        concurrent: In the request of a shared driver: most trials at the same time; 0 for as many as fit.
        pause_at: When the window of the restore ends (ISO 8601): then the runner pauses. "" without one.
        nonce: Makes the bytes unique, so that the store can recognise a repeated create.
    """

    experiment: str
    restore_id: Name
    trial_id: Name
    attempt: Count
    trainable: str
    trainable_name: str
    action: TrialAction
    checkpoint: kinds.Segment | None = None
    iteration: Count = 0
    new_trial_id: Name | None = None
    fresh_budget: bool = False
    trim_results: bool = False
    param_space: str | None = None
    imports: list[str] = field(default_factory=list)
    address: str | None = None
    resources: kinds.Asked = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    reports: bool = False
    remember_scheduler: bool = False
    ignore_tuner: bool = False
    search_alg: str | None = None
    sized: bool = False
    trust_name: bool = False
    state: StateName = ""
    entrypoint: str | None = None
    pause_at: Moment = ""
    is_shared: bool = False
    concurrent: Count = 0
    nonce: str = ""
    schema: Count = 1


@dataclass(frozen=True, kw_only=True)
class RunnerProgress(Record):
    """One reported result, as a line on the runner's stdout."""

    trial_id: Name
    iteration: Count
    metrics: kinds.Metrics

    def to_line(self) -> str:
        """Return the stdout line."""
        return PROGRESS_PREFIX + self.to_json().decode()

    @classmethod
    def from_line(cls, line: str) -> Self | None:
        """Parse a stdout line; None if it is another output."""
        if not line.startswith(PROGRESS_PREFIX):
            return None
        try:
            return cls.from_json(line.removeprefix(PROGRESS_PREFIX))
        except (ValueError, TypeError, RecursionError):
            return None  # the trainable may print anything, and two processes may share a line


@dataclass(frozen=True, kw_only=True)
class ProgressTail(Record):
    """The newest reports of a trial, for a follower that cannot read the runner's stdout.

    Args:
        first: The number of earlier reports that are not kept.
        lines: The newest lines that the trial printed, if it shares a driver with others.
        first_line: The number of earlier lines that are not kept.
    """

    first: Count
    reports: Annotated[list[RunnerProgress], kinds.at_most(MOST_REPORTS)]
    lines: Annotated[list[kinds.Output], kinds.at_most(MOST_REPORTS)] = field(default_factory=list)
    first_line: Count = 0

    def after(self, seen: int) -> list[RunnerProgress]:
        """Return the kept reports after the first `seen` of all reports."""
        return self.reports[max(0, seen - self.first) :]

    def lines_after(self, seen: int) -> list[str]:
        """Return the kept lines after the first `seen` of all lines."""
        return self.lines[max(0, seen - self.first_line) :]

    @property
    def count(self) -> int:
        """The number of all reports, kept or not."""
        return self.first + len(self.reports)

    @property
    def line_count(self) -> int:
        """The number of all lines, kept or not."""
        return self.first_line + len(self.lines)


@dataclass(frozen=True, kw_only=True)
class RunnerOutcome(Record):
    """How one attempt ended. Stored at `layout.outcome_key` by the runner alone, once.

    Args:
        status: Ray status of the trial in the snapshot; "" if nothing was run.
        final_trial_id: Id of its row (a new one after a restart).
        iteration: Last `training_iteration`.
        metrics: Scalar metrics of the last result.
        error_type: Type name of the exception, "" if none; `error` is its message.
        cause: Why it failed, one of `failures.Cause`; "" if it did not.
        place: Innermost line of the user's code in its traceback; "" if none.
        resources: What one trial requests, if its pod or job was too small for it and nothing was run.
            Empty in all other outcomes.
        started_at: ISO 8601 UTC, as `ended_at`.
    """

    restore_id: Name
    trial_id: Name
    attempt: Count
    result: Result
    status: kinds.Status
    final_trial_id: Name
    iteration: Count = 0
    metrics: kinds.Metrics = field(default_factory=dict)
    error_type: kinds.Line = ""
    error: kinds.Error = ""
    cause: kinds.Word = ""
    place: kinds.Line = ""
    resources: kinds.Resources = field(default_factory=dict)
    started_at: Moment = ""
    ended_at: Moment = ""
    ray_version: kinds.Word = ""
    schema: Count = 1

    @property
    def ends_trial(self) -> bool:
        """Whether it is an end of the trial itself, which a later attempt does not run on."""
        return self.result in (Result.FINISHED, Result.FAILED)

    def describe_error(self) -> str:
        """Return the type and message of the error as one printable line; "" without an error."""
        most = kinds.LINE_LENGTH + kinds.ERROR_LENGTH
        return printable(f"{self.error_type}: {self.error}".removeprefix(": "), most)


@dataclass(frozen=True, kw_only=True)
class RunnerExit(Record):
    """The observed exit of a runner that left no outcome. Stored at `layout.exit_key` by its follower.

    Args:
        exit_code: Of its process, pod or job, negative for a signal; None if unknown.
        message: The reason that Ray or Kubernetes gives, or the last lines that the runner printed.
    """

    exit_code: int | None = None
    message: kinds.LastWords = ""
    ended_at: Moment = ""
    schema: Count = 1
