"""Steps of the operators that continue a search, wherever it runs: plan it, judge its outcome, report."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_bool, parse_span, parse_text
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    KeyNotFoundError,
    LeaseHeldError,
    RunnerError,
    RunnerRefusedError,
    TuneRestoreError,
)
from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.hooks.dag_runs import ask_dag_run, hold_as_dag_run
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.window import Window
from airflow_tune_restore.operators.experiment_batch import describe_holder
from airflow_tune_restore.operators.prepare_restores import DEFAULT_LEASE_TTL
from airflow_tune_restore.operators.summary_log import log_summaries
from airflow_tune_restore.operators.summary_xcom import describe_summaries
from airflow_tune_restore.operators.xcom import restore_id_for
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.records import is_listed
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.own_restore import fresh_restore_id
from airflow_tune_restore.restore.paused import RestorePausedError, paused_error
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import prepare_continued_search
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.recipes import Recipes
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)

if TYPE_CHECKING:
    from airflow.sdk.types import Logger


def experiment_to_continue(given: Any) -> str:
    """Parse the address of the experiment: text, or one element of `CommitRestoreOperator`'s output.

    Raises:
        AirflowSkipException: If the element has no samples left.
    """
    if isinstance(given, Mapping):
        if not given.get("samples_left"):
            raise AirflowSkipException(f"{given.get('experiment')}: no samples are left to draw.")
        given = given.get("experiment")
    return str(given)


def continued_search_options(
    stale_after: Any,
    param_space: str | None,
    search_alg: str | None,
    ignore_tuner: Any,
    trust_name: Any,
    recipes: Recipes,
    window: Window | None = None,
) -> PrepareOptions:
    """Return how a continued search is planned."""
    return PrepareOptions(
        choices=PlanChoices(
            ignore_tuner=parse_bool("ignore_tuner", ignore_tuner),
            trust_name=parse_bool("trust_name", trust_name),
        ),
        stale_after=parse_span("stale_after", stale_after),
        can_start=parse_text(param_space) is not None,
        can_search=parse_text(search_alg) is not None,
        ask_holder=ask_dag_run,
        recipes=recipes,
        pause_at=window.end if window is not None else None,
    )


def start_continued_search(
    context: Context,
    store: ObjectStore,
    options: PrepareOptions,
    check: Callable[[PreparedRestore], None] | None = None,
    *,
    log: "Logger",
) -> tuple[RestorePlan | None, CommitSummary | None]:
    """Plan the continued search and take the lease, or return to the plan of an earlier try of this task.

    `check` raises if the trainable does not fit a new plan; it is None if only the runner can check it.

    Returns:
        The plan (None if nothing is left to do), and the commit of an abandoned restore, if any.

    Raises:
        AirflowSkipException: If there is nothing to draw, the experiment is running, or another restore
            works on it.
        InvalidInputError: If the samples that are left have no searcher.
        RestorePausedError: If the window has ended.
    """
    try:
        prepared = prepare_continued_search(store, restore_id_for(context, store.uri), options)
        if isinstance(prepared, str):
            raise AirflowSkipException(f"Nothing to draw. {printable(prepared, NOTE_LENGTH)}")
        window = Window(options.pause_at)
        if window.is_over and not prepared.is_started:
            raise RestorePausedError(store.uri, layout.WHOLE_EXPERIMENT, str(window))
        if check is not None and not prepared.is_started:
            check(prepared)
        return start_restore(
            prepared,
            ttl_seconds=DEFAULT_LEASE_TTL.total_seconds(),
            **hold_as_dag_run(context, log),
        )
    except ExperimentRunningError as error:
        raise AirflowSkipException(printable(str(error), NOTE_LENGTH)) from error
    except LeaseHeldError as error:
        reason = printable(describe_holder(error), NOTE_LENGTH)
        raise AirflowSkipException(f"{error.experiment} is left alone: {reason}") from error


def find_started_restore(context: Context, store: ObjectStore) -> str | None:
    """Return the restore of this task that has a plan and is not committed; None without one."""
    restore_id = fresh_restore_id(store, restore_id_for(context, store.uri))
    key = layout.plan_key(restore_id)
    return restore_id if is_listed(store, key) else None


@contextmanager
def commit_after_last_try(
    context: Context, open_store: Callable[[], ObjectStore], log: "Logger"
) -> Iterator[None]:
    """Commit the samples of a run that broke off if the task has no try left to continue it.

    Also if the run is paused: then no try continues it.
    """
    try:
        yield
    except AirflowException as error:
        ti = context["ti"]
        is_last = isinstance(error, AirflowFailException) or ti.try_number > ti.max_tries
        if isinstance(error, AirflowSkipException):
            is_last = isinstance(package_error_behind(error), RestorePausedError)
        if is_last:
            try:
                store = open_store()
                restore_id = fresh_restore_id(store, restore_id_for(context, store.uri))
                log_summaries([commit_restore(store, restore_id)], log)
            except KeyNotFoundError:
                pass  # no run was started
            except TuneRestoreError as trouble:
                reason = printable(str(trouble), NOTE_LENGTH)
                log.warning("The run is not committed: %s", reason)
        raise


def raise_unless_ended(plan: RestorePlan, outcome: RunnerOutcome) -> None:
    """Raise if the run broke off; failed trials do not fail the task.

    Raises:
        RunnerError: If it was stopped; a retry continues from its snapshot.
        RestorePausedError: If the window of the restore has ended.
        RunnerRefusedError: If it was refused or fenced.
    """
    cause = outcome.describe_error()
    match Result(outcome.result):
        case Result.PAUSED:
            raise paused_error(plan, layout.WHOLE_EXPERIMENT)
        case Result.INTERRUPTED:
            raise RunnerError(
                f"The run of {plan.experiment} was stopped in attempt {outcome.attempt}, with its "
                f"snapshot saved: {cause}"
            )
        case Result.REFUSED | Result.FENCED:
            raise RunnerRefusedError(f"The run of {plan.experiment} was not continued: {cause}")


def report_commit(
    address: Address, summary: CommitSummary | None, *, log: "Logger"
) -> dict[str, Any]:
    """Log a commit, and return it as `CommitRestoreOperator` does for one experiment."""
    if summary is None:
        raise AirflowSkipException(f"Nothing to draw in {address}.")
    summary = replace(summary, experiment=str(address))
    log_summaries([summary], log)
    (described,) = describe_summaries([], [summary], log)
    return dict(described)
