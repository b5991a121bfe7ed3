"""Experiments, read only: the list below a prefix, and all of one experiment."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response

from airflow_tune_restore.experiments.root import Root
from airflow_tune_restore.plugin.answers import answer, answer_experiment
from airflow_tune_restore.plugin.lease_holders import ask_database
from airflow_tune_restore.plugin.permissions import Reading, places_of
from airflow_tune_restore.plugin.places import NOT_FOUND, Place
from airflow_tune_restore.protocol.names import is_key_name
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.views.curves import show_curves
from airflow_tune_restore.views.experiment import show_column, show_experiment
from airflow_tune_restore.views.plan import PlanSwitches, view_plan
from airflow_tune_restore.views.restore import view_restore
from airflow_tune_restore.views.restores import view_restores
from airflow_tune_restore.views.shown import ShownExperiment, ShownExperiments
from airflow_tune_restore.views.trial import show_trial

if TYPE_CHECKING:
    from airflow_tune_restore.plugin.experiment_lists import ExperimentLists
    from airflow_tune_restore.plugin.watched_restores import WatchedRestores
    from airflow_tune_restore.views.seams import Seams

router = APIRouter(prefix="/api")

_NAME, _PATH, _CURVES = 1000, 10_000, 50


def place_of(
    request: Request,
    prefix: Annotated[str, Query(max_length=_NAME)],
    path: Annotated[str, Query(max_length=_PATH)] = "",
) -> Place:
    """Return the experiment that a request names."""
    return places_of(request).place(prefix, path)


def restore_of(restore_id: Annotated[str, Query(max_length=_NAME)]) -> str:
    """Return the restore that a request names: its id becomes a part of keys."""
    if not is_key_name(restore_id):
        raise HTTPException(NOT_FOUND, f"{printable(restore_id)!r} is not the id of a restore.")
    return restore_id


Named = Annotated[Place, Depends(place_of)]
Name = Annotated[str, Query(min_length=1, max_length=_NAME)]
Restore = Annotated[str, Depends(restore_of)]
Switches = Annotated[PlanSwitches, Depends()]


@router.get("/experiments", dependencies=[Reading])
async def read_experiments(
    request: Request,
    prefix: Annotated[str, Query(max_length=_NAME)],
    fresh: bool = False,  # noqa: FBT001, FBT002  a parameter of the URL
) -> Response:
    """Return the experiments below a prefix; a fresh list was begun after the request."""
    places = places_of(request)
    lists: ExperimentLists = request.app.state.lists
    address = places.address(prefix)
    return await answer(places, prefix, lambda: lists.read(prefix, fresh=fresh), address=address)


@router.get("/experiment", dependencies=[Reading])
async def read_experiment(request: Request, place: Named) -> Response:
    """Return an experiment: its health, and its trials column by column."""
    stale_after = timedelta(seconds=places_of(request).settings.stale_after)

    def show(store: ObjectStore, root: Root, shown: ShownExperiment) -> dict[str, Any]:
        return show_experiment(
            store,
            root,
            shown,
            path=place.path,
            address=printable(str(place.address), _PATH),
            stale_after=stale_after,
            ask_holder=ask_database,
        )

    return await _answer_shown(request, place, show)


@router.get("/experiment/column", dependencies=[Reading])
async def read_column(request: Request, place: Named, name: Name) -> Response:
    """Return one more column of the trials."""
    return await _answer_shown(
        request, place, lambda store, _root, shown: show_column(store, shown, name)
    )


@router.get("/experiment/trial", dependencies=[Reading])
async def read_trial(request: Request, place: Named, trial: Name) -> Response:
    """Return one trial in full."""
    return await _answer_shown(
        request, place, lambda store, _root, shown: show_trial(store, shown, trial)
    )


@router.get("/experiment/curves", dependencies=[Reading])
async def read_curves(
    request: Request,
    place: Named,
    trial: Annotated[list[str], Query(min_length=1, max_length=_CURVES)],
    metric: Annotated[str, Query(max_length=_NAME)] = "",
) -> Response:
    """Return the curves of a metric for some trials, with the seams of restores."""
    seams: Seams = request.app.state.seams

    def show(store: ObjectStore, _root: Root, shown: ShownExperiment) -> dict[str, Any]:
        address = str(place.address)
        return show_curves(store, shown, seams, metric=metric, trial_ids=trial, address=address)

    return await _answer_shown(request, place, show)


@router.get("/experiment/plan", dependencies=[Reading])
async def read_plan(request: Request, place: Named, switches: Switches) -> Response:
    """Return what a restore would do with these switches."""
    return await answer_experiment(
        places_of(request),
        place,
        lambda store: view_plan(
            store, switches, ask_holder=ask_database, named=place.address.named_in
        ),
    )


@router.get("/experiment/restores", dependencies=[Reading])
async def read_restores(request: Request, place: Named) -> Response:
    """Return the restores of an experiment, and what an undo would do."""
    return await answer_experiment(
        places_of(request), place, lambda store: view_restores(store, ask_holder=ask_database)
    )


@router.get("/experiment/restore", dependencies=[Reading])
async def read_restore(request: Request, place: Named, restore_id: Restore) -> Response:
    """Return one restore, before and after."""
    return await answer_experiment(
        places_of(request), place, lambda store: view_restore(store, restore_id)
    )


@router.get("/experiment/progress", dependencies=[Reading])
async def read_progress(request: Request, place: Named, restore_id: Restore) -> Response:
    """Return where each trial of a restore is now."""
    watched: WatchedRestores = request.app.state.watched
    return await answer_experiment(
        places_of(request),
        place,
        lambda store: watched.look(store, place, restore_id, ask_database),
    )


async def _answer_shown(
    request: Request,
    place: Place,
    show: Callable[[ObjectStore, Root, ShownExperiment], Any],
) -> Response:
    """Answer from an experiment that is kept for as long as its root is the same."""
    kept: ShownExperiments = request.app.state.shown

    def function(store: ObjectStore) -> Any:
        shown, root = kept.read(store, str(place.address))
        return show(store, root, shown)

    return await answer_experiment(places_of(request), place, function)
