"""A store in this process with a given clock, for tests of code that uses stores."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError, TooLargeError
from airflow_tune_restore.storage.base import PIECE_BYTES, Entry, ObjectStore


class MemoryStore(ObjectStore):
    """A dictionary behind the protocol; stores made by `at` share it."""

    def __init__(
        self,
        objects: dict[str, tuple[bytes, datetime]] | None = None,
        *,
        root: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._objects = {} if objects is None else objects
        self._root = root
        self._clock = clock

    @property
    def lists_trees(self) -> bool:
        """Return True, as object stores do."""
        return True

    @property
    def uri(self) -> str:
        """The root as a URL."""
        return f"memory://{self._root}".rstrip("/")

    def at(self, path: str) -> "MemoryStore":
        """Return the store rooted at `path` below this one."""
        return MemoryStore(self._objects, root=f"{self._root}{path}/", clock=self._clock)

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, sorted by name."""
        prefix = f"{self._root}{path}/" if path else self._root
        entries: dict[str, Entry] = {}
        for key, (body, modified_at) in list(self._objects.items()):
            if not key.startswith(prefix):
                continue
            name, separator, _ = key.removeprefix(prefix).partition("/")
            if separator:
                entries[name] = Entry(name, is_dir=True)
            else:
                etag = hashlib.sha256(body).hexdigest()
                entries[name] = Entry(
                    name, size_bytes=len(body), modified_at=modified_at, etag=etag
                )
        return sorted(entries.values(), key=lambda entry: entry.name)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object."""
        try:
            body, _ = self._objects[self._root + key]
        except KeyError:
            raise KeyNotFoundError(self.uri, key) from None
        if max_bytes is not None and len(body) > max_bytes:
            raise TooLargeError(f"{self.uri}/{key} holds more than {max_bytes} bytes.")
        return body

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece."""
        body = self.get(key, max_bytes=max_bytes)
        for start in range(0, len(body), PIECE_BYTES):
            yield body[start : start + PIECE_BYTES]

    def create(self, key: str, body: bytes) -> None:
        """Write a new object; `setdefault` is atomic under the interpreter lock."""
        made = (body, self._clock())
        if self._objects.setdefault(self._root + key, made) is not made:
            raise KeyExistsError(self.uri, key)

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object."""
        self._objects[self._root + key] = (body, self._clock())

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._objects.pop(self._root + key, None)

    def now(self) -> datetime:
        """Return the time by the given clock."""
        return self._clock()
