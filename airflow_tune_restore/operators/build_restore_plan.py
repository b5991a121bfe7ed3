"""The plan task: decides which trials of which experiments are restored, and takes the leases."""

from typing import Any

from airflow.sdk import Context

from airflow_tune_restore import arguments
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.dag_runs import hold_as_dag_run
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators import xcom
from airflow_tune_restore.operators.approval import Approval
from airflow_tune_restore.operators.next_step import describe_next_run
from airflow_tune_restore.operators.plan_log import log_plans
from airflow_tune_restore.operators.prepare_restores import (
    PrepareRestoresOperator,
    Task,
    wait_if_over,
)
from airflow_tune_restore.operators.trial_items import build_items
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary


class BuildRestorePlanOperator(PrepareRestoresOperator):
    """Plans restores, takes their leases, and returns one small item per trial to run.

    The items of all experiments are one flat list, for
    `RestoreTrialOperator.partial(…).expand(trial=plan.output)`; if they would be too large for an XCom,
    each is a short reference that this operator understands. What became of each experiment is under
    `plan.output["outcomes"]`, for `CommitRestoreOperator` and `CheckRestoresOperator`:

    * `restored`: its restore was started; `continue_search`: only its search is left to continue.
    * `left_alone`: it is running, another restore works on it, or nothing is to do.
    * `waiting`: this DAG run has no room for it, or its window has ended. The next one takes it.
    * `misfit`: it was made with another trainable.
    * `unknown`: no trainable is given for it.
    * `refused`: it cannot be restored before a person has done something.

    No experiment fails this task. If all are left alone, the task is skipped. If none was started because
    of an error that may pass, or if a restore of an earlier try cannot be read, the task is retried, and
    succeeds after its last try. A trainable or
    another argument that cannot be used fails the task at once. A retry continues its own restores.

    With `approved`, the yes of a person counts for what was shown to that person. If the state of any
    approved experiment has changed since, or if its plan is now another one, this task fails at once: it
    has taken no lease, and starts nothing.

    Args:
        approved: The output of a `PreviewRestoreOperator`: only these experiments are restored. Read when
            the task runs: of a preview that never ran, nothing is approved.
        previewed: `preview.output["outcomes"]`: what became of the other experiments in the preview, and
            so becomes of them here. Read when the task runs.
        **kwargs: Arguments of `PrepareRestoresOperator`.
    """

    def __init__(self, *, approved: Any = None, previewed: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approved = approved
        self.previewed = previewed

    def execute(self, context: Context) -> list[Any]:
        """Prepare all restores, refuse those that cannot run, then start the rest."""
        ti = context["ti"]
        with as_airflow_errors():
            task = self.parse(context)
        batch = task.batch
        try:
            with as_airflow_errors():
                started = self._start_all(context, task)
        finally:
            outcomes = batch.to_xcom()
            ti.xcom_push(xcom.OUTCOMES_KEY, outcomes)
        batch.log(self.log)
        log_plans(self.log, started)
        batch.stop_without_work(has_tries=ti.try_number <= ti.max_tries)
        trials = [item for address, plan in started for item in _items(address, plan)]
        return build_items(trials, outcomes)

    def _start_all(self, context: Context, task: Task) -> list[tuple[Address, RestorePlan]]:
        batch, approval = task.batch, None
        if self.approved is not None:
            approval = Approval.resolve(self.approved, self.previewed, context)
            approval.limit(batch)
        prepared, by_name = self.prepare(context, task)
        if approval is not None:
            approval.check(batch, prepared, task.hook.open, describe_next_run(context))
        to_start = self.record(batch, prepared, by_name)
        # pushed before, too: if this task dies half-way, the commit finds the leases that it took
        context["ti"].xcom_push(xcom.OUTCOMES_KEY, batch.to_xcom())
        return self._start(context, task, to_start)

    def _start(
        self,
        context: Context,
        task: Task,
        prepared: dict[str, PreparedRestore],
    ) -> list[tuple[Address, RestorePlan]]:
        batch = task.batch
        ttl_seconds, holder = self._ttl_seconds(), hold_as_dag_run(context, self.log)

        def start(text: str) -> tuple[RestorePlan | None, CommitSummary | None]:
            return start_restore(prepared[text], ttl_seconds=ttl_seconds, **holder)

        # the check of a trainable may have taken minutes
        prepared = {
            text: each
            for text, each in prepared.items()
            if not wait_if_over(batch, text, each, task.window, context)
        }
        started: list[tuple[Address, RestorePlan]] = []
        for text, (plan, settled) in batch.map(start, prepared):
            if settled is not None:
                self.log.info("A restore that died was committed first. %s", settled.headline())
            if plan is None:
                nothing = "a restore that died had left nothing more to do"
                batch.leave_alone(text, prepared[text].nothing_to_do or nothing)
            else:
                batch.describe_part(text, plan)
                started.append((batch.places[text], plan))
        return started

    def _ttl_seconds(self) -> float:
        return arguments.parse_lease_ttl("lease_ttl", self.lease_ttl).total_seconds()


def _items(address: Address, plan: RestorePlan) -> list[xcom.TrialXCom]:
    """Return one item per trial with a task, and one for the other trials and the samples of its run."""
    has_more = plan.task_count > len(plan.with_tasks)
    trials = (*plan.with_tasks, None) if has_more else plan.with_tasks
    return [xcom.TrialXCom.build(address, plan, trial) for trial in trials]
