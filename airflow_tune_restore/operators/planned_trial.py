"""The base of the operators that run one trial of a plan: it finds the trial behind a short reference."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context, XComArg

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.retry_policy import RetryPolicyOperator
from airflow_tune_restore.operators.trial_items import find_trial, is_reference
from airflow_tune_restore.operators.xcom import OUTCOMES_KEY, TrialXCom

if TYPE_CHECKING:
    from jinja2 import Environment


class PlannedTrialOperator(RetryPolicyOperator):
    """Base of the operators whose `trial` is one item of `BuildRestorePlanOperator`'s output.

    From when its templates are rendered, `trial` is a whole item, whichever form the plan returned.
    """

    trial: Any

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: "Environment",
        seen_oids: set[int],
    ) -> None:
        """Render the templates, then find the trial. Airflow calls no other method for a mapped task."""
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
        if parent is self and is_reference(self.trial):
            with as_airflow_errors():
                self.trial = self._find_trial(context).to_xcom()

    def _find_trial(self, context: Context) -> TrialXCom:
        upstream = self.get_direct_relatives(upstream=True)
        plans = [task for task in upstream if isinstance(task, BuildRestorePlanOperator)]
        if len(plans) != 1:
            raise InvalidInputError(
                f"trial={self.trial!r} is a reference: whole items would be too large for an XCom. The "
                "task reads the rest from its plan, so one BuildRestorePlanOperator must be directly "
                f"upstream, and {len(plans)} are. Expand over plan.output itself, or restore fewer "
                "experiments at a time."
            )
        outcomes = OutcomeList.resolve(XComArg(plans[0], key=OUTCOMES_KEY), context)
        return find_trial(self.trial, outcomes)
