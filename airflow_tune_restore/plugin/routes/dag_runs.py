"""The restores of a DAG run, by the XComs of its plan tasks: for the tabs on runs and task instances."""

from collections.abc import Sequence
from typing import Annotated, Any

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator
from sqlalchemy import select

from airflow_tune_restore.plugin.answers import as_json
from airflow_tune_restore.plugin.permissions import ReadingXComs, places_of
from airflow_tune_restore.plugin.run_restores import (
    OUTCOMES_KEY,
    RETURN_KEY,
    PlanTask,
    describe_run,
    nearest_plan,
)

router = APIRouter(prefix="/api/dag_run")

Id = Annotated[str, Query(max_length=250)]
"""The id of a DAG, a run or a task, which Airflow keeps as short."""

_UNMAPPED = "{MAP_INDEX}"
"""Airflow leaves this in the address of the tab on a task that is not mapped."""

_MOST = 2**31 - 1
"""The largest map index that Airflow's database can hold."""

MapIndex = Annotated[
    int,
    Query(ge=-1, le=_MOST),
    BeforeValidator(lambda text: -1 if text == _UNMAPPED else text),
]

_PLANS = 50
"""Plan tasks of one run that are read."""

_OF_A_TRIAL = "RestoreTrial"
"""Begins the names of the operators that restore one trial of the list that the plan returned."""


@router.get("", dependencies=[ReadingXComs])
def read_dag_run(  # noqa: PLR0913  the parameters of a task instance
    request: Request,
    session: SessionDep,
    dag_id: Id,
    run_id: Id,
    task_id: Id = "",
    map_index: MapIndex = -1,
) -> Response:
    """Return the restores of a run; for a task of one trial, that trial and its restore."""
    plans = _read_plans(session, dag_id, run_id)
    if task_id:
        plans = nearest_plan(plans, task_id)
    item = None
    operator = _operator(session, dag_id, run_id, task_id, map_index) if map_index >= 0 else ""
    if plans and operator.startswith(_OF_A_TRIAL):
        listed = _read_xcoms(session, dag_id, run_id, RETURN_KEY, [plans[0].task_id])
        item = (listed[0].value, map_index) if listed else None
    return as_json(describe_run(places_of(request), plans, item))


def _read_plans(session: Any, dag_id: str, run_id: str) -> list[PlanTask]:
    return _read_xcoms(session, dag_id, run_id, OUTCOMES_KEY, [])


def _read_xcoms(
    session: Any, dag_id: str, run_id: str, key: str, task_ids: Sequence[str]
) -> list[PlanTask]:
    """Read XComs as they are in the database: JSON, from which no class is made."""
    wanted = select(XComModel.task_id, XComModel.value).where(
        XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key == key
    )
    if task_ids:
        wanted = wanted.where(XComModel.task_id.in_(task_ids))
    return [PlanTask(*row) for row in session.execute(wanted.limit(_PLANS))]


def _operator(session: Any, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the class of the operator of a task instance; "" if there is none."""
    found = session.scalar(
        select(TaskInstance.operator).where(
            TaskInstance.dag_id == dag_id,
            TaskInstance.run_id == run_id,
            TaskInstance.task_id == task_id,
            TaskInstance.map_index == map_index,
        )
    )
    return str(found or "")
