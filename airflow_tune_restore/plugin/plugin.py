"""Puts the page into Airflow's UI. Every process of Airflow imports this module, so it is light.

An api-server is told apart from other processes by what it does: only it reads `external_views`, and only
it serves a request of the app. Its command line does not tell, with workers, gunicorn or `--dev`.
"""

import asyncio
import importlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    App = Callable[
        [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
        Awaitable[None],
    ]

URL_PREFIX = "/tune_restore"
"""The path of the page below that of Airflow."""


class LazyApp:
    """The ASGI application of the page, which is imported when its first request comes."""

    def __init__(self) -> None:
        self._app: App | None = None

    async def __call__(
        self,
        scope: "Message",
        receive: "Callable[[], Awaitable[Message]]",
        send: "Callable[[Message], Awaitable[None]]",
    ) -> None:
        """Pass a request on."""
        if self._app is None:
            # in a thread: it takes a second, and the api-server has other requests to answer
            module = await asyncio.to_thread(
                importlib.import_module, "airflow_tune_restore.plugin.app"
            )
            self._app = self._app or module.create_app()
        await self._app(scope, receive, send)


def external_views() -> list[dict[str, Any]]:
    """Return the menu item and the tabs. Each address has the path of `[api] base_url` in front."""
    from airflow_tune_restore.plugin.settings import base_path

    page = f"{base_path()}{URL_PREFIX}/"
    icons = {
        "icon": f"{page}static/icon.svg",
        "icon_dark_mode": f"{page}static/icon-dark.svg",
    }
    run = f"{page}?view=dag_run&dag_id={{DAG_ID}}&run_id={{RUN_ID}}"
    views = [
        ("Tune experiments", "nav", "tune-experiments", f"{page}?view=experiments"),
        ("Tune restore", "dag_run", "tune-restore-run", run),
        (
            "Tune restore",
            "task_instance",
            "tune-restore-task",
            f"{run}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}",
        ),
    ]
    return [
        {
            "name": name,
            "href": href,
            "destination": destination,
            "url_route": route,
            **({"category": "browse"} if destination == "nav" else {}),
            **icons,
        }
        for name, destination, route, href in views
    ]


class TuneRestorePlugin(AirflowPlugin):
    """The page "Tune experiments", and its tabs on DAG runs and task instances."""

    name = "tune_restore"

    def __init__(self) -> None:
        self.fastapi_apps = [
            {"app": LazyApp(), "url_prefix": URL_PREFIX, "name": "Tune restore"},
        ]

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The menu item and the tabs. Only the api-server asks, and the CLI's `airflow plugins`."""
        return external_views()
