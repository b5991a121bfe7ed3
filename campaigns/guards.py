"""What watches a hostile input at work: which keys are touched, and what Python is told to do."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from unicodedata import category

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.base import Entry, ObjectStore

_COMMITTED = re.compile(r"experiment_state-.*_r\d{6}\.json", re.DOTALL)
_BESIDE = re.compile(r"[^/]+-\d{4}-[^/]*_r\d{6}\.(json|pkl)")
"""Names of states that commits make, and of what they put beside them."""

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

    Attributes:
        inner: The store behind it.
        reads: How often each key was read.
        limits: How many bytes of each key were read at most.
        touched: Keys that were read, and of directories that were listed all that was seen there.
    """

    def __init__(self, inner: ObjectStore, *, writable: bool = True) -> None:
        self.inner = inner
        self.reads: Counter[str] = Counter()
        self.limits: dict[str, int] = {}
        self.touched: set[str] = set()
        self._writable = writable

    @property
    def uri(self) -> str:
        return self.inner.uri

    def at(self, path: str) -> "GuardedStore":
        return GuardedStore(self.inner.at(_inside(path)), writable=self._writable)

    def list_dir(self, path: str = "") -> list[Entry]:
        found = self.inner.list_dir(_inside(path) if path else "")
        self.touched |= {f"{path}/{entry.name}" for entry in found}
        return found

    @property
    def lists_trees(self) -> bool:
        return self.inner.lists_trees

    def walk(self, path: str = "") -> Iterator[Entry]:
        for entry in self.inner.walk(_inside(path) if path else ""):
            self.touched.add(f"{path}/{entry.name}".lstrip("/"))
            yield entry

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        if max_bytes is None:
            raise OutsideError(f"{key!r} is read without a limit")
        self.touched.add(key)
        self.reads[key] += 1
        self.limits[key] = max(max_bytes, self.limits.get(key, 0))
        return self.inner.get(_inside(key), max_bytes=max_bytes)

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        self.touched.add(key)
        self.reads[key] += 1
        self.limits[key] = max(max_bytes, self.limits.get(key, 0))
        return self.inner.stream(_inside(key), max_bytes=max_bytes)

    def create(self, key: str, body: bytes) -> None:
        self.inner.create(self._ours(key), body)

    def put(self, key: str, body: bytes) -> None:
        if not key.startswith(".tune_restore/") and not _BESIDE.fullmatch(key):
            raise OutsideError(f"{key!r} is overwritten")
        self.inner.put(self._ours(key), body)

    def delete(self, key: str) -> None:
        self.inner.delete(self._ours(key))

    def now(self) -> datetime:
        return self.inner.now()

    def _ours(self, key: str) -> str:
        _inside(key)
        if not self._writable and key != layout.INDEX:
            raise OutsideError(f"{key!r} is written by what only reads")
        if key.startswith(".tune_restore/") or _COMMITTED.fullmatch(key) or _BESIDE.fullmatch(key):
            return key
        raise OutsideError(f"{key!r} is written or deleted, which is none of ours")


class RunnerStore(GuardedStore):
    """A runner may rewrite the rows of its own trial, whose directory is `d`; no other store lets it."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner.inner if isinstance(inner, GuardedStore) else inner)
        if isinstance(inner, GuardedStore):
            self.touched = inner.touched

    def put(self, key: str, body: bytes) -> None:
        if key in ("d/result.json", "d/progress.csv"):
            self.inner.put(key, body)
        else:
            super().put(key, body)


def _inside(key: str) -> str:
    parts = key.split("/")
    bad = any(part in ("", ".", "..") for part in parts) or "\0" in key or len(key) > _LONGEST_KEY
    if ".tune_restore" in parts:  # Ray's names may hold what they like, ours hold nothing odd
        bad = bad or any(category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in key)
    if bad:
        raise OutsideError(f"{key[:200]!r} leads outside")
    return key


_WATCHED = (
    "os.", "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "shutil.", "tempfile.",
    "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.", "code.", "exec", "compile", "import",
    "open", "pty.", "fcntl.", "mmap.", "sqlite3.", "builtins.", "signal.",
)  # fmt: skip
_HARMLESS = frozenset(
    ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "builtins.id", "code.__new__", "socket.__new__",
     "http.client.send")
)  # fmt: skip

SERVERS: set[tuple[str, int]] = set()
"""Addresses that may be connected to: hostile servers of our own."""


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
        if event == "import" and str(arguments[0]).startswith("encodings."):
            return  # how Python looks for an encoding that a server names; all there are were loaded
        self._armed = False  # what is done here, and on the way up, is ours
        if self._is_in_scratch(event, arguments) or _is_own_server(event, arguments):
            self._armed = True
            return
        trip = f"{event} {arguments!r}"[:300]
        self.trips.append(trip)
        raise ExecutedError(trip)

    def _is_in_scratch(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event in ("open", "os.chown", "os.chmod") and isinstance(arguments[0], int):
            return True  # it is open already
        if event != "open" and not event.startswith(("os.", "shutil.")):
            return False
        # of `open` the second is a mode; what a link says is not where it lies
        named = {"open": arguments[:1], "os.symlink": arguments[1:2]}.get(event, arguments[:2])
        paths = [os.fspath(path) for path in named if isinstance(path, str | os.PathLike)]
        return bool(paths) and all(
            f"{os.path.abspath(path)}/".startswith(self._scratch)  # noqa: PTH100  never to follow links
            for path in paths
        )


def _is_own_server(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "socket.connect":
        return arguments[1] in SERVERS
    if event == "http.client.connect":
        return arguments[1:] in SERVERS
    return event == "socket.getaddrinfo" and arguments[:2] in SERVERS
