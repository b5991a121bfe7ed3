"""The page's app as people of all roles see it, without a server: Airflow's own auth manager decides.

The tables of Airflow that its checks read are in the private database of the test process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

HOSTILE = "<img src=x onerror=alert(1)>"
"""The name of an experiment, and the id of a trial, that a page must show as text."""

ROLES = ("viewer", "user", "op", "admin")


@contextmanager
def auth_manager() -> Iterator[Any]:
    """Yield a `SimpleAuthManager` that knows roles, and not admins alone."""
    before = dict(os.environ)
    os.environ["AIRFLOW__API_AUTH__JWT_SECRET"] = "a-secret-of-tests" * 8
    os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] = "False"
    from airflow.api_fastapi.app import create_auth_manager, purge_cached_app

    make_tables()
    try:
        yield create_auth_manager()
    finally:
        purge_cached_app()
        os.environ.clear()
        os.environ.update(before)


def make_tables() -> None:
    """Make the tables of Airflow that do not exist, without its migrations."""
    from airflow import models, settings
    from airflow.models.base import Base

    models.import_all_models()
    assert settings.engine is not None
    Base.metadata.create_all(settings.engine)


def token_of(manager: Any, role: str) -> str:
    """Return the token of a user with a role, which is also the name."""
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    token: str = manager.generate_jwt(SimpleAuthManagerUser(username=role, role=role))
    return token


def clients(app: Any, manager: Any) -> dict[str, Any]:
    """Return a client of an app for each role, and one that is not logged in as "anonymous"."""
    from starlette.testclient import TestClient

    found = {"anonymous": TestClient(app, base_url="http://localhost")}
    for role in ROLES:
        headers = {"Authorization": f"Bearer {token_of(manager, role)}"}
        found[role] = TestClient(app, base_url="http://localhost", headers=headers)
    return found
