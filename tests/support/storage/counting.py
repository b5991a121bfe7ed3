"""A store in memory that counts what is asked of it, by a clock that the test moves."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Self

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.storage.base import Entry
from airflow_tune_restore.storage.memory import MemoryStore


class Clock:
    """Stands still until `now` is set."""

    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class CountingStore(MemoryStore):
    """Counts listings, gets and puts in `asked`, and what was got in `got`, in all places below it.

    Can be made to refuse writes.
    """

    asked: Counter[str]
    got: Counter[str]
    refuses = False

    @classmethod
    def new(cls, clock: Clock) -> Self:
        store = cls(clock=clock)
        store.asked, store.got = Counter(), Counter()
        return store

    def at(self, path: str) -> Self:
        below = type(self)(self._objects, root=f"{self._root}{path}/", clock=self._clock)
        below.asked, below.got, below.refuses = self.asked, self.got, self.refuses
        return below

    def list_dir(self, path: str = "") -> list[Entry]:
        self.asked["list"] += 1
        return super().list_dir(path)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        self.asked["get"] += 1
        self.got[key] += 1
        return super().get(key, max_bytes=max_bytes)

    def put(self, key: str, body: bytes) -> None:
        self.asked["put"] += 1
        if self.refuses:
            raise StorageError("read only")
        super().put(key, body)


class BucketStore(CountingStore):
    """A walk costs one listing per thousand objects, as in a bucket, and not one per directory."""

    def walk(self, path: str = "") -> Iterator[Entry]:
        below = f"{self._root}{path}/" if path else self._root
        found = [key for key in sorted(self._objects) if key.startswith(below)]
        self.asked["list"] += 1 + len(found) // 1000
        for key in found:
            body, modified_at = self._objects[key]
            yield Entry(key.removeprefix(below), size_bytes=len(body), modified_at=modified_at)
