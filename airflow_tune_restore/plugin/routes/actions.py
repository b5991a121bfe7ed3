"""Release and undo. "Restore now" needs no route: the browser starts the DAG through Airflow's API."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from airflow_tune_restore.plugin.answers import ACT_SECONDS, answer_experiment
from airflow_tune_restore.plugin.lease_holders import ask_database
from airflow_tune_restore.plugin.permissions import Acting, places_of
from airflow_tune_restore.plugin.places import Place
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.release import describe_released, release_trials
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.plugin.experiment_lists import ExperimentLists

_UNSUPPORTED_MEDIA = 415
_NAME, _PATH, _HOLDER = 1000, 10_000, 100


def takes_json(request: Request) -> None:
    """Refuse a body that is not declared as JSON: a form of another site can send it, with the cookie."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(_UNSUPPORTED_MEDIA, "Send the body as application/json.")


router = APIRouter(prefix="/api/experiment")
_ACTION = [Acting, Depends(takes_json)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prefix: Annotated[str, Field(max_length=_NAME)]
    path: Annotated[str, Field(max_length=_PATH)]


class ReleaseBody(_Body):
    """Which trial is released from quarantine."""

    trial: Annotated[str, Field(min_length=1, max_length=_NAME)]


class UndoBody(_Body):
    """Which commit is undone: the last one, as the page showed it."""

    restore_id: Annotated[str, Field(min_length=1, max_length=_NAME)]


@router.post("/release", dependencies=_ACTION)
async def release(request: Request, body: ReleaseBody, user: GetUserDep) -> Response:
    """Release a trial from quarantine."""

    def act(store: ObjectStore, place: Place) -> str:
        released = release_trials(
            store, [body.trial], holder=_holder(user), ask_holder=ask_database
        )
        return describe_released(
            printable(body.trial), printable(str(place.address)), released[body.trial]
        )

    return await _act(request, body, act)


@router.post("/undo", dependencies=_ACTION)
async def undo(request: Request, body: UndoBody, user: GetUserDep) -> Response:
    """Undo the last commit, if it is still that of the restore that is named."""

    def act(store: ObjectStore, place: Place) -> str:
        undone = undo_commit(
            store, holder=_holder(user), restore_id=body.restore_id, ask_holder=ask_database
        )
        return undone.describe(str(place.address))

    return await _act(request, body, act)


async def _act(request: Request, body: _Body, act: Callable[[ObjectStore, Place], str]) -> Response:
    """Act on an experiment, and have the list that it is in made anew."""
    places = places_of(request)
    place = places.place(body.prefix, body.path)
    lists: ExperimentLists = request.app.state.lists

    def function(store: ObjectStore) -> dict[str, str]:
        try:
            return {"message": act(store, place)}
        finally:
            lists.forget(place.prefix)

    return await answer_experiment(places, place, function, seconds=ACT_SECONDS)


def _holder(user: BaseUser) -> str:
    """Return who takes the lease, for people."""
    return f"{printable(user.get_name(), _HOLDER)} (page)"
