"""Commits the results of restored trials, whatever their state."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from airflow.sdk import BaseOperator, Context, TriggerRule, XComArg

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.operators.approval import not_started
from airflow_tune_restore.operators.experiment_table import (
    ExperimentLine,
    ExperimentTable,
)
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.summary_log import log_summaries
from airflow_tune_restore.operators.summary_xcom import describe_summaries
from airflow_tune_restore.operators.totals import COMMIT_FAILED
from airflow_tune_restore.operators.xcom import (
    EXPERIMENTS_KEY,
    TOTALS_KEY,
    Outcome,
    OutcomeXCom,
    resolve_list,
)
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, first_of, printable
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.start import release_unstarted
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.version_compat import AirflowException, AirflowSkipException

_CONCURRENCY = 8
"""Restores committed at the same time: each may wait for dead runners. Large states take turns."""

_NEVER_STARTED = "its restore was not started: the plan task ended before it"


class CommitRestoreOperator(BaseOperator):
    """Writes the results of restored trials back into their experiments and ends the restores.

    Runs after all trials, whatever their state (`trigger_rule="all_done"`): progress of trials that
    failed again is committed, too. An experiment that cannot be committed does not stop the others; the
    task then fails at its end. Running it again changes nothing. A failed trial fails its own task, not
    this one. So let a task with `trigger_rule="none_failed"` follow both, as `TuneRestoreTaskGroup` does;
    then the state of the DAG run shows the failure. Give it `retries` of 1 or more.

    Returns one mapping per experiment that was committed, or whose search is continued: `experiment`,
    `restore_id`, `state_file` (None if nothing changed), `samples_left` (for a `ContinueSearchOperator`),
    `failed` (trial ids), `quarantined` (ids of trials that failed too often and do not run again until
    they are released), `headline`, and `trials`, before and after. Where all this would be too large for
    an XCom, it has less of each, and at last only the experiments whose search is continued. The log has
    tables.

    The log ends with one table of all experiments that were found, and what became of each. The XCom
    `experiments` holds the same, and the XCom `totals` has the numbers: `experiments` by outcome,
    `trials_run`, `trials_finished`, `trials_advanced`, `waiting_experiments` and `waiting_trials`. The
    task is skipped only if no experiment was found.

    Args:
        outcomes: `plan.output["outcomes"]` of a `BuildRestorePlanOperator`, or a list of
            `{"experiment": …, "restore_id": …}`. Read when the task runs: in a templated field, a plan
            that never ran would be an error.
        left_alone: `find.output["left_alone"]` of a `FailedTuneExperimentSensor`: experiments below the
            prefix that it did not return. Only shown. Read when the task runs.
        previewed: `preview.output["outcomes"]` of a `PreviewRestoreOperator`, shown if the plan never
            ran. Read when the task runs.
        storage_conn_id: Airflow connection for all experiments; by default the one in each address.
            (templated)
    """

    template_fields = ("storage_conn_id",)
    ui_color = "#e6e1f4"

    def __init__(
        self,
        *,
        outcomes: Any,
        left_alone: Any = None,
        previewed: Any = None,
        storage_conn_id: str | None = None,
        trigger_rule: TriggerRule | str = TriggerRule.ALL_DONE,
        **kwargs: Any,
    ) -> None:
        super().__init__(trigger_rule=trigger_rule, **kwargs)
        self.outcomes = outcomes
        self.left_alone = left_alone
        self.previewed = previewed
        self.storage_conn_id = storage_conn_id
        XComArg.apply_upstream_relationship(self, outcomes)

    def execute(self, context: Context) -> list[Any]:
        """Commit every restore, then log their changes, then what became of all experiments."""
        with as_airflow_errors():
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            outcomes = OutcomeList.resolve(self.outcomes, context)
            if not outcomes.items:
                shown = OutcomeList.resolve(self.previewed, context)
                outcomes = replace(shown, items=tuple(not_started(shown.items)))
        (left_alone,) = resolve_list(self.left_alone, context) or [{}]
        if not (outcomes.items or left_alone.get("experiments")):
            raise AirflowSkipException("Nothing to commit: the plan was given no experiment.")
        restores = [item for item in outcomes.items if item.outcome is Outcome.RESTORED]
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            results = list(pool.map(lambda item: self._try_to_commit(hook, item), restores))
        lines = [
            ExperimentLine.of_plan(item)
            for item in outcomes.items
            if item.outcome is not Outcome.RESTORED
        ]
        summaries: list[CommitSummary] = []
        failures: list[str] = []
        for item, result in zip(restores, results, strict=True):
            match result:
                case CommitSummary():
                    summary = replace(result, experiment=item.experiment)
                    summaries.append(summary)
                    lines.append(ExperimentLine.of_commit(item, summary))
                case TuneRestoreError():
                    reason = printable(str(result), NOTE_LENGTH)
                    failures.append(f"{item.experiment}: {reason}")
                    lines.append(_uncommitted(item, COMMIT_FAILED, reason))
                case None if item.is_refused:
                    lines.append(_uncommitted(item, Outcome.REFUSED, item.reason))
                case None:
                    lines.append(_uncommitted(item, Outcome.LEFT_ALONE, _NEVER_STARTED))
        log_summaries(summaries, self.log)
        unlisted = (outcomes.not_listed, outcomes.unlisted_trials)
        self._report(context, ExperimentTable.build(lines, left_alone, *unlisted))
        continued = [
            item.experiment for item in outcomes.items if item.outcome is Outcome.CONTINUE_SEARCH
        ]
        outputs = describe_summaries(continued, summaries, self.log)
        if failures:
            context["ti"].xcom_push("return_value", outputs)
            raise AirflowException(
                f"{len(failures)} of {counted(len(restores), 'restore')} could not be committed. "
                + first_of(failures)
            )
        return outputs

    def _report(self, context: Context, table: ExperimentTable) -> None:
        """Log what became of all experiments, and push it."""
        self.log.info("%s", table.headline())
        for line in table.render().splitlines():
            self.log.info("%s", line)
        context["ti"].xcom_push(EXPERIMENTS_KEY, table.to_xcom())
        context["ti"].xcom_push(TOTALS_KEY, table.totals().to_xcom())

    def _try_to_commit(
        self, hook: ExperimentStorageHook, item: OutcomeXCom
    ) -> CommitSummary | TuneRestoreError | None:
        """Commit one restore; its error is returned and stops no other restore."""
        try:
            return self._commit(hook.open(item.experiment), item)
        except TuneRestoreError as error:
            self.log.error("%s: %s", item.experiment, printable(str(error), NOTE_LENGTH))  # noqa: TRY400  the message is enough
            return error
        except Exception as error:  # noqa: BLE001  reported, and it fails the task at its end
            return report_unexpected(item.experiment, error)

    def _commit(self, store: ObjectStore, item: OutcomeXCom) -> CommitSummary | None:
        """Commit one restore; release the lease of one without a plan."""
        restore_id = str(item.restore_id)
        try:
            return commit_restore(store, restore_id)
        except KeyNotFoundError as error:
            if not error.key.endswith("plan.json"):
                raise
        release_unstarted(store, restore_id)
        self.log.info("%s: the restore was never started.", item.experiment)
        return None


def _uncommitted(item: OutcomeXCom, outcome: str, reason: str) -> ExperimentLine:
    return replace(ExperimentLine.of_plan(item), outcome=outcome, reason=reason)
