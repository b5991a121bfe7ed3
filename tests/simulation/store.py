"""A simulated object store, as S3, GCS, Azure or a local disk behave, with requests that take time.

`Shelf` is the server. A `SimulatedStore` is a client of it in a process: every call is a request that is
sent, carried out at some later moment, and answered. Faults strike at any of these moments.

What a real store promises, this one keeps: a create succeeds once; an object appears whole or not at
all; a listing shows everything that was written before it was asked for and is not deleted. What it does
not promise, this one breaks: what is written or deleted while a listing is made may be in it or not.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    KeyNotFoundError,
    StorageError,
    TooLargeError,
)
from airflow_tune_restore.storage.base import Entry, ObjectStore
from tests.simulation.world import EPOCH, Process, ProcessKilled, Thread, World


class StoreKind(StrEnum):
    """Whose semantics a store has."""

    S3 = "s3"
    GCS = "gcs"
    AZURE = "azure"
    LOCAL = "local"


_TIMES_IN_SECONDS = frozenset({StoreKind.S3, StoreKind.AZURE})
"""Their listings show times to the second."""

URIS = {
    StoreKind.S3: "s3://sweeps/one",
    StoreKind.GCS: "gs://sweeps/one",
    StoreKind.AZURE: "abfs://sweeps/one",
    StoreKind.LOCAL: "/sweeps/one",
}


class Write(NamedTuple):
    """One change of the shelf: `body` is None for a deletion, `before` what was there."""

    at: float
    process: Process
    key: str
    body: bytes | None
    before: bytes | None


class Stored(NamedTuple):
    """An object on the shelf; `change` is the number of the change that made it."""

    body: bytes
    modified_at: datetime
    change: int


@dataclass
class Shelf:
    """The objects of one experiment directory, as the server has them.

    Args:
        ahead: How many seconds the clock of the server is before the true time.
        watch: Called after every change.
    """

    world: World
    kind: StoreKind = StoreKind.S3
    ahead: float = 0.0
    watch: Callable[[Write], None] = lambda _write: None
    objects: dict[str, Stored] = field(default_factory=dict)
    _directories: dict[str, dict[str, Entry]] = field(default_factory=dict)
    _listed: dict[str, list[Entry]] = field(default_factory=dict)
    _changes: list[tuple[str, Stored | None]] = field(default_factory=list)
    _sent: dict[tuple[Process, str], float] = field(default_factory=dict)

    def now(self) -> datetime:
        """Return the time by the clock of the server."""
        moment = self.world.wall(self.ahead)
        return moment.replace(microsecond=0) if self.kind in _TIMES_IN_SECONDS else moment

    def load(self, files: dict[str, bytes], at: datetime) -> None:
        """Put files there that a driver wrote before the world began."""
        for key, body in files.items():
            self._set(key, Stored(body, at, 0))

    def get(self, key: str) -> bytes:
        try:
            return self.objects[key].body
        except KeyError:
            raise KeyNotFoundError(URIS[self.kind], key) from None

    def create(self, key: str, body: bytes, process: Process, sent: float) -> None:
        if key in self.objects:
            raise KeyExistsError(URIS[self.kind], key)
        self.put(key, body, process, sent)

    def put(self, key: str, body: bytes, process: Process, sent: float) -> None:
        """Write an object, unless its writer has sent a later version: S3 keeps the later one, too."""
        before = self.objects.get(key)
        if self._sent.get((process, key), sent) > sent:
            return
        self._sent[process, key] = sent
        self._changes.append((key, before))
        self._set(key, Stored(body, self.now(), len(self._changes)))
        self.watch(Write(self.world.now, process, key, body, before and before.body))

    def delete(self, key: str, process: Process, _sent: float) -> None:
        before = self.objects.pop(key, None)
        if before is None:
            return
        self._changes.append((key, before))
        parent, _, name = key.rpartition("/")
        self._remove(parent, name)
        while parent and not self._directories[parent] and self.kind is not StoreKind.LOCAL:
            parent, _, name = parent.rpartition("/")  # object stores have no empty directories
            self._remove(parent, name)
        self.watch(Write(self.world.now, process, key, None, before.body))

    def _set(self, key: str, stored: Stored) -> None:
        self.objects[key] = stored
        parent, _, name = key.rpartition("/")
        is_new = self._add(parent, _describe(name, stored))
        while is_new and parent:
            parent, _, name = parent.rpartition("/")
            is_new = self._add(parent, Entry(name, is_dir=True))

    @property
    def changes(self) -> int:
        """How many changes there were."""
        return len(self._changes)

    def list_dir(self, path: str, since: int, chance: Callable[[], float]) -> list[Entry]:
        """List a directory; each change after `since` is in the listing or not, with equal chances."""
        listed = self._listed.get(path)
        if listed is None:
            entries = self._directories.get(path, {})
            listed = self._listed[path] = [entries[name] for name in sorted(entries)]
        return listed.copy() if since == len(self._changes) else self._torn(path, since, chance)

    def walk(self, path: str, since: int, chance: Callable[[], float]) -> list[Entry]:
        """List all objects below a directory, by their paths from there, as `list_dir` lists one."""
        top = f"{path}/" if path else ""
        found = {key: stored for key, stored in self.objects.items() if key.startswith(top)}
        for key, before in self._changes[since:]:
            if key.startswith(top) and chance() >= 0.5:
                if before is None:
                    found.pop(key, None)
                else:
                    found[key] = before
        return [_describe(key.removeprefix(top), found[key]) for key in sorted(found)]

    def _torn(self, path: str, since: int, chance: Callable[[], float]) -> list[Entry]:
        entries = dict(self._directories.get(path, {}))
        for key, before in self._changes[since:]:
            parent, _, name = key.rpartition("/")
            if parent == path and chance() >= 0.5:
                if before is None:
                    entries.pop(name, None)
                else:
                    entries[name] = _describe(name, before)
        return [entries[name] for name in sorted(entries)]

    def _add(self, parent: str, entry: Entry) -> bool:
        """Put an entry into a directory; return whether it is new."""
        children = self._directories.setdefault(parent, {})
        is_new = entry.name not in children
        children[entry.name] = entry
        self._listed.pop(parent, None)
        return is_new

    def _remove(self, parent: str, name: str) -> None:
        del self._directories[parent][name]
        self._listed.pop(parent, None)


def _describe(name: str, stored: Stored) -> Entry:
    return Entry(name, False, len(stored.body), stored.modified_at, f"v{stored.change}")


MOST_DELAY = 15.0
"""If its sender is dead or has given it up, a request is carried out so many seconds after it was sent,
or not at all. No protocol without conditional writes is safe from one that is carried out at any time."""


class Fate(NamedTuple):
    """What happens to one request. All times are in seconds from now.

    Args:
        carried_out: When the server carries it out; None if it never does.
        answered: When its sender goes on; None if that is when it is carried out.
        error: What its sender gets in place of the result; "" if it gets the result.
        again: When it is carried out once more; None if it is not.
        before, after: What happens to the process before the request is sent, and before its answer is
            used: "kill", or the seconds for which it freezes.
        dies_inside: Whether the process dies while the request is under way.
    """

    carried_out: float | None
    answered: float | None = None
    error: str = ""
    again: float | None = None
    before: float | str = 0.0
    after: float | str = 0.0
    dies_inside: bool = False


DrawFate = Callable[[Process, str, str], Fate]
"""Draws the fate of a request: by its process, its verb and its key."""

_WRITES = frozenset({"create", "put", "delete"})
"""Their writer, and when it sent them, decide what becomes of them."""

_NOTHING = Stored(b"", EPOCH, 0)


class SimulatedStore(ObjectStore):
    """A client of the shelf. Stores made by `at` share it."""

    def __init__(self, shelf: Shelf, draw: DrawFate, root: str = "") -> None:
        self._shelf = shelf
        self._world = shelf.world
        self._draw = draw
        self._root = root

    @property
    def uri(self) -> str:
        return f"{URIS[self._shelf.kind]}/{self._root}".rstrip("/")

    def at(self, path: str) -> "SimulatedStore":
        return SimulatedStore(self._shelf, self._draw, f"{self._root}{path}/")

    def list_dir(self, path: str = "") -> list[Entry]:
        where = (self._root + path).rstrip("/")
        args = (where, self._shelf.changes, self._world.random.random)
        entries: list[Entry] = self._request("list", where, self._shelf.list_dir, args)
        return entries

    @property
    def lists_trees(self) -> bool:
        return self._shelf.kind is not StoreKind.LOCAL

    def walk(self, path: str = "") -> Iterator[Entry]:
        if self._shelf.kind is StoreKind.LOCAL:  # one directory after the other
            yield from super().walk(path)
            return
        where = (self._root + path).rstrip("/")
        args = (where, self._shelf.changes, self._world.random.random)
        yield from self._request("walk", where, self._shelf.walk, args)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        body: bytes = self._request("get", key, self._shelf.get, (self._root + key,))
        if max_bytes is not None and len(body) > max_bytes:
            raise TooLargeError(f"{self.uri}/{key} holds more than {max_bytes} bytes.")
        return body

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        yield self.get(key, max_bytes=max_bytes)

    def create(self, key: str, body: bytes) -> None:
        self._request("create", key, self._shelf.create, (self._root + key, body))

    def put(self, key: str, body: bytes) -> None:
        self._request("put", key, self._shelf.put, (self._root + key, body))

    def delete(self, key: str) -> None:
        self._request("delete", key, self._shelf.delete, (self._root + key,))

    def now(self) -> datetime:
        if self._shelf.kind is StoreKind.LOCAL:
            return self._world.wall(self._world.process.machine.ahead)
        moment: datetime = self._request("now", "", self._shelf.now)
        return moment

    def _request(
        self, verb: str, key: str, carry_out: Callable[..., Any], args: tuple[Any, ...] = ()
    ) -> Any:
        world = self._world
        thread = world.living()
        process = thread.process
        fate = self._draw(process, verb, key)
        if fate.before:
            self._strike(process, fate.before, f"before it sends {verb} {key}")
        sent = world.now
        if verb in _WRITES:
            args = (*args, process, sent)
        if fate.carried_out is not None:
            world.after(fate.carried_out, self._arrive, thread, sent, fate, carry_out, args)
        if fate.answered is not None:
            world.after(fate.answered, world.resume, thread)
        if fate.again is not None:
            world.after(fate.again, self._again, carry_out, args)
        if fate.dies_inside:
            world.after(0.0, process.kill)
        result = world.wait()
        if world.is_told:
            self._tell(process, verb, key, fate, result)
        if fate.after:
            self._strike(process, fate.after, f"before it uses the answer to {verb} {key}")
        if fate.error:
            raise StorageError(f"{self.uri}/{key}: {fate.error}")
        if isinstance(result, Exception):
            own = isinstance(result, KeyExistsError) and fate.again is not None
            if own and self._shelf.objects.get(self._root + key, _NOTHING).body == args[1]:
                return None  # its own, as the client finds out by reading it
            raise result
        return result

    def _arrive(
        self,
        thread: Thread,
        sent: float,
        fate: Fate,
        carry_out: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        world = self._world
        if not thread.process.is_alive and world.now > sent + MOST_DELAY:
            return  # its connection is closed
        try:
            result = carry_out(*args)
        except (KeyExistsError, KeyNotFoundError) as error:
            result = error
        if fate.answered is None and not fate.dies_inside:
            world.resume(thread, result)

    def _again(self, carry_out: Callable[..., Any], args: tuple[Any, ...]) -> None:
        with contextlib.suppress(KeyExistsError, KeyNotFoundError):
            carry_out(*args)

    def _strike(self, process: Process, how: float | str, when: str) -> None:
        world = self._world
        if how == "kill":
            world.tell(process, f"is killed {when}")
            process.kill()
            raise ProcessKilled
        assert isinstance(how, float)
        world.tell(process, f"freezes for {how:.0f} s {when}")
        process.freeze(how)
        world.sleep(0.0)

    def _tell(self, process: Process, verb: str, key: str, fate: Fate, result: Any) -> None:
        if fate.error:
            how = f" -> {fate.error}"
        elif isinstance(result, Exception):
            how = f" -> {type(result).__name__}"
        elif verb in ("list", "walk"):
            how = f" -> {len(result)}"
        else:
            how = ""
        self._world.tell(process, f"{verb} {key}{how}")
