"""The FastAPI application of the page: only an api-server imports it, with its first request."""

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders

from airflow_tune_restore.plugin import answers
from airflow_tune_restore.plugin.experiment_lists import ExperimentLists
from airflow_tune_restore.plugin.places import Places
from airflow_tune_restore.plugin.routes import actions, dag_runs, experiments, page
from airflow_tune_restore.plugin.settings import Settings, read_settings
from airflow_tune_restore.plugin.watched_restores import WatchedRestores
from airflow_tune_restore.views.seams import Seams
from airflow_tune_restore.views.shown import ShownExperiments

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


def create_app(settings: Settings | None = None, places: Places | None = None) -> FastAPI:
    """Return the application.

    Args:
        settings: What is configured; read from Airflow's configuration by default.
        places: Opens the experiments; those of the settings by default.
    """
    places = places or Places(settings or read_settings())
    # without the pages of the API's documentation, which would be open to everyone
    app = FastAPI(title="Tune restore", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.places = places
    app.state.lists = ExperimentLists(places)
    app.state.shown = ShownExperiments()
    app.state.seams = Seams()
    app.state.watched = WatchedRestores()
    app.add_exception_handler(RequestValidationError, answers.refuse_input)
    app.add_exception_handler(HTTPException, answers.refuse)
    app.add_middleware(_Headers)
    for routes in (page, experiments, actions, dag_runs):
        app.include_router(routes.router)
    return app


class _Headers:
    """Adds the headers that keep a browser from running, framing or keeping what it should not."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                headers: Any = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)
