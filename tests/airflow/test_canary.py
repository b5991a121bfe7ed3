"""A credential planted in a connection and in the environment is searched for wherever anything is left.

A whole restore under Airflow, on an S3 server that demands the credential, with real Ray: then every
object, every value of Airflow's database (XComs, rendered fields, serialized DAGs), every log and file of
Airflow and of Ray's sessions, and every command line seen meanwhile.
"""

import base64
import json
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_airflow_dags import register, run

from tests import (
    airflow_home,  # imported before any of Airflow
    servers,
)
from tests.support.experiments.sweeps import fail_sweep

# made here and now: Airflow keeps the source of a DAG's file, which is this one
ENVIRONMENT, OTHER, BACKEND, EXTRA = (f"canary-{secrets.token_hex(12)}" for _ in range(4))
PLANTED = {
    "AZURE_STORAGE_ACCOUNT_KEY": ENVIRONMENT,
    "AIRFLOW_CONN_UNRELATED": f"http://user:{OTHER}@127.0.0.1",
    "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"token": BACKEND}),
}


def disguises(secret: str) -> set[bytes]:
    """Return a secret as it may stand in a file: as it is, in hex (twice), in base64, in UTF-16."""
    plain = secret.encode()
    hexed = plain.hex().encode()
    found = {
        plain,
        hexed,
        hexed.upper(),
        hexed.hex().encode(),
        secret.encode("utf-16-le"),
        plain[::-1],
    }
    for body in (plain, hexed):
        for shift in range(3):  # base64 looks different at each place in a group of three
            whole = base64.b64encode(b"\0" * shift + body)
            start = -(-shift * 4 // 3)
            found.add(whole[start + (1 if shift else 0) : -4])
    return found


def leaks(where: str, body: bytes, planted: tuple[str, ...]) -> list[str]:
    return [
        f"{secret[:12]}… in {where}"
        for secret in planted
        if any(disguise in body for disguise in disguises(secret))
    ]


@pytest.mark.parametrize("shift", range(6))
def test_the_search_finds_what_is_disguised(shift):
    secret = "canary-of-the-environment-7f3a"

    def hexed(body: bytes) -> bytes:
        return body.hex().encode()

    for wrap in (bytes, hexed, base64.b64encode, lambda body: base64.b64encode(hexed(body))):
        body = b"#" * 7 + wrap(b"x" * shift + secret.encode() + b"y" * shift) + b"#"
        assert leaks("here", body, (secret,)), wrap
    assert not leaks("here", secret[:-1].encode(), (secret,))


class CommandLines(threading.Thread):
    """Reads the command line and the title of every process, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "comm"):
                    try:
                        self.seen.add((process / name).read_bytes())
                    except OSError:
                        continue  # it has ended

    def __enter__(self) -> "CommandLines":
        self.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._over.set()
        self.join()


@pytest.fixture(scope="module")
def sessions() -> Iterator[Path]:
    """Where Ray keeps its sessions: a short path, for its sockets."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def s3() -> Iterator[servers.Server]:
    """A server with a key of its own: other tests' Rays on this machine show theirs."""
    with servers.s3_server(secret=f"canary-{secrets.token_hex(12)}") as server:
        yield server


def test_a_planted_credential_is_found_nowhere(s3, sessions, capfd, monkeypatch):
    from airflow.sdk import DAG
    from airflow.utils.db import initdb

    from airflow_tune_restore.task_group import TuneRestoreTaskGroup

    initdb()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3.env.items():
            environment.setenv(name, value)
        fail_sweep(f"{s3.url}/canary", "sweep")
    secret = s3.env["AWS_SECRET_ACCESS_KEY"]
    for name in s3.env:
        monkeypatch.delenv(name, raising=False)
    connection = {
        "conn_type": "aws",
        "login": s3.env["AWS_ACCESS_KEY_ID"],
        "password": secret,
        "extra": {
            "endpoint_url": s3.endpoint,
            "region_name": "us-east-1",
            "note": EXTRA,
        },
    }
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW_CONN_CANARY", json.dumps(connection))
    monkeypatch.setenv("RAY_TMPDIR", sessions.as_posix())
    with DAG("canary", schedule=None) as dag:
        TuneRestoreTaskGroup(
            experiments=f"s3://canary@{s3.bucket}/canary/sweep",
            trainable="example_sweep:train",
            resume_errored=True,
            trial_args={"retries": 0},
        )
    register(dag)
    monkeypatch.setenv("PYTHONPATH", airflow_home.DAGS.as_posix())
    monkeypatch.setenv("EXAMPLE_SWEEP_REPAIRED", "1")
    with CommandLines() as commands:
        done = run(dag, capfd)
    for task in ("plan", "trial", "commit"):
        assert done.states[f"restore.{task}"] == ["success"], done.log[-20000:]
    places = {
        **_objects(s3, f"{s3.bucket}/canary"),
        **_values(airflow_home.HOME / "airflow.db"),
        **_files(airflow_home.HOME, besides=".db"),
        **_files(sessions),
        "the log": done.log.encode(),
        "command lines": b"\n".join(commands.seen),
    }
    _assert_searched(places)
    planted = (secret, ENVIRONMENT, OTHER, BACKEND, EXTRA)
    assert [leak for where, body in places.items() for leak in leaks(where, body, planted)] == []


def _assert_searched(places: dict[str, bytes]) -> None:
    """Whether all was there that could have told: nothing is found in what was never written."""
    assert any(place.endswith("/outcome.json") for place in places)
    assert any(place.endswith("/state.json") for place in places)
    assert places["table xcom"]
    assert places["table rendered_task_instance_fields"]
    assert places["table serialized_dag"]
    assert any("/logs/" in place and "session_" in place for place in places)
    assert b"airflow_tune_restore.runner" in places["command lines"]
    assert b"raylet" in places["command lines"]
    assert b"attempt 1 of restore" in places["the log"]


def _objects(server, prefix: str) -> dict[str, bytes]:
    store = server.filesystem()
    # zero-byte directory markers are listed and cannot be read
    return dict(store.cat(prefix, recursive=True, on_error="omit"))


def _values(database: Path) -> dict[str, bytes]:
    """Return what each table holds, blobs as they are."""
    tables = "select name from sqlite_master where type='table'"
    with sqlite3.connect(database) as connection:
        return {
            f"table {table}": b"\n".join(
                value if isinstance(value, bytes) else str(value).encode(errors="replace")
                for row in connection.execute(f'select * from "{table}"')
                for value in row
            )
            for (table,) in connection.execute(tables).fetchall()
        }


def _files(directory: Path, besides: str = "\0") -> dict[str, bytes]:
    return {
        path.as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != besides and path.stat().st_size < 64 * 1024**2
    }
