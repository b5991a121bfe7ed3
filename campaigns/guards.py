"""What watches a hostile input at work: which keys are touched, and what Python is told to do."""

import os
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from airflow_tune_restore.experiments import layout
from airflow_tune_restore.storage.base import Entry, ObjectStore

_COMMITTED = re.compile(r"experiment_state-.*_r\d{6}\.json", re.DOTALL)
_LONGEST_KEY = 4096


class OutsideError(BaseException):
    """A key led outside, or a file of Ray's was written to. No handler of ours may swallow it."""


class ExecutedError(BaseException):
    """Something was executed, imported, opened or connected to."""


class GuardedStore:
    """A store that refuses, loudly, every key that a hostile name could have led astray.

    Args:
        inner: The store behind it.
        writable: Whether anything may be written: below `.tune_restore/`, and committed states. If
            not, a scan's index all the same.
    """

    def __init__(self, inner: ObjectStore, *, writable: bool = True) -> None:
        self._inner = inner
        self._writable = writable

    @property
    def uri(self) -> str:
        return self._inner.uri

    def at(self, path: str) -> "GuardedStore":
        return GuardedStore(self._inner.at(_inside(path)), writable=self._writable)

    def list_dir(self, path: str = "") -> list[Entry]:
        return self._inner.list_dir(_inside(path) if path else "")

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        if max_bytes is None:
            raise OutsideError(f"{key!r} is read without a limit")
        return self._inner.get(_inside(key), max_bytes=max_bytes)

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        return self._inner.stream(_inside(key), max_bytes=max_bytes)

    def create(self, key: str, body: bytes) -> None:
        self._inner.create(self._ours(key), body)

    def put(self, key: str, body: bytes) -> None:
        if not key.startswith(".tune_restore/"):
            raise OutsideError(f"{key!r} is overwritten")
        self._inner.put(self._ours(key), body)

    def delete(self, key: str) -> None:
        if not key.startswith(".tune_restore/"):
            raise OutsideError(f"{key!r} is deleted")
        self._inner.delete(self._ours(key))

    def now(self) -> datetime:
        return self._inner.now()

    def _ours(self, key: str) -> str:
        _inside(key)
        if not self._writable and key != layout.INDEX:
            raise OutsideError(f"{key!r} is written by what only reads")
        if key.startswith(".tune_restore/") or _COMMITTED.fullmatch(key):
            return key
        raise OutsideError(f"{key!r} is written, which is none of ours")


def _inside(key: str) -> str:
    parts = key.split("/")
    bad = (
        any(part in ("", ".", "..") for part in parts)
        or not key.isprintable()
        or len(key) > _LONGEST_KEY
    )
    if bad:
        raise OutsideError(f"{key[:200]!r} leads outside")
    return key


_WATCHED = (
    "os.", "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "shutil.", "tempfile.",
    "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.", "code.", "exec", "compile", "import",
    "open", "pty.", "fcntl.", "mmap.", "sqlite3.", "builtins.", "signal.",
)  # fmt: skip
_HARMLESS = frozenset(
    ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "builtins.id", "code.__new__")
)


class Tripwire:
    """An audit hook that, while armed, lets nothing run, load, open or connect outside `scratch`.

    It sees what the interpreter itself does (`sys.addaudithook`), so no trick of a pickle gets past it.
    An audit hook cannot be removed; disarmed it does nothing.
    """

    def __init__(self, scratch: str) -> None:
        self.trips: list[str] = []
        self._scratch = f"{scratch}/"
        self._armed = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> "Tripwire":
        self._armed = True
        return self

    def __exit__(self, *_details: object) -> None:
        self._armed = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed or not event.startswith(_WATCHED) or event in _HARMLESS:
            return
        self._armed = False  # what is done here, and on the way up, is ours
        if self._is_in_scratch(event, arguments):
            self._armed = True
            return
        trip = f"{event} {arguments!r}"[:300]
        self.trips.append(trip)
        raise ExecutedError(trip)

    def _is_in_scratch(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event != "open" and not event.startswith("os."):
            return False
        paths = [os.fspath(p) for p in arguments[:2] if isinstance(p, str | os.PathLike)]
        paths = [p for p in paths if event != "open" or p != arguments[1]]
        return bool(paths) and all(
            os.path.abspath(p).startswith(self._scratch)  # noqa: PTH100  never to follow links
            for p in paths
        )
