"""Ends a recovery: it must not look well if an experiment was lost on the way."""

from typing import Any

from airflow.sdk import BaseOperator, Context, TriggerRule
from airflow.sdk.exceptions import AirflowFailException

from airflow_tune_restore.operators.xcom import resolve_list


class CheckRestoresOperator(BaseOperator):
    """Fails if the plan met an error that nobody foresaw, after all others were restored.

    The plan itself cannot fail for it: none of the other experiments would be restored then. Let this
    task follow trials, commit and continue_search, as in `TuneRestoreTaskGroup`: by its trigger rule,
    `none_failed`, it is upstream_failed when one of them failed.

    Args:
        unexpected: `plan.output["unexpected"]` of a `BuildRestorePlanOperator`: one line for each
            experiment. Read when the task runs: a plan that was skipped has none.
    """

    ui_color = "#e8f4e6"

    def __init__(
        self,
        *,
        unexpected: Any,
        trigger_rule: TriggerRule | str = TriggerRule.NONE_FAILED,
        **kwargs: Any,
    ) -> None:
        super().__init__(trigger_rule=trigger_rule, **kwargs)
        self.unexpected = unexpected

    def execute(self, context: Context) -> None:
        """Fail, and name the experiments."""
        if lines := resolve_list(self.unexpected, context):
            raise AirflowFailException(
                f"{len(lines)} experiments were not restored; the log of the plan has a traceback of "
                "each. " + "; ".join(map(str, lines))
            )
