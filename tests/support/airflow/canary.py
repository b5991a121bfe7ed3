"""Credentials that are planted, and the search for them wherever anything is left.

They are made anew for each session: Airflow keeps the source of DAGs.
"""

import base64
import contextlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LARGE = 64 * 1024**2
"""Object stores of Rays, in bytes."""


def _make() -> str:
    return f"canary-{secrets.token_hex(12)}"


@dataclass(frozen=True)
class Canaries:
    """What is planted.

    Args:
        key: The secret key of the S3 server, in Airflow's connection to it.
        extra: In the extras of that connection.
        environment: A key of another store, in the environment of all of Airflow's processes.
        other: The password of a connection that has nothing to do with ours.
        backend: A token of Airflow's secrets backend.
    """

    key: str = field(default_factory=_make)
    extra: str = field(default_factory=_make)
    environment: str = field(default_factory=_make)
    other: str = field(default_factory=_make)
    backend: str = field(default_factory=_make)

    @property
    def env(self) -> dict[str, str]:
        """What Airflow's processes have in their environment."""
        return {
            "AZURE_STORAGE_ACCOUNT_KEY": self.environment,
            "AIRFLOW_CONN_UNRELATED": f"http://user:{self.other}@127.0.0.1",
            "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"token": self.backend}),
        }

    @property
    def all(self) -> tuple[str, ...]:
        """Every secret."""
        return (self.key, self.extra, self.environment, self.other, self.backend)


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


def leaks(places: Mapping[str, bytes], planted: Iterable[str]) -> list[str]:
    """Return which secrets are found where."""
    forms = {secret: disguises(secret) for secret in planted}
    return [
        f"{secret[:12]}… in {where}"
        for where, body in places.items()
        for secret, found in forms.items()
        if any(form in body for form in found)
    ]


def objects(server, prefix: str) -> dict[str, bytes]:
    """Return what lies below a prefix of an S3 server."""
    # zero-byte directory markers are listed and cannot be read
    found = server.filesystem().cat(prefix, recursive=True, on_error="omit")
    return {f"object {name}": body for name, body in found.items()}


def files(directory: Path, besides: str = "\0") -> dict[str, bytes]:
    """Return the files below a directory; what ends meanwhile may take its files along."""
    found = {}
    for parent, _, names in os.walk(directory):  # `rglob` raises where a directory goes meanwhile
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path.suffix != besides and path.stat().st_size < LARGE:
                    found[path.as_posix()] = path.read_bytes()
    return found


def values(database: Path) -> dict[str, bytes]:
    """Return what each table of Airflow's database holds, blobs as they are."""
    tables = "select name from sqlite_master where type='table'"
    with sqlite3.connect(database, timeout=120) as connection:
        return {
            f"table {table}": b"\n".join(
                value if isinstance(value, bytes) else str(value).encode(errors="replace")
                for row in connection.execute(f'select * from "{table}"')
                for value in row
            )
            for (table,) in connection.execute(tables).fetchall()
        }


class CommandLines(threading.Thread):
    """Reads the command line and the title of every process, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):  # runners and their Rays live for seconds
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
