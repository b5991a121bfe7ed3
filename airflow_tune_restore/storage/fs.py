"""An `ObjectStore` over the local disk, and one over any fsspec filesystem.

Credentials come from the environment, or inside an already authenticated filesystem (an Airflow
connection); never from a URI. Nothing is listed from a cache.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    StorageError,
    TuneRestoreError,
)
from airflow_tune_restore.storage.base import Entry, ObjectStore

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TEMPORARY = ".tmp-"
"""Names of half-written local files; listings leave them out."""

ONE_PUT_BYTES = 2 * 1024**3
"""Conditions hold for single puts only (they race on multipart completion), so none is ever split."""

_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure",
}  # fmt: skip
_S3 = frozenset({"s3", "s3a"})


def open_store(uri: str, *, filesystem: "AbstractFileSystem | None" = None) -> ObjectStore:
    """Open the store rooted at a path or URL.

    Args:
        uri: A local path, or any URL fsspec knows, without credentials.
        filesystem: An authenticated fsspec filesystem to use instead of the environment.

    Raises:
        InvalidInputError: If the URL cannot be used, or needs a package that is not installed.
    """
    if not uri.strip():
        raise InvalidInputError("The experiment URL is empty.")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        path = Path(rest if separator else uri).expanduser()
        return LocalStore(Path(os.path.abspath(path)))  # noqa: PTH100  resolve() would follow links
    if "@" in urlsplit(uri).netloc:
        raise InvalidInputError(
            f"{scheme}://…@… names a user or an Airflow connection, which only works inside Airflow. "
            "Here credentials come from the environment; give the URL without the part before '@'."
        )
    root = rest.strip("/")
    return FsspecStore(filesystem or _filesystem(scheme, root.partition("/")[0]), scheme, root)


def _filesystem(scheme: str, bucket: str) -> "AbstractFileSystem":
    import fsspec

    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        if scheme in _S3 and (over_arrow := _s3_over_arrow(bucket)) is not None:
            return over_arrow
        extra = _EXTRAS.get(scheme)
        hint = f" Install it: pip install 'airflow-tune-restore[{extra}]'." if extra else ""
        raise InvalidInputError(
            f"{scheme}:// needs a package that is missing: {error}.{hint}"
        ) from error
    except ValueError as error:
        raise InvalidInputError(f"{scheme}:// cannot be opened: {error}.") from error


def _s3_over_arrow(bucket: str) -> "AbstractFileSystem | None":
    """Open S3 through pyarrow: a Ray image has pyarrow, but not always s3fs. Cannot `create`."""
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem
    except ImportError:
        return None
    # from_uri, as Ray does it: the constructor does not look at AWS_ENDPOINT_URL
    return ArrowFSWrapper(FileSystem.from_uri(f"s3://{bucket}")[0])


class LocalStore:
    """A directory on a local or mounted disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def uri(self) -> str:
        """The absolute path."""
        return self._root.as_posix()

    def at(self, path: str) -> "LocalStore":
        """Return the store rooted at `path` below this one."""
        return LocalStore(self._root / path)

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, sorted by name."""
        try:
            with os.scandir(self._root / path) as found:
                entries = [
                    _local_entry(item) for item in found if not item.name.startswith(TEMPORARY)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"Cannot list {self._root / path}: {error.strerror}.") from error
        return sorted((e for e in entries if e is not None), key=lambda entry: entry.name)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object."""
        path = self._root / key
        try:
            size = path.stat().st_size
            if max_bytes is not None and size > max_bytes:
                raise StorageError(f"{path} holds {size} bytes; at most {max_bytes} are read.")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise KeyNotFoundError(self.uri, key) from error
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror}.") from error

    def create(self, key: str, body: bytes) -> None:
        """Write a new object. A hard link of a whole temporary file: atomic, and exclusive."""
        with self._temporary(key, body) as temporary:
            try:
                os.link(temporary, self._root / key)
            except FileExistsError as error:
                raise KeyExistsError(self.uri, key) from error
            finally:
                temporary.unlink()

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object."""
        with self._temporary(key, body) as temporary:
            temporary.replace(self._root / key)

    def delete(self, key: str) -> None:
        """Delete an object."""
        try:
            (self._root / key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"Cannot delete {self._root / key}: {error.strerror}.") from error

    def now(self) -> datetime:
        """Return this machine's time: a disk has no clock of its own."""
        return datetime.now(UTC)

    @contextlib.contextmanager
    def _temporary(self, key: str, body: bytes) -> Iterator[Path]:
        """Write the whole body beside its target, on the disk before it gets its name."""
        target = self._root / key
        temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"Cannot write {target}: {error.strerror}.") from error


def _local_entry(item: "os.DirEntry[str]") -> Entry | None:
    try:
        status = item.stat()
    except FileNotFoundError:
        return None  # deleted while we looked
    is_dir = item.is_dir()
    return Entry(
        name=item.name,
        is_dir=is_dir,
        size_bytes=0 if is_dir else status.st_size,
        modified_at=datetime.fromtimestamp(status.st_mtime, UTC),
        etag="" if is_dir else f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}",
    )


class FsspecStore:
    """A prefix in an object store behind fsspec."""

    def __init__(self, filesystem: "AbstractFileSystem", scheme: str, root: str) -> None:
        self._fs = filesystem
        self._scheme = scheme
        self._root = root

    @property
    def uri(self) -> str:
        """The root as a URL."""
        return f"{self._scheme}://{self._root}"

    def at(self, path: str) -> "FsspecStore":
        """Return the store rooted at `path` below this one."""
        return FsspecStore(self._fs, self._scheme, self._path(path))

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, sorted by name."""
        prefix = self._path(path)
        try:
            with self._translated("list", path):
                self._fs.invalidate_cache(prefix)
                found = self._fs.ls(prefix, detail=True)
        except KeyNotFoundError:
            return []
        entries: dict[str, Entry] = {}
        for item in found:
            entry = _entry(item, prefix)
            # a prefix and its zero-byte marker are one directory
            if entry is not None and (entry.is_dir or entry.name not in entries):
                entries[entry.name] = entry
        return sorted(entries.values(), key=lambda entry: entry.name)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object; of one that is too large, a byte too many is read at most."""
        with self._translated("read", key):
            body = self._read(self._path(key), None if max_bytes is None else max_bytes + 1)
        if max_bytes is not None and len(body) > max_bytes:
            raise StorageError(
                f"{self.uri}/{key} holds more than the {max_bytes} bytes that are read."
            )
        return body

    def create(self, key: str, body: bytes) -> None:
        """Write a new object by a conditional put."""
        self._refuse_unless_exclusive()
        path = self._path(key)
        try:
            with self._translated("create", key):
                self._fs.pipe_file(path, body, mode="create", **self._one_put())
        except KeyExistsError:
            # a client that retries its own successful put is told that the object exists
            if self.get(key) != body:
                raise

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object."""
        with self._translated("write", key):
            self._fs.pipe_file(self._path(key), body, **self._one_put())

    def delete(self, key: str) -> None:
        """Delete an object."""
        with contextlib.suppress(KeyNotFoundError), self._translated("delete", key):
            self._fs.rm_file(self._path(key))

    def now(self) -> datetime:
        """Return the server's time where it is cheap to ask, else this machine's."""
        if self._scheme in _S3 and hasattr(self._fs, "call_s3"):
            with self._translated("ask the time of", ""):
                answer = self._fs.call_s3("head_bucket", Bucket=self._root.partition("/")[0])
            stamp = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            if stamp:
                return parsedate_to_datetime(stamp).astimezone(UTC)
        return datetime.now(UTC)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _read(self, path: str, end: int | None) -> bytes:
        if self._is_arrow:
            with self._fs.open(path, "rb") as file:  # its cat_file seeks, which a stream cannot
                body: bytes = file.read() if end is None else file.read(end)
                return body
        try:
            body = self._fs.cat_file(path, end=end)
        except Exception as error:
            if end is None or not _is_empty_range(error):
                raise
            return b""  # no byte of an empty object satisfies a range
        return body

    @property
    def _is_arrow(self) -> bool:
        return type(self._fs).__name__ == "ArrowFSWrapper"

    def _one_put(self) -> dict[str, Any]:
        """Keep clients that split large bodies from doing so."""
        splits = self._scheme in {*_S3, "gs", "gcs"} and not self._is_arrow
        return {"chunksize": ONE_PUT_BYTES} if splits else {}

    def _refuse_unless_exclusive(self) -> None:
        if self._is_arrow:
            raise StorageError(
                f"{self.uri} is open through pyarrow, which cannot create exclusively. "
                "Install s3fs: pip install 'airflow-tune-restore[s3]'."
            )

    @contextlib.contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Turn whatever a client raises into our errors; every client has a tree of its own."""
        where = f"{self.uri}/{key}".rstrip("/")
        try:
            yield
        except TuneRestoreError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if "bucket" in str(error).lower():
                bucket = self._root.partition("/")[0]
                raise StorageError(
                    f"Cannot {verb} {where}: there is no bucket {bucket!r}."
                ) from error
            raise KeyNotFoundError(self.uri, key) from error
        except Exception as error:  # noqa: BLE001
            if verb == "create" and _is_taken(error):
                raise KeyExistsError(self.uri, key) from error
            raise StorageError(f"Cannot {verb} {where}: {_explain(error)}") from error


def _entry(item: dict[str, Any], prefix: str) -> Entry | None:
    path = str(item["name"]).strip("/")
    if path == prefix.strip("/"):
        return None  # the marker of the directory itself
    modified = next(
        (
            item[k]
            for k in ("LastModified", "last_modified", "updated", "mtime", "created")
            if item.get(k)
        ),
        None,
    )
    is_dir = item["type"] == "directory" or str(item["name"]).endswith("/")
    return Entry(
        name=path.rpartition("/")[2],
        is_dir=is_dir,
        size_bytes=0 if is_dir else int(item.get("size") or 0),
        modified_at=None if is_dir else _as_time(modified),
        etag=str(item.get("ETag") or item.get("etag") or "").strip('"'),
    )


def _as_time(value: Any) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _is_taken(error: BaseException) -> bool:
    """Whether a failed create means that the object exists: every client says it in its own way."""
    if isinstance(error, FileExistsError):
        return True  # s3fs on AWS, gcsfs, adlfs
    text = f"{type(error).__name__} {error}"
    # s3fs on SeaweedFS gives EINVAL with the server's words; 409 is AWS telling of a race
    words = ("PreconditionFailed", "pre-conditions", "precondition", "ResourceExists", "Conflict")
    return any(word.lower() in text.lower() for word in words)


def _is_empty_range(error: Exception) -> bool:
    """Whether a server refused the range because the object is empty."""
    text = str(error)
    return "InvalidRange" in text or "416" in text or "not satisfiable" in text.lower()


def _explain(error: BaseException) -> str:
    """Say in a sentence what a client's exception means, and what to do."""
    name, text = type(error).__name__, " ".join(str(error).split())[:300]
    if isinstance(error, PermissionError) or name in (
        "NoCredentialsError",
        "ClientAuthenticationError",
    ):
        return f"access was denied ({text or name}). Check the credentials and their rights."
    if "Connect" in name or "Timeout" in name or isinstance(error, TimeoutError | ConnectionError):
        return f"the store does not answer ({text or name}). Check its address and the network."
    return f"{text or name}."


def check_exclusive_create(store: ObjectStore) -> None:
    """Refuse a store that lets two creators of one key both win; leases would be worth nothing there.

    Raises:
        StorageError: If it does.
    """
    key = f".tune_restore/selftest-{secrets.token_hex(8)}"
    store.create(key, b"first")
    try:
        store.create(key, b"second")
    except KeyExistsError:
        return
    finally:
        store.delete(key)
    raise StorageError(
        f"{store.uri} does not create objects exclusively, so two restores could run at once. "
        "Use a store with conditional puts (AWS S3, MinIO, SeaweedFS, GCS, Azure) or a local disk."
    )


if TYPE_CHECKING:
    _local: ObjectStore = LocalStore(Path())
    _object: ObjectStore = FsspecStore(AbstractFileSystem(), "", "")
