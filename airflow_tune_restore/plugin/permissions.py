"""The permissions of the page. Every route declares one of these, and a test walks all routes.

Reading needs the permission to read runs of the recovery DAG, and acting that to start runs of it: who
may run that DAG may do by hand what it does. Airflow's auth manager decides, with the team of the DAG.
"""

from typing import Annotated, Literal

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, HTTPException, Query, Request

from airflow_tune_restore.plugin.places import Places
from airflow_tune_restore.protocol.printable import printable

FORBIDDEN = 403
_IDS = 250
"""Characters of the id of a DAG, a run or a task in Airflow."""


def places_of(request: Request) -> Places:
    """Return the configured places, which the app holds."""
    places: Places = request.app.state.places
    return places


def may_read(request: Request, user: GetUserDep) -> None:
    """Let a user pass who may read runs of the recovery DAG."""
    dag_id = places_of(request).settings.recovery_dag_id
    _require(request, user, "GET", DagAccessEntity.RUN, dag_id, "read runs")


def may_act(request: Request, user: GetUserDep) -> None:
    """Let a user pass who may start runs of the recovery DAG."""
    dag_id = places_of(request).settings.recovery_dag_id
    _require(request, user, "POST", DagAccessEntity.RUN, dag_id, "start runs")


def may_read_xcoms(
    request: Request, user: GetUserDep, dag_id: Annotated[str, Query(max_length=_IDS, min_length=1)]
) -> None:
    """Let a user pass who may also read the XComs of the DAG that is asked for."""
    may_read(request, user)
    _require(request, user, "GET", DagAccessEntity.XCOM, dag_id, "read XComs")


def can_act(request: Request, user: BaseUser) -> bool:
    """Whether a user may act, for what the page shows. Each action asks again."""
    try:
        may_act(request, user)
    except HTTPException:
        return False
    return True


def _require(
    request: Request,
    user: BaseUser,
    method: Literal["GET", "POST"],
    entity: DagAccessEntity,
    dag_id: str,
    what: str,
) -> None:
    """Ask Airflow for a permission (HTTPException 403 with a sentence for the user without it)."""
    try:
        requires_access_dag(method, entity, dag_id)(request, user)
    except HTTPException as error:
        if error.status_code != FORBIDDEN:
            raise
        sentence = f"This needs the permission to {what} of the DAG {printable(dag_id)}. Ask an "
        raise HTTPException(FORBIDDEN, f"{sentence}administrator of Airflow for it.") from None


Reading = Depends(may_read)
Acting = Depends(may_act)
ReadingXComs = Depends(may_read_xcoms)
CHECKS = frozenset({may_read, may_act, may_read_xcoms})
"""Each route depends on one of these."""
