"""Ends a recovery, and fails it if an experiment needs a person."""

from typing import Any

from airflow.sdk import BaseOperator, Context, TriggerRule

from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.totals import Totals
from airflow_tune_restore.operators.xcom import Outcome, resolve_xcom
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, first_of, printable
from airflow_tune_restore.version_compat import AirflowFailException


class CheckRestoresOperator(BaseOperator):
    """Fails if the plan refused an experiment, after all other experiments were restored.

    The plan itself does not fail for it, because then no experiment would be restored. An experiment that
    was made with another trainable, or that was left alone, is not a failure. Let this task follow the
    trials, the commit and the continued search, as in `TuneRestoreTaskGroup`: by its trigger rule
    `none_failed` it is upstream_failed if one of them failed.

    Args:
        outcomes: `plan.output["outcomes"]` of a `BuildRestorePlanOperator`. Read when the task runs: a
            plan that never ran pushes nothing.
        totals: `commit.output["totals"]` of a `CommitRestoreOperator`, for one line in the log. Read when
            the task runs.
    """

    ui_color = "#e8f4e6"

    def __init__(
        self,
        *,
        outcomes: Any,
        totals: Any = None,
        trigger_rule: TriggerRule | str = TriggerRule.NONE_FAILED,
        **kwargs: Any,
    ) -> None:
        super().__init__(trigger_rule=trigger_rule, **kwargs)
        self.outcomes = outcomes
        self.totals = totals

    def execute(self, context: Context) -> None:
        """Log the numbers. Fail with the names of the experiments and the reasons."""
        with as_airflow_errors():
            outcomes = OutcomeList.resolve(self.outcomes, context)
            found = resolve_xcom(self.totals, context)
            totals = Totals.parse(found)
        if found is not None:
            self.log.info("%s", totals.describe())
        refused = [item for item in outcomes.items if item.is_refused]
        not_listed = outcomes.not_listed[Outcome.REFUSED]
        if not (refused or not_listed):
            return
        reasons = [f"{each.experiment}: {printable(each.reason, NOTE_LENGTH)}" for each in refused]
        for reason in reasons:
            self.log.error("%s", reason)
        if not_listed:
            self.log.error("… and %d more, which the log of the plan task has.", not_listed)
        count = counted(len(refused) + not_listed, "experiment")
        raise AirflowFailException(
            f"Not restored, and a person is needed: {count}. When the cause is gone, start a new DAG "
            f"run. {first_of(reasons)}"
        )
