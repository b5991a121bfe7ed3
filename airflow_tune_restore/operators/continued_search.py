"""What the operators that draw samples share, wherever the run is: plan it, judge its end, tell of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_tune_restore.arguments import parse_bool, parse_span, parse_text
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    KeyNotFoundError,
    TuneRestoreError,
)
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators.build_restore_plan import DEFAULT_LEASE_TTL
from airflow_tune_restore.operators.commit_restore import describe_summary
from airflow_tune_restore.operators.xcom import RestoreXCom, restore_id_for
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import (
    PreparedRestore,
    PrepareOptions,
    fresh_restore_id,
    prepare_continued_search,
)
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow.sdk.types import Logger


def experiment_to_continue(given: Any) -> str:
    """Read the address of the experiment: text, or one element of `CommitRestoreOperator`'s output.

    Raises:
        AirflowSkipException: If that says that no samples are left.
    """
    if isinstance(given, Mapping):
        if not given.get("samples_left"):
            raise AirflowSkipException(f"{given.get('experiment')}: no samples are left to draw.")
        given = given.get("experiment")
    return str(given)


def continued_search_options(
    stale_after: Any, param_space: str | None, search_alg: str | None, ignore_tuner: Any
) -> PrepareOptions:
    """Return how a continuation is planned.

    With a param_space, an unstarted experiment is started; with a search_alg, samples are drawn whose own
    searcher is lost.
    """
    return PrepareOptions(
        choices=PlanChoices(ignore_tuner=parse_bool("ignore_tuner", ignore_tuner)),
        stale_after=parse_span("stale_after", stale_after),
        can_start=parse_text(param_space) is not None,
        can_search=parse_text(search_alg) is not None,
    )


def start_continued_search(
    context: Context,
    store: ObjectStore,
    options: PrepareOptions,
    check: Callable[[PreparedRestore], None] | None = None,
) -> tuple[RestorePlan | None, CommitSummary | None]:
    """Plan the draw and take the lease, or find what an earlier try of this task has started.

    Args:
        context: The task's.
        store: Rooted at the experiment.
        options: How to plan.
        check: Raises if the trainable does not fit a new draft; None where only the runner can tell.

    Returns:
        The plan (None if nothing is left after settling), and what was settled.

    Raises:
        AirflowSkipException: If there is nothing to draw, or the experiment is running.
        InvalidInputError: If nobody can draw what is left.
    """
    ti = context["ti"]
    try:
        draft = prepare_continued_search(store, _base_id(context, store), options)
    except ExperimentRunningError as error:
        raise AirflowSkipException(printable(str(error), NOTE_LENGTH)) from error
    if isinstance(draft, str):
        raise AirflowSkipException(f"Nothing to draw. {printable(draft, NOTE_LENGTH)}")
    if check is not None and not draft.is_started:
        check(draft)
    return start_restore(
        draft,
        options,
        holder=f"DAG {ti.dag_id}, run {ti.run_id}",
        ttl_seconds=DEFAULT_LEASE_TTL.total_seconds(),
    )


@contextmanager
def commit_after_last_try(
    context: Context, open_store: Callable[[], ObjectStore], log: "Logger"
) -> Iterator[None]:
    """Commit what a run that broke off has drawn, if no try is left to go on from its snapshot."""
    try:
        yield
    except AirflowSkipException:
        raise
    except AirflowException as error:
        ti = context["ti"]
        if isinstance(error, AirflowFailException) or ti.try_number > ti.max_tries:
            try:
                store = open_store()
                restore_id = fresh_restore_id(store, _base_id(context, store))
                log.info("%s", commit_restore(store, restore_id).headline())
            except KeyNotFoundError:
                pass  # no run was started
            except TuneRestoreError as trouble:
                log.warning(
                    "What was drawn is not committed: %s", printable(str(trouble), NOTE_LENGTH)
                )
        raise


def _base_id(context: Context, store: ObjectStore) -> str:
    ti = context["ti"]
    index = ti.map_index if ti.map_index is not None else -1
    return restore_id_for(ti.dag_id, ti.run_id, ti.task_id, index, store.uri)


def raise_unless_ended(plan: RestorePlan, outcome: RunnerOutcome) -> None:
    """Fail the task if the run did not come to its end; trials that failed in it do not."""
    cause = printable(f"{outcome.error_type}: {outcome.error}".removeprefix(": "))
    match Result(outcome.result):
        case Result.INTERRUPTED:
            raise AirflowException(
                f"The run of {plan.experiment} was stopped ({cause}); a retry goes on from its snapshot."
            )
        case Result.REFUSED | Result.FENCED:
            raise AirflowFailException(f"{plan.experiment} was not continued: {cause}")
        case Result.FINISHED | Result.FAILED:
            return


def report_commit(
    address: Address, summary: CommitSummary | None, *, log: "Logger"
) -> dict[str, Any]:
    """Log what was committed, and return it as `CommitRestoreOperator` does for one experiment."""
    if summary is None:
        raise AirflowSkipException(f"Nothing to draw in {address}.")
    log.info("%s", summary.headline())
    for line in summary.table().splitlines():
        log.info("%s", line)
    item = RestoreXCom(experiment=str(address), restore_id=summary.restore_id)
    return describe_summary(item, summary)
