"""DAG runs: which one takes a lease, whether the one that holds it has ended, and how one is started."""

import json
import shlex
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import (
    DagRunStateResult,
    ErrorResponse,
    GetDagRunState,
    TriggerDagRun,
)
from pydantic import ValidationError

from airflow_tune_restore.protocol.lease_objects import (
    DagRunId,
    HolderStatus,
    LeaseStatus,
    is_airflow_id,
)
from airflow_tune_restore.protocol.lease_watch import OnWait, Watch
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.version_compat import conf, request_dag_run

if TYPE_CHECKING:
    from airflow.sdk.execution_time.comms import DagRunResult, GetDagRun
    from airflow.sdk.types import Logger

ENDED = ("success", "failed")
"""The states of Airflow's `DagRunState` in which nothing of a DAG run is started any more."""

_DAG_RUN_STATE = {"type": "DagRunStateResult", "state": "running"}
"""A reply about DAG runs: only the supervisor of a task can decode it (task-sdk 1.3)."""

_CONF_LENGTH = 2000
"""Characters of a conf that the command in a log has."""

_NOT_FOUND = 404
UNKNOWN_DAG_RUN = "This Airflow has no such DAG run"
_one_at_a_time = threading.Lock()


def name_dag_run(context: Context) -> str:
    """Return the holder of a lease, to be read by people: the DAG run, and the user who triggered it."""
    ti, dag_run = context["ti"], context.get("dag_run")
    user = dag_run.triggering_user_name if dag_run is not None else None
    return f"DAG {ti.dag_id}, run {ti.run_id}" + (f", triggered by {user}" if user else "")


def identify_dag_run(context: Context) -> DagRunId | None:
    """Return the DAG run of a task for its lease; None if other DAG runs cannot ask about its ids."""
    dag_run = context.get("dag_run")
    if dag_run is None or dag_run.start_date is None:
        return None
    if not (is_airflow_id(dag_run.dag_id) and is_airflow_id(dag_run.run_id)):
        return None
    return DagRunId(
        dag_id=dag_run.dag_id,
        run_id=dag_run.run_id,
        started_at=dag_run.start_date.isoformat(),
    )


class Holder(TypedDict):
    """The arguments of `start_restore` that are about its lease."""

    holder: str
    dag_run: DagRunId | None
    on_wait: OnWait


def hold_as_dag_run(context: Context, log: "Logger") -> Holder:
    """Return how the DAG run of a task holds a lease, and logs that it waits for one."""
    return {
        "holder": name_dag_run(context),
        "dag_run": identify_dag_run(context),
        "on_wait": log_waits(log),
    }


def log_waits(log: "Logger") -> OnWait:
    """Return a function that logs that a silent holder is watched, once per wait."""

    def log_begin(watch: Watch) -> Callable[[float], None]:
        log.warning("%s", watch.describe())
        return lambda _left: None

    return log_begin


def ask_dag_run(status: LeaseStatus) -> HolderStatus:
    """Ask Airflow whether the DAG run that holds a lease has ended. Only a task on a worker can ask.

    Even if it has ended, its runners may live, so the caller still watches the holder.
    """
    claimed = status.lease.dag_run
    if claimed is None:
        return HolderStatus(has_ended=False)
    request = request_dag_run(claimed.dag_id, claimed.run_id)
    if request is None:
        return HolderStatus(
            has_ended=False, found="Airflow before 3.2 does not show when its DAG run started"
        )
    try:
        found = _fetch(request)
    except AirflowRuntimeError as error:
        return HolderStatus(has_ended=False, found=_why_unknown(error))
    return judge_dag_run(claimed, found.start_date, found.state.value)


def judge_dag_run(claimed: DagRunId, start: datetime | None, state: str) -> HolderStatus:
    """Return whether the DAG run of a claim has ended, by what Airflow says of the one with its ids.

    Anyone who can write to the experiment can put any DAG run into a claim. An answer counts only if the
    DAG run started at the time in the claim: another deployment may have a DAG run of the same ids. A
    DAG run that was deleted or cleared since, or that Airflow does not know, is not known to have ended.
    """
    if start is None or start.isoformat() != claimed.started_at:
        return HolderStatus(
            has_ended=False,
            found="This Airflow has a DAG run of that name that started at another time",
        )
    url = conf.get("api", "base_url", fallback="http://localhost:8080/").rstrip("/")
    where = f"{url}/dags/{claimed.dag_id}/runs/{quote(claimed.run_id)}"
    return HolderStatus(has_ended=state in ENDED, found=f"Its DAG run is {state}: {where}")


def _fetch(request: "GetDagRun") -> "DagRunResult":
    """Read a DAG run (AirflowRuntimeError if it does not exist, or the API server does not answer).

    `RuntimeTaskInstance.get_dagrun_state` returns no more than the state (Airflow 3.3).
    """
    # experiments are prepared in threads; while `dag.test()` answers a request, the name does not exist
    with _one_at_a_time:
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        found = SUPERVISOR_COMMS.send(request)
    if TYPE_CHECKING:
        assert isinstance(found, DagRunResult)
    return found


def _why_unknown(error: AirflowRuntimeError) -> str:
    detail = error.error.detail or {}
    if detail.get("status_code") == _NOT_FOUND:
        return UNKNOWN_DAG_RUN
    return f"Airflow could not be asked about its DAG run: {printable(str(error), 200)}"


def can_start_dag_runs() -> bool:
    """Whether this is the process of a task: the supervisor of a DAG processor would never answer."""
    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if comms is None:
        return False
    try:
        comms.body_decoder.validate_python(_DAG_RUN_STATE)
    except ValidationError:
        return False
    return True


def start_dag_run(dag_id: str, run_id: str, conf: Mapping[str, Any]) -> str:
    """Start a DAG run, in the process of a task. Return why not: it exists already; "" if it started."""
    request = TriggerDagRun(dag_id=dag_id, run_id=run_id, conf=dict(conf))
    with _one_at_a_time:
        answer = task_runner.SUPERVISOR_COMMS.send(request)
    return str(answer.error.value) if isinstance(answer, ErrorResponse) else ""


def trigger_command(dag_run: Any) -> str:
    """Return the command that starts a DAG run with the same conf."""
    command = f"airflow dags trigger {shlex.quote(dag_run.dag_id)}"
    text = json.dumps(dag_run.conf or {}, default=str)
    if not dag_run.conf:
        return command
    if len(text) > _CONF_LENGTH:
        return f"{command} --conf, with the conf of this DAG run"
    return f"{command} --conf {shlex.quote(text)}"


def has_ended(dag_id: str, run_id: str) -> bool:
    """Whether a DAG run that exists has ended, in the process of a task."""
    request = GetDagRunState(dag_id=dag_id, run_id=run_id)
    with _one_at_a_time:
        answer = task_runner.SUPERVISOR_COMMS.send(request)
    return isinstance(answer, DagRunStateResult) and answer.state in ENDED
