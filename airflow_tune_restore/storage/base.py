"""The contract of a store: few verbs, so that a local disk and every object store can do them.

A store is rooted at a URI; keys are relative to it, use `/` and never start with one.
Compare-and-swap is deliberately missing: neither local disks nor pyarrow have it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

PIECE_BYTES = 8 * 1024 * 1024
"""About the size of one piece of a stream."""

OWN_DIRECTORY = ".tune_restore"
"""Only this package writes below it. On disks, links there are not followed."""

ERROR_FILE = "error.txt"
"""Ray's file of the failures of a trial, in its directory (ray.air.constants.EXPR_ERROR_FILE, 2.60).
People are shown its text. So on disks a link of this name is not followed: it could lead to a secret."""


class Entry(NamedTuple):
    """One child in a listing: an object, or a prefix ("directory") of others. There are thousands.

    Args:
        name: The last path segment, without a trailing slash.
        is_dir: Whether it is a prefix. Zero-byte directory markers are folded into their prefix.
        size_bytes: Size of the object; 0 for a prefix.
        modified_at: Aware UTC time of the last write by the store's own clock; None for prefixes
            on object stores, and where the store reports none.
        etag: The store's version tag of the content; "" if it has none.
        is_link: Whether it is another name of a directory of this store: on disks, a symbolic link.
        place: The place of a linked directory outside this store; "" otherwise. Two links may lead to
            one place.
    """

    name: str
    is_dir: bool = False
    size_bytes: int = 0
    modified_at: datetime | None = None
    etag: str = ""
    is_link: bool = False
    place: str = ""


def as_time(value: Any) -> datetime | None:
    """Return when an object was written; None if that is not a time: it must not hide the others."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if not isinstance(value, datetime):
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


class ObjectStore(Protocol):
    """A directory of objects behind a URI."""

    @property
    def lists_trees(self) -> bool:
        """Whether one request lists a tree; else a walk lists each directory of it."""
        return False

    @property
    def uri(self) -> str:
        """The root, without credentials and without a trailing slash."""

    def at(self, path: str) -> "ObjectStore":
        """Return the store rooted at `path` below this one."""

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, sorted by name; empty if there are none.

        Always sends a request (no listing cache), and does not walk deeper.
        """

    def walk(self, path: str = "") -> Iterator[Entry]:
        """Yield all objects below `path`; the name of each is its path from there. In no order.

        Object stores answer with a thousand objects at a time. On disks, a directory that is empty or a
        link is yielded, too; a link is not walked into, because it may lead to itself.
        """
        waiting = [""]
        while waiting:  # not by recursion: directories may nest a thousand deep
            here = waiting.pop()
            entries = self.list_dir(f"{path}/{here}".strip("/"))
            if here and not entries:
                yield Entry(here, is_dir=True)
            for entry in entries:
                name = f"{here}/{entry.name}".lstrip("/")
                if entry.is_dir and not (entry.is_link or entry.place):
                    waiting.append(name)
                else:
                    yield entry._replace(name=name)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object.

        Raises:
            KeyNotFoundError: If it does not exist.
            StorageError: If it is larger than `max_bytes` (at most one byte more is read).
        """

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece, all of one version, without the whole object in memory.

        A store that cannot read this way yields it in one piece.

        Raises:
            KeyNotFoundError, StorageError: As `get`, while it is iterated over.
        """

    def create(self, key: str, body: bytes) -> None:
        """Write a new object, whole or not at all; of many racing callers exactly one succeeds.

        Bodies must differ between callers (a nonce): some stores answer a client that repeats its own
        successful write that the object exists, and only the body shows whose it is.

        Raises:
            KeyExistsError: If it exists already.
        """

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object, whole or not at all."""

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

    def now(self) -> datetime:
        """Return the UTC time by the store's own clock, or by this machine's if it has none."""
