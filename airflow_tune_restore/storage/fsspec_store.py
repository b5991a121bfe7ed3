"""An `ObjectStore` over any fsspec filesystem. Clients that need more have their own modules."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    KeyNotFoundError,
    StorageError,
    TooLargeError,
    TuneRestoreError,
)
from airflow_tune_restore.storage import client_errors
from airflow_tune_restore.storage.base import Entry, ObjectStore, as_time
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.storage.options import Option

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


CLOCK_SECONDS = 30.0
"""How long the time by a server's clock is continued by this machine's, before it is asked again."""


@dataclass(slots=True)
class Bucket:
    """The facts about a bucket that all stores of one client share.

    Args:
        creates_exclusively: Whether it has passed the self-test.
        large_client: A client for large objects, once one was needed.
        asking: Held by the thread that finds one of these out, so that others do not ask, too.
        time: When it was asked for the time (monotonic), and its answer.
    """

    creates_exclusively: bool = False
    large_client: Any = None
    asking: "threading.Lock" = field(default_factory=threading.Lock)
    time: tuple[float, datetime] | None = None


class FsspecStore(ObjectStore):
    """A prefix in an object store behind fsspec.

    Args:
        filesystem: With its credentials, and opened with the options of the location.
        location: Its root, a URL without slashes at its end.
        bucket: That of other stores with this filesystem.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """The options that URLs of this store take after a `?`, by name."""

    def __init__(
        self, filesystem: "AbstractFileSystem", location: Location, bucket: Bucket | None = None
    ) -> None:
        self.bucket = bucket or Bucket()
        self._fs: Any = filesystem
        self._location = location
        self._root = location.place

    @classmethod
    def client_arguments(
        cls,
        options: Mapping[str, str],  # noqa: ARG003  without options
        given: "AbstractFileSystem | None",  # noqa: ARG003
    ) -> dict[str, Any]:
        """Return the options of a URL as arguments of the fsspec filesystem's class.

        They change a given, authenticated filesystem, or that of the environment (None).
        """
        return {}

    @property
    def uri(self) -> str:
        """The root as a URL."""
        return str(self._location)

    def at(self, path: str) -> Self:
        """Return the store rooted at `path` below this one."""
        return self.rooted_at(self._location.at(path))

    def rooted_at(self, location: Location) -> Self:
        """Return the store of another place in the same bucket, with the same client."""
        return type(self)(self._fs, location, self.bucket)

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, sorted by name."""
        try:
            with self._translated("list", path):
                found = list(self._children(self._path(path)))
        except KeyNotFoundError:
            return []
        entries: dict[str, Entry] = {}
        for entry in found:
            # a prefix and its zero-byte marker are one directory
            if entry.name and (entry.is_dir or entry.name not in entries):
                entries[entry.name] = entry
        return sorted(entries.values(), key=lambda entry: entry.name)

    def walk(self, path: str = "") -> Iterator[Entry]:
        """Yield all objects below `path`; the marker of a directory is a directory."""
        if not self.lists_trees:  # fsspec's own `find` leaves out what fails
            yield from super().walk(path)
            return
        try:
            with self._translated("list", path):
                for entry in self._descendants(self._path(path)):
                    if entry.name.endswith("/"):
                        yield prefix_entry(entry.name, "")
                    elif entry.name:
                        yield entry
        except KeyNotFoundError:
            return

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object; at most one byte more than `max_bytes` is read."""
        with self._translated("read", key):
            body = self._read(self._path(key), None if max_bytes is None else max_bytes + 1)
        if max_bytes is not None and len(body) > max_bytes:
            raise self._too_large(key, max_bytes)
        return body

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece."""
        yield self.get(key, max_bytes=max_bytes)

    def create(self, key: str, body: bytes) -> None:
        """Write a new object by a conditional put.

        A client that repeats its own successful put gets the answer that the object exists, so a body
        that is already there counts as written. Callers put a nonce into bodies that could be equal.
        """
        try:
            with self._translated("create", key):
                self._create(self._path(key), body)
        except KeyExistsError:
            with contextlib.suppress(
                KeyNotFoundError, StorageError
            ):  # deleted since, or another one
                if self.get(key, max_bytes=len(body)) == body:
                    return
            raise

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object."""
        with self._translated("write", key):
            self._put(self._path(key), body)

    def delete(self, key: str) -> None:
        """Delete an object."""
        with contextlib.suppress(KeyNotFoundError), self._translated("delete", key):
            self._delete(self._path(key))

    def now(self) -> datetime:
        """Return the server's time if it reports it, else this machine's.

        A time that it reported shortly before is continued. If this machine was suspended meanwhile, for
        less than a day, the result is too early, so that something may look younger, and nothing older.
        """
        with self.bucket.asking:
            if self.bucket.time is not None:
                asked, answer = self.bucket.time
                if (since := time.monotonic() - asked) < CLOCK_SECONDS:
                    return answer + timedelta(seconds=since)
            asked = time.monotonic()
            with self._translated("get the time of", ""):
                stamp = self._server_date()
            if stamp is None:
                return datetime.now(UTC)
            answer = parsedate_to_datetime(stamp).astimezone(UTC)
            self.bucket.time = asked, answer
            return answer

    def _children(self, prefix: str) -> Iterable[Entry]:
        self._fs.invalidate_cache(prefix)  # a given filesystem may have a cache
        for item in self._fs.ls(prefix, detail=True):
            if str(item["name"]).strip("/") != prefix.strip("/"):  # the directory's own marker
                yield _entry(item)

    def _descendants(self, prefix: str) -> Iterable[Entry]:
        raise NotImplementedError

    def _read(self, path: str, end: int | None) -> bytes:
        try:
            # without a start, s3fs requests the size first
            body: bytes = self._fs.cat_file(path, start=0, end=end)
        except Exception as error:
            if client_errors.is_empty_range(error):
                return b""  # a range of an empty object is always refused
            raise
        return body

    def _create(self, path: str, body: bytes) -> None:
        self._fs.pipe_file(path, body, mode="create")

    def _put(self, path: str, body: bytes) -> None:
        self._fs.pipe_file(path, body)

    def _delete(self, path: str) -> None:
        self._fs.rm_file(path)

    def _server_date(self) -> str | None:
        """Return the `Date` header of an answer of the server; None if it has none."""
        return None

    def _is_bucket_missing(self, verb: str, error: Exception) -> bool:  # noqa: ARG002  for GCS
        return client_errors.is_bucket_missing(error)

    def _too_large(self, key: str, max_bytes: int) -> TooLargeError:
        return TooLargeError(
            f"{self._location.at(key)} holds more than the {max_bytes} bytes that are read."
        )

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    @contextlib.contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Translate the exceptions of clients into the errors of this package."""
        where = self._location.at(key)
        try:
            yield
        except TuneRestoreError:
            raise
        except Exception as error:  # every client has its own classes
            if self._is_bucket_missing(verb, error):
                bucket = self._root.partition("/")[0]
                raise StorageError(
                    f"Cannot {verb} {where}: the bucket {bucket!r} does not exist. "
                    "Check its name, and the account of the credentials."
                ) from error
            if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                raise KeyNotFoundError(self.uri, key) from error
            if verb == "create" and client_errors.is_taken(error):
                raise KeyExistsError(self.uri, key) from error
            raise StorageError(f"Cannot {verb} {where}: {client_errors.explain(error)}") from error


def split_bucket(place: str) -> tuple[str, str]:
    """Return the bucket of a place, and the prefix of the keys below it, with its slash."""
    bucket, _, below = place.partition("/")
    return bucket, f"{below}/" if below else ""


def prefix_entry(key: str, below: str) -> Entry:
    """Return the entry of a prefix in a listing of the keys that start with `below`."""
    return Entry(key.removeprefix(below).rstrip("/"), is_dir=True)


def object_entry(key: str, below: str, size_bytes: int, modified: Any, etag: str) -> Entry:
    """Return the entry of an object in such a listing."""
    name, etag = key.removeprefix(below), etag.strip('"')
    return Entry(name, size_bytes=size_bytes, modified_at=as_time(modified), etag=etag)


def _entry(item: dict[str, Any]) -> Entry:
    """Read one entry of a listing; fsspec's filesystems do not agree on the name of the time."""
    times = ("LastModified", "last_modified", "updated", "mtime", "created")
    modified = next((item[name] for name in times if item.get(name)), None)
    is_dir = item["type"] == "directory" or str(item["name"]).endswith("/")
    return Entry(
        name=str(item["name"]).strip("/").rpartition("/")[2],
        is_dir=is_dir,
        size_bytes=0 if is_dir else int(item.get("size") or 0),
        modified_at=None if is_dir else as_time(modified),
        etag=str(item.get("ETag") or item.get("etag") or "").strip('"'),
    )
