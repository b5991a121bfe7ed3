"""An Airflow with users, a prefix of experiments on S3, and a browser that is logged in."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import ROOT
from tests.support.airflow.standalone import Airflow, airflow
from tests.support.experiments.sweeps import copy_sweep
from tests.support.storage.servers import Server, s3_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PREFIX, LABEL = "sweeps", "team sweeps"
PAGE = "page"
"""The path that the page of the Airflow of all tests looks at, in its bucket."""

USERS = {"boss": "admin", "reader": "viewer", "oncall": "user"}
"""Names, and their roles in SimpleAuthManager: a `user` may run DAGs, a `viewer` may not."""

RECOVERY = "nightly_recovery"


@dataclass(frozen=True)
class Site:
    """What a browser looks at.

    Args:
        base: Airflow's base URL, with its path.
    """

    airflow: Airflow
    server: Server
    base: str

    def log_in(self, browser: "Browser", name: str, **context: object) -> "Page":
        """Return a page of a user who has logged in by the form."""
        page = browser.new_context(locale="en-US", **context).new_page()
        page.goto(f"{self.base}/auth/login")
        page.fill("input[name=username]", name)
        page.fill("input[name=password]", password_of(name))
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/auth/" not in url)
        return page


def password_of(name: str) -> str:
    """Return the password of one of the users."""
    return f"{name}-secret"


@contextlib.contextmanager
def site(home: Path, *, python: str = sys.executable, path: str = "") -> Iterator[Site]:
    """Run it all; the credentials of the store are in an Airflow connection and nowhere else."""
    passwords = home / "passwords.json"
    home.mkdir(parents=True, exist_ok=True)
    passwords.write_text(json.dumps({name: password_of(name) for name in USERS}))
    with s3_server() as server:
        prefixes = {LABEL: f"s3://seaweed@{server.bucket}/{PREFIX}"}
        starting = airflow(
            home,
            python=python,
            path=path,
            admin=("boss", password_of("boss")),
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=",".join(f"{u}:{r}" for u, r in USERS.items()),
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
            AIRFLOW__TUNE_RESTORE__PREFIXES=json.dumps(prefixes),
            AIRFLOW__TUNE_RESTORE__RECOVERY_DAG_ID=RECOVERY,
            AIRFLOW_CONN_SEAWEED=server.airflow_connection,
            PYTHONPATH=str(ROOT),
            RAY_AUTH_MODE="disabled",
        )
        with starting as running:
            yield Site(running, server, running.base)


def upload_sweep(server: Server, kind: str, scratch: Path) -> str:
    """Put a sweep that really failed below the prefix, and return its path there."""
    server.upload(copy_sweep(kind, scratch / kind), f"{PREFIX}/{kind}")
    return kind
