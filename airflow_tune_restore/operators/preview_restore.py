"""The preview: what a plan would do, for a person to approve. It takes no lease and writes nothing."""

from dataclasses import replace
from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.operators import xcom
from airflow_tune_restore.operators.approval import (
    BODY_KEY,
    SUBJECT_KEY,
    ApprovedXCom,
    approved_to_xcom,
)
from airflow_tune_restore.operators.approval_page import ApprovalPage
from airflow_tune_restore.operators.prepare_restores import PrepareRestoresOperator
from airflow_tune_restore.restore.prepared import PrepareOptions


class PreviewRestoreOperator(PrepareRestoresOperator):
    """Prepares the same restores as a `BuildRestorePlanOperator`, and describes them to a person.

    It takes no lease and writes nothing to a store. Let Airflow's `ApprovalOperator` follow, or
    `airflow_tune_restore.operators.approve_restores.ApproveRestoresOperator`, and then a plan with
    `approved=preview.output`. `TuneRestoreTaskGroup` does so with `require_approval=True`.

    Returns one item per experiment to restore: `experiment`, and the `state` that was read, by name and
    `sha256`. The XComs `subject` and `body` are for the approval, in Markdown; the log has the body, too.
    The XCom `outcomes` is that of a plan.

    Without anything to restore the task is skipped, as a plan is. If all that could be restored needs a
    person first, it fails with the reasons.

    Args:
        **kwargs: Arguments of `PrepareRestoresOperator`: those of the plan.
    """

    def execute(self, context: Context) -> Any:
        """Prepare all restores, and return what is shown of them."""
        ti = context["ti"]
        with as_airflow_errors():
            task = self.parse(context)
        batch = task.batch
        try:
            with as_airflow_errors():
                prepared, by_name = self.prepare(context, task)
            self.record(batch, prepared, by_name)
        finally:
            ti.xcom_push(xcom.OUTCOMES_KEY, batch.to_xcom())
        batch.log(self.log)
        batch.stop_without_work(has_tries=ti.try_number <= ti.max_tries)
        batch.stop_unless(prepared)
        others = [each for each in batch.outcomes if each.experiment not in prepared]
        page = ApprovalPage.build(prepared, others)
        self.log.info("%s", page.subject)
        for line in filter(None, page.body.splitlines()):
            self.log.info("%s", line)
        ti.xcom_push(SUBJECT_KEY, page.subject)
        ti.xcom_push(BODY_KEY, page.body)
        return approved_to_xcom(ApprovedXCom.of(*item) for item in prepared.items())

    def _options(self) -> PrepareOptions:
        return replace(super()._options(), reads_course=True)
