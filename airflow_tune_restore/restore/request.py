"""The contract between whoever starts a runner and the runner: JSON both ways, stdlib only.

The runner imports this inside Ray images, where nothing but ray and the user's code is installed.
Field names are a wire format: only ever add, with a default.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin

from airflow_tune_restore.experiments import bounded_json
from airflow_tune_restore.experiments.numbers import is_amount, strict_json

PROGRESS_PREFIX = "::tune-restore-progress:: "
"""A runner's stdout line that starts with this carries one `RunnerProgress`."""

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_FENCED = 3
EXIT_INTERRUPTED = 4
"""Exit codes are for people reading logs; what counts is the outcome record in storage."""


class Result(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"  # the trial is TERMINATED
    FAILED = "failed"  # the trial is ERROR: its own exception, retries spent
    INTERRUPTED = "interrupted"  # told to stop; a snapshot is saved, the trial is unfinished
    REFUSED = "refused"  # bad input (trainable, param_space): nothing was started or written
    FENCED = "fenced"  # a newer attempt or restore is at work: nothing more was written


class _Record:
    """JSON in and out for the dataclasses below."""

    def to_json(self) -> bytes:
        return json.dumps(strict_json(asdict(self))).encode()  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, body: bytes | str) -> Self:
        """Read what `to_json` wrote, by this version or another one.

        Raises:
            ValueError: If it is something else; TypeError if it is no object, or a field is missing.
        """
        with bounded_json.alone(len(body)):
            given = _readable(bounded_json.load(body))
        if not isinstance(given, dict):
            raise TypeError(f"no {cls.__name__}")
        known = {f.name: f.type for f in fields(cls)}  # type: ignore[arg-type]
        values = {name: value for name, value in given.items() if name in known}
        for name, value in values.items():
            if not _fits(value, known[name]):
                raise ValueError(f"{name} of a {cls.__name__} cannot be a {type(value).__name__}")
        return cls(**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; of what lists and dicts hold, only scalars are checked."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is NoneType or kind is bool or kind is int:
        return type(value) is kind
    return isinstance(value, get_origin(kind) or kind)


def _readable(value: Any) -> Any:
    """Replace lone surrogates, which JSON can spell and nothing can encode."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list) else value


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Keep metrics that can be shown."""
    return {
        name: value for name, value in values.items() if isinstance(value, str | int | float | None)
    }


def _amounts(values: dict[str, Any]) -> dict[str, float]:
    """Keep resources that something can be sized by."""
    return {name: float(value) for name, value in values.items() if is_amount(value) and value > 0}


@dataclass(frozen=True, kw_only=True)
class RunnerRequest(_Record):
    """One attempt of one trial. Stored at `layout.request_key`; holds no credential.

    Args:
        experiment: URI of the experiment directory; credentials come from the environment.
        restore_id: The restore it belongs to; must hold the lease.
        trial_id: Trial id in the plan; `layout.EVERY_TRIAL` for the one run of a whole experiment.
        attempt: Number of the attempt, from 1; a runner that sees a higher one stops.
        trainable: `package.module:attribute`, or a name registered with Tune.
        trainable_name: The recorded name that the trainable must have.
        action: `resume` or `restart`; in a whole experiment the plan says it for each trial.
        checkpoint: Directory name of the checkpoint to start from; None to start from scratch.
        iteration: `training_iteration` of that checkpoint.
        new_trial_id: Id of the new trial, for `restart`.
        fresh_budget: Give the trial its failure budget back.
        trim_results: Drop result rows past the checkpoint first (a backup stays).
        param_space: `package.module:attribute` of a re-specified param_space (dict or a function
            without arguments that returns one), or None.
        search_alg: `package.module:attribute` of a searcher, for the run of a whole experiment whose own
            searcher is lost with `tuner.pkl`; or None.
        imports: Modules to import first (they may register trainables or environments).
        address: Ray cluster to connect to; None starts a private one in the runner.
        resources: What the trial asked for when it was recorded, or lately; with more memory, what
            this attempt asks a cluster for.
        sized: Whether the place it runs in was made for `resources`: if the trial asks for more now, it
            is not run, and the outcome has what it asks for.
        runtime_env: Ray runtime_env for the connection.
        reports: Whether results are written to storage, too, for a follower that cannot read stdout.
        remember_scheduler: Whether the scheduler is told what all trials reported before (Ray forgets).
        ignore_tuner: Restore from the state alone, whatever `tuner.pkl` holds.
        nonce: Makes the bytes unique, so that an exclusive create is recognised as ours.
        schema: Version of this record.

    """

    experiment: str
    restore_id: str
    trial_id: str
    attempt: int
    trainable: str
    trainable_name: str
    action: str
    checkpoint: str | None = None
    iteration: int = 0
    new_trial_id: str | None = None
    fresh_budget: bool = False
    trim_results: bool = False
    param_space: str | None = None
    imports: list[str] = field(default_factory=list)
    address: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    reports: bool = False
    remember_scheduler: bool = False
    ignore_tuner: bool = False
    search_alg: str | None = None
    sized: bool = False
    nonce: str = ""
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class RunnerProgress(_Record):
    """One reported result, as a line on the runner's stdout."""

    trial_id: str
    iteration: int
    metrics: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", _scalars(self.metrics))

    def to_line(self) -> str:
        """Return the stdout line."""
        return PROGRESS_PREFIX + self.to_json().decode()

    @classmethod
    def from_line(cls, line: str) -> Self | None:
        """Parse a stdout line; None if it is an ordinary one."""
        if not line.startswith(PROGRESS_PREFIX):
            return None
        try:
            return cls.from_json(line.removeprefix(PROGRESS_PREFIX))
        except (ValueError, TypeError, RecursionError):
            return None  # the trainable prints what it likes, and two processes may share a line


@dataclass(frozen=True, kw_only=True)
class ProgressTail(_Record):
    """What a trial of a whole experiment reported lately, for a task that follows it from elsewhere.

    Args:
        first: How many reports came before those that are kept.
        reports: The kept ones, each as `RunnerProgress` has them.
    """

    first: int
    reports: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.after(0)  # TypeError if one is none

    def after(self, seen: int) -> list[RunnerProgress]:
        """Return the reports that follow the first `seen` of all."""
        return [RunnerProgress(**report) for report in self.reports[max(0, seen - self.first) :]]

    @property
    def count(self) -> int:
        """How many reports there were in all."""
        return self.first + len(self.reports)


@dataclass(frozen=True, kw_only=True)
class RunnerOutcome(_Record):
    """How one attempt ended. Stored at `layout.outcome_key` by the runner alone, once.

    Args:
        restore_id: The restore.
        trial_id: Trial id in the plan.
        attempt: The attempt.
        result: One of `Result`.
        status: Ray status of the trial in the snapshot; "" if nothing was run.
        final_trial_id: Id the row carries (a new one after a restart).
        iteration: Last `training_iteration`.
        metrics: Scalar metrics of the last result.
        error_type: Type name of the exception, "" if none.
        error: Its message, "" if none.
        cause: Why it failed, one of `failures.Cause`; "" if it did not.
        place: Innermost line of the user's code in its traceback; "" if none.
        resources: What one trial asks for, where the place made for it is too small: nothing was run.
            Empty in all other outcomes.
        started_at: ISO 8601 UTC.
        ended_at: ISO 8601 UTC.
        ray_version: Version that ran it.
        schema: Version of this record.

    """

    restore_id: str
    trial_id: str
    attempt: int
    result: str
    status: str
    final_trial_id: str
    iteration: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    error_type: str = ""
    error: str = ""
    cause: str = ""
    place: str = ""
    resources: dict[str, float] = field(default_factory=dict)
    started_at: str = ""
    ended_at: str = ""
    ray_version: str = ""
    schema: int = 1

    def __post_init__(self) -> None:
        Result(self.result)  # ValueError if it is none
        object.__setattr__(self, "metrics", _scalars(self.metrics))
        object.__setattr__(self, "resources", _amounts(self.resources))


@dataclass(frozen=True, kw_only=True)
class RunnerEnd(_Record):
    """What whoever followed a runner saw of its end. Stored at `layout.end_key`, if it left no outcome.

    Args:
        exit_code: Of its process, pod or job, negative for a signal; None if unknown.
        message: What Ray or Kubernetes says of its end, or the last lines it printed.
        ended_at: ISO 8601 UTC.
        schema: Version of this record.

    """

    exit_code: int | None = None
    message: str = ""
    ended_at: str = ""
    schema: int = 1
