"""Experiments, read only: the list below a prefix, and all of one experiment."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from airflow_tune_restore.plugin.answers import answer_experiment
from airflow_tune_restore.plugin.kept_lists import KeptLists
from airflow_tune_restore.plugin.permissions import Reading, places_of
from airflow_tune_restore.plugin.places import Place, Places
from airflow_tune_restore.views.plan import PlanSwitches, view_plan

router = APIRouter(prefix="/api")


def new_lists(places: Places) -> KeptLists[Any]:
    """Return where the lists of the prefixes are kept."""
    return KeptLists(places.settings.cache_seconds, places.monotonic)


def lists_of(request: Request) -> KeptLists[Any]:
    """Return where the lists of the prefixes are kept, which the app holds."""
    lists: KeptLists[Any] = request.app.state.lists
    return lists


def place_of(
    request: Request,
    prefix: Annotated[str, Query(max_length=1000)],
    path: Annotated[str, Query(max_length=10_000)] = "",
) -> Place:
    """Return the experiment that a request names."""
    return places_of(request).place(prefix, path)


Named = Annotated[Place, Depends(place_of)]
Switches = Annotated[PlanSwitches, Depends()]


@router.get("/experiment/plan", dependencies=[Reading])
async def read_plan(request: Request, place: Named, switches: Switches) -> Response:
    """Return what a restore would do with these switches."""
    return await answer_experiment(
        places_of(request), place, lambda store: view_plan(store, switches)
    )
