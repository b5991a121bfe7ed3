"""What the operators that draw samples share, wherever the run is: plan it, judge its end, tell of it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_tune_restore.exceptions import ExperimentRunningError
from airflow_tune_restore.hooks.arguments import parse_bool, parse_span, parse_text
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators.build_restore_plan import DEFAULT_LEASE_TTL
from airflow_tune_restore.operators.commit_restore import describe_summary
from airflow_tune_restore.operators.items import RestoreItem, restore_id_for
from airflow_tune_restore.restore.draft import DraftOptions, draft_continuation, start_draft
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.request import Result, RunnerOutcome
from airflow_tune_restore.restore.summary import CommitSummary, printable
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow.sdk.types import Logger


def parse_continued(given: Any) -> str:
    """Read the address of the experiment: text, or one element of `CommitRestoreOperator`'s output.

    Raises:
        AirflowSkipException: If that says that no samples are left.
    """
    if isinstance(given, Mapping):
        if not given.get("samples_left"):
            raise AirflowSkipException(f"{given.get('experiment')}: no samples are left to draw.")
        given = given.get("experiment")
    return str(given)


def continuation_options(
    stale_after: Any, param_space: str | None, ignore_tuner: Any
) -> DraftOptions:
    """Return how a continuation is planned: with a param_space, an unstarted experiment is started."""
    return DraftOptions(
        flags=ResumeFlags(),
        strategy="auto",
        stale_after=parse_span("stale_after", stale_after),
        can_start=parse_text(param_space) is not None,
        ignore_tuner=parse_bool("ignore_tuner", ignore_tuner),
    )


def start_continuation(
    context: Context,
    store: ObjectStore,
    options: DraftOptions,
    check: Callable[[RestorePlan], None] | None = None,
) -> tuple[RestorePlan | None, CommitSummary | None]:
    """Plan the draw and take the lease, or find what an earlier try of this task has started.

    Args:
        context: The task's.
        store: Rooted at the experiment.
        options: How to plan.
        check: Raises if the trainable does not fit a new plan; None where only the runner can tell.

    Returns:
        The plan (None if nothing is left after settling), and what was settled.

    Raises:
        AirflowSkipException: If there is nothing to draw, or the experiment is running.
    """
    ti = context["ti"]
    index = ti.map_index if ti.map_index is not None else -1
    base_id = restore_id_for(ti.dag_id, ti.run_id, ti.task_id, index, store.uri)
    try:
        draft = draft_continuation(store, base_id, options)
    except ExperimentRunningError as error:
        raise AirflowSkipException(str(error)) from error
    if isinstance(draft, str):
        raise AirflowSkipException(f"Nothing to draw. {draft}")
    if check is not None and not draft.is_started:
        check(draft.plan)
    return start_draft(
        draft,
        options,
        holder=f"DAG {ti.dag_id}, run {ti.run_id}",
        ttl_seconds=DEFAULT_LEASE_TTL.total_seconds(),
    )


def refuse_unfinished(plan: RestorePlan, outcome: RunnerOutcome) -> None:
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


def describe_continued(
    address: Address, summary: CommitSummary | None, *, log: "Logger"
) -> dict[str, Any]:
    """Log what was committed, and return it as `CommitRestoreOperator` does for one experiment."""
    if summary is None:
        raise AirflowSkipException(f"Nothing to draw in {address}.")
    log.info("%s", summary.headline())
    for line in summary.table().splitlines():
        log.info("%s", line)
    item = RestoreItem(experiment=str(address), restore_id=summary.restore_id)
    return describe_summary(item, summary)
