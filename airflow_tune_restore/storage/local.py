"""An `ObjectStore` on a local or mounted disk."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    StorageError,
    TooLargeError,
)
from airflow_tune_restore.storage.base import PIECE_BYTES, Entry, ObjectStore

TEMPORARY = ".tmp-"
"""Names of half-written files; listings leave them out."""


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
        return LocalStore(self._path(path))

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, sorted by name."""
        directory = self._path(path)
        try:
            with os.scandir(directory) as found:
                entries = [_entry(item) for item in found if not item.name.startswith(TEMPORARY)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"Cannot list {directory}: {error.strerror}.") from error
        return sorted((e for e in entries if e is not None), key=lambda entry: entry.name)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object."""
        with self._opened(key, max_bytes) as file:
            return file.read()

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece; a file that is replaced meanwhile is read to its own end."""
        with self._opened(key, max_bytes) as file:
            left = max_bytes  # whoever appends to it meanwhile is not followed beyond
            while piece := file.read(min(left, PIECE_BYTES)):
                left -= len(piece)
                yield piece

    def create(self, key: str, body: bytes) -> None:
        """Write a new object. A hard link of a whole temporary file: atomic, and exclusive."""
        with self._temporary(key, body) as temporary:
            try:
                os.link(temporary, self._path(key))
            except FileExistsError as error:
                # NFS repeats a request whose answer was lost, and is told that its own link exists
                if temporary.stat().st_nlink < 2:  # noqa: PLR2004
                    raise KeyExistsError(self.uri, key) from error
            finally:
                temporary.unlink()

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object."""
        with self._temporary(key, body) as temporary:
            temporary.replace(self._path(key))

    def delete(self, key: str) -> None:
        """Delete an object."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return  # below a file there is nothing
        except OSError as error:
            raise StorageError(f"Cannot delete {path}: {error.strerror}.") from error

    def now(self) -> datetime:
        """Return this machine's time: a disk has no clock of its own."""
        return datetime.now(UTC)

    def _path(self, key: str) -> Path:
        """Return where a key lies: always below the root, whoever made the key."""
        if key.startswith("/") or ".." in PurePosixPath(key).parts:
            raise InvalidInputError(f"{key!r} leads out of {self.uri}.")
        return self._root / key

    @contextlib.contextmanager
    def _opened(self, key: str, max_bytes: int | None) -> Iterator[FileIO]:
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if max_bytes is not None and size > max_bytes:
                    raise TooLargeError(f"{path} holds {size} bytes; at most {max_bytes} are read.")
                yield file
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise KeyNotFoundError(self.uri, key) from error
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror}.") from error

    @contextlib.contextmanager
    def _temporary(self, key: str, body: bytes) -> Iterator[Path]:
        """Write the whole body beside its target, on the disk before it gets its name."""
        target = self._path(key)
        temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StorageError(f"Cannot write {target}: {error.strerror}.") from error


def _entry(item: "os.DirEntry[str]") -> Entry | None:
    if item.is_dir():  # which the listing itself says
        return Entry(name=item.name, is_dir=True)
    try:
        status = item.stat()
    except FileNotFoundError:
        return None  # deleted while we looked
    return Entry(
        name=item.name,
        is_dir=False,
        size_bytes=status.st_size,
        modified_at=datetime.fromtimestamp(status.st_mtime, UTC),
        etag=f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}",
    )


if TYPE_CHECKING:
    _fits: ObjectStore = LocalStore(Path())
