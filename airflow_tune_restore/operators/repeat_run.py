"""Starts the next run of a DAG, as long as trials wait and the last ones made progress."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn

from airflow.sdk import Context, TriggerRule

from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.checked_operator import CheckedOperator
from airflow_tune_restore.hooks.dag_runs import has_ended, start_dag_run, trigger_command
from airflow_tune_restore.hooks.window import Repetition, Window
from airflow_tune_restore.operators.totals import Totals
from airflow_tune_restore.operators.xcom import resolve_xcom
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.version_compat import AirflowSkipException

MOST_REPEATS = 1000
"""DAG runs that start each other: something is wrong if there are more."""


class RepeatRunOperator(CheckedOperator):
    """Starts the next run of its own DAG, with the same conf, if experiments or trials wait.

    It starts none if no trial that ran has finished or got further, and no sample was drawn: a cluster
    or a store may be broken, and each further DAG run would use up the attempts of other trials. Nor
    does it start one after the end of the window. Then it is skipped, and its log has what waits, the
    reason, and the command that starts a DAG run by hand. What runs is left to end.

    The id of the next DAG run has the time of the first one (`run_after`) and a number, so that a retry
    of this task starts no second one. In a DAG run that was cleared, it goes on behind those that have
    ended. With `max_active_runs=1`, the next DAG run is queued until this
    one has ended.

    Returns `{"run_id": …, "waiting_trials": …}`.

    Args:
        totals: `commit.output["totals"]` of a `CommitRestoreOperator`. Read when the task runs.
        searches: The output of a mapped `ContinueSearchOperator`: samples that it has drawn count as
            progress. Read when the task runs.
        until, max_duration: As in `BuildRestorePlanOperator`: no further DAG run is started after the end
            of the window. (templated)
    """

    template_fields = ("until", "max_duration")
    ui_color = "#e8f4e6"

    def __init__(
        self,
        *,
        totals: Any,
        searches: Any = None,
        until: str | None = None,
        max_duration: timedelta | float | str | None = None,
        trigger_rule: TriggerRule | str = TriggerRule.ALL_DONE,
        **kwargs: Any,
    ) -> None:
        super().__init__(trigger_rule=trigger_rule, **kwargs)
        self.totals = totals
        self.searches = searches
        self.until = until
        self.max_duration = max_duration
        self.check_literals(vars(self))

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the next DAG run, or log why none is started."""
        dag_run = context["dag_run"]
        with as_airflow_errors():
            window = Window.of(context, self.until, self.max_duration)
            found = resolve_xcom(self.totals, context)
            totals = Totals.parse(found)
        if found is None:
            self._skip(
                "No further DAG run is started: the commit has no totals. What waits is in the log of "
                "the plan task."
            )
        if not totals.waiting_experiments:
            self._skip("No further DAG run is started: nothing waits for it.")
        waits = totals.describe_waiting()
        row = Repetition.of_run(dag_run.run_id, dag_run.run_after)
        if window.is_over:
            over = f"the window of this DAG run ended at {window}"
            self._skip(_describe_stop(waits, over, dag_run))
        if not (totals.shows_progress or self._has_drawn(context)):
            why = (
                f"none of {counted(totals.trials_run, 'trial')} that ran has finished or got further. "
                "One that is started by hand takes others first"
            )
            self._skip(_describe_stop(waits, why, dag_run))
        run_id, how = _start_next(row, dag_run)
        if not run_id:
            self._skip(_describe_stop(waits, how, dag_run))
        self.log.info("%s. DAG run %s takes them. %s.", waits, run_id, how)
        return {"run_id": run_id, "waiting_trials": totals.waiting_trials}

    def _has_drawn(self, context: Context) -> bool:
        """Whether a continued search has drawn a sample."""
        found = resolve_xcom(self.searches, context)
        if found is None:
            return False
        # one XCom after the other: the first one that counts is enough
        return any(isinstance(each, Mapping) and bool(each.get("trials_run")) for each in found)

    def _skip(self, reason: str) -> NoReturn:
        """Skip the task; of the reason for that, Airflow's own line has nothing."""
        self.log.info("%s", reason)
        raise AirflowSkipException(reason)


def _start_next(row: Repetition, dag_run: Any) -> tuple[str, str]:
    """Start the next DAG run of a row. Return its id and how it was started; or "" and why not.

    One that has ended was started before this DAG run was cleared: it takes nothing any more.
    """
    while row.number < MOST_REPEATS:
        run_id = row.next_run_id()
        refusal = start_dag_run(dag_run.dag_id, run_id, dag_run.conf or {})
        if not refusal:
            return run_id, "It was started"
        if not has_ended(dag_run.dag_id, run_id):
            return run_id, f"It exists already ({refusal})"
        row = replace(row, number=row.number + 1)
    return "", f"{MOST_REPEATS} were started one after the other"


def _describe_stop(waits: str, why: str, dag_run: Any) -> str:
    """Return what the person on call needs, if the row of DAG runs stops before its end."""
    start = f"To start one: {trigger_command(dag_run)}"
    return f"{waits}, and no further DAG run is started: {why}. {start}"
