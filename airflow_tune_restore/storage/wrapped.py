"""Stores in front of another store: they pass all requests on, but for those that they are made for."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Self

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.storage.base import OWN_DIRECTORY, Entry, ObjectStore

_KEPT_BYTES = 16 * 1024 * 1024
"""Bytes of all objects that are kept in memory, and of the entries of trees."""

_ONE_ANSWER = 1000
"""Objects of a tree that is listed at once: object stores give so many in one answer."""

_ENTRY_BYTES = 300
"""About the memory of an entry without its name."""

_Tree = dict[str, dict[str, Entry]]
"""The children of each directory in a tree, by its path from the top."""


class WrappedStore(ObjectStore):
    """Passes all requests on."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @property
    def lists_trees(self) -> bool:
        """As the store behind it."""
        return self._store.lists_trees

    @property
    def uri(self) -> str:
        """The root of the store behind it."""
        return self._store.uri

    def at(self, path: str) -> Self:
        """Return the store rooted at `path` below this one, in front of the same store."""
        return type(self)(self._store.at(path))

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`."""
        return self._store.list_dir(path)

    def walk(self, path: str = "") -> Iterator[Entry]:
        """Yield all objects below `path`."""
        return self._store.walk(path)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object."""
        return self._store.get(key, max_bytes=max_bytes)

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece."""
        return self._store.stream(key, max_bytes=max_bytes)

    def create(self, key: str, body: bytes) -> None:
        """Write a new object."""
        self._store.create(key, body)

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object."""
        self._store.put(key, body)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._store.delete(key)

    def now(self) -> datetime:
        """Return the UTC time by the store's own clock."""
        return self._store.now()


class ReadOnceStore(WrappedStore):
    """Reads small objects and trees once, for the steps that examine and plan one experiment.

    It keeps each small object of its root. The first listing in a directory of the root, which is that of
    a trial, lists the whole tree below it, if one answer of the store can hold it. The package's own
    records, such as a lease, are read anew.
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self._kept: dict[str, bytes] = {}
        self._trees: dict[str, _Tree | None] = {}
        self._room = self._tree_room = _KEPT_BYTES

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, from memory if its tree was listed before."""
        top, _, below = path.partition("/")
        if top in ("", OWN_DIRECTORY):
            return super().list_dir(path)
        if top not in self._trees:
            self._trees[top] = self._list_tree(top)
        tree = self._trees[top]
        if tree is None:
            return super().list_dir(path)
        return sorted(tree.get(below, {}).values(), key=lambda entry: entry.name)

    def _list_tree(self, top: str) -> _Tree | None:
        """List a tree; None if it is too large or ambiguous, or if it cannot be listed."""
        if self._tree_room <= 0 or not self._store.lists_trees:
            return None
        try:
            found = list(islice(super().walk(top), _ONE_ANSWER + 1))
        except StorageError:
            return None  # the listing of one directory may still succeed, or raises the error
        if len(found) > _ONE_ANSWER or any(map(_is_ambiguous, found)):
            return None
        self._tree_room -= sum(_ENTRY_BYTES + len(entry.name) for entry in found)
        return _as_tree(found)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object, from memory if it was read before."""
        body = self._kept.get(key)
        if body is None or (max_bytes is not None and len(body) > max_bytes):
            body = super().get(key, max_bytes=max_bytes)
            if "/" not in key and len(body) <= self._room:
                self._kept[key] = body
                self._room -= len(body)
        return body


def _is_ambiguous(entry: Entry) -> bool:
    """Whether only the listing of its directory shows what an entry is.

    A link is not walked into. An empty object may be the marker of an empty directory, as Ray uploads
    them to S3: obstore drops the slash at its end.
    """
    return entry.is_link or bool(entry.place) or (not entry.is_dir and not entry.size_bytes)


def _as_tree(found: list[Entry]) -> _Tree:
    tree: _Tree = {}
    for entry in found:
        parent, _, name = entry.name.rpartition("/")
        siblings = tree.setdefault(parent, {})
        if name not in siblings or not siblings[name].is_dir:  # a directory and its marker are one
            siblings[name] = entry._replace(name=name)
        while parent:
            parent, _, name = parent.rpartition("/")
            tree.setdefault(parent, {})[name] = Entry(name, is_dir=True)
    return tree
