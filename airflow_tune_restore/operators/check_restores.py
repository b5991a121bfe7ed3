"""Ends a recovery, and fails it if the plan lost an experiment."""

from typing import Any

from airflow.sdk import BaseOperator, Context, TriggerRule
from airflow.sdk.exceptions import AirflowFailException

from airflow_tune_restore.operators.xcom import resolve_list
from airflow_tune_restore.protocol.printable import counted


class CheckRestoresOperator(BaseOperator):
    """Fails if the plan met an unexpected error, after all other experiments were restored.

    The plan itself does not fail for it, because then no experiment would be restored. Let this task
    follow the trials, the commit and the continued search, as in `TuneRestoreTaskGroup`: by its trigger
    rule `none_failed` it is upstream_failed if one of them failed.

    Args:
        unexpected: `plan.output["unexpected"]` of a `BuildRestorePlanOperator`: one line per experiment.
            Read when the task runs: a skipped plan pushes nothing.
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
        """Fail with the names of the experiments."""
        if lines := resolve_list(self.unexpected, context):
            raise AirflowFailException(
                f"Not restored because of an unexpected error: {counted(len(lines), 'experiment')}. The "
                "log of the plan has the traceback. " + "; ".join(map(str, lines))
            )
