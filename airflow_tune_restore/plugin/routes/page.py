"""The page itself: its files, and what it must know to begin."""

import hashlib
from importlib.resources import files
from typing import Any

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, HTTPException, Request, Response

from airflow_tune_restore.plugin.answers import as_json
from airflow_tune_restore.plugin.permissions import Reading, can_act, places_of
from airflow_tune_restore.plugin.places import NOT_FOUND
from airflow_tune_restore.plugin.settings import base_path
from airflow_tune_restore.protocol.printable import printable

router = APIRouter()

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_NOT_MODIFIED = 304
_PAGE = files("airflow_tune_restore.views") / "page"
_FILES = {
    entry.name: _TYPES[f".{entry.name.rpartition('.')[2]}"]
    for entry in _PAGE.iterdir()
    if entry.is_file() and f".{entry.name.rpartition('.')[2]}" in _TYPES
}
"""All files that can be asked for, and their types: a name that is not among them is never opened."""


@router.get("/", dependencies=[Reading])
def read_page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "index.html")


@router.get("/static/{name}", dependencies=[Reading])
def read_file(request: Request, name: str) -> Response:
    """Return a script, a style sheet or an icon of the page."""
    return _file(request, name)


@router.get("/api/settings", dependencies=[Reading])
def read_settings(request: Request, user: GetUserDep) -> Response:
    """Return what is configured, and what the user may do."""
    settings = places_of(request).settings
    value: dict[str, Any] = {
        "prefixes": list(settings.prefixes),
        "recovery_dag_id": settings.recovery_dag_id,
        "can_act": can_act(request, user),
        "user": printable(user.get_name()),
        "airflow": base_path(),
        "cache_seconds": settings.cache_seconds,
        "stale_after": settings.stale_after,
        "problem": settings.problem,
    }
    return as_json(value)


def _file(request: Request, name: str) -> Response:
    """Return a file. The browser keeps it, and asks each time whether it has changed."""
    if name not in _FILES:
        raise HTTPException(NOT_FOUND, "The page has no such file.")
    body = (_PAGE / name).read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=_NOT_MODIFIED, headers=headers)
    return Response(body, media_type=_FILES[name], headers=headers)
