"""Arguments of `TuneRestoreTaskGroup` that it passes on as they are, and to which of its tasks."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, TypedDict

from airflow.sdk import DAG, TaskGroup

from airflow_tune_restore.exceptions import InvalidInputError

_Callbacks = Callable[..., Any] | Collection[Callable[..., Any]] | None


class FindArguments(TypedDict, total=False):
    """For the task `find`: arguments of `FailedTuneExperimentSensor` and of every sensor."""

    include: Sequence[str] | str
    exclude: Sequence[str] | str
    max_depth: int
    use_index: bool
    poke_interval: timedelta | float
    timeout: timedelta | float
    mode: str
    soft_fail: bool
    exponential_backoff: bool
    max_wait: timedelta | float | None
    silent_fail: bool
    never_fail: bool


class CheckArguments(TypedDict, total=False):
    """For the tasks that check the trainable on the worker: `plan` and `continue_search`."""

    check_timeout: timedelta | float | str


class PlanArguments(CheckArguments, total=False):
    """For the task `plan`: arguments of `BuildRestorePlanOperator`."""

    resume_cut_short: bool | str
    on_unknown: str
    strategy: str
    trials: Sequence[str] | str
    only: Mapping[str, Any] | Sequence[str] | str
    fresh_budget: bool | str
    trim_results: bool | str
    remember_scheduler: bool | str
    allow_scratch: bool | str
    newest_checkpoint: bool | str
    max_memory: float | str
    max_trials: int | str | None
    lease_ttl: timedelta | float


class TaskArguments(TypedDict, total=False):
    """For all tasks: arguments that every operator of Airflow has."""

    owner: str
    retries: int
    retry_delay: timedelta | float
    retry_exponential_backoff: float
    max_retry_delay: timedelta | float | None
    execution_timeout: timedelta | None
    start_date: datetime | None
    end_date: datetime | None
    depends_on_past: bool
    wait_for_downstream: bool
    priority_weight: int
    weight_rule: str
    queue: str
    pool: str | None
    pool_slots: int
    run_as_user: str | None
    executor: str | None
    executor_config: Mapping[str, Any] | None
    max_active_tis_per_dag: int | None
    on_execute_callback: _Callbacks
    on_failure_callback: _Callbacks
    on_success_callback: _Callbacks
    on_retry_callback: _Callbacks
    on_skipped_callback: _Callbacks


class GroupArguments(TypedDict, total=False):
    """For the group itself: arguments of `TaskGroup`."""

    group_display_name: str
    prefix_group_id: bool
    parent_group: TaskGroup | None
    dag: DAG
    default_args: dict[str, Any]
    tooltip: str
    doc_md: str | None
    ui_color: str
    ui_fgcolor: str
    add_suffix_on_collision: bool


class PassedArguments(FindArguments, PlanArguments, TaskArguments, GroupArguments, total=False):
    """All arguments that are passed on."""


def pick(arguments: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the arguments of one kind."""
    return {name: value for name, value in arguments.items() if name in kind.__annotations__}


def refuse_unknown(arguments: Iterable[str], own: Iterable[str]) -> None:
    """Refuse a name that nothing takes (InvalidInputError); `own` are those of the group itself."""
    known = PassedArguments.__annotations__
    for name in arguments:
        if name not in known:
            close = get_close_matches(name, {*known, *own}, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise InvalidInputError(
                f"TuneRestoreTaskGroup has no argument {name}.{hint} Arguments of a single task belong "
                "into find_args, plan_args, trial_args, commit_args or continue_search_args."
            )
