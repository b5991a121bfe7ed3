"""An `ObjectStore` on a local or mounted disk."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BufferedReader
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

_NOWHERE = (errno.ELOOP, errno.EACCES)
"""A link leads to itself, or to where we may not look."""


class LocalStore:
    """A directory on a local or mounted disk."""

    def __init__(self, root: Path, top: Path | None = None) -> None:
        self._root = root
        self._top = top or root

    @property
    def uri(self) -> str:
        """The absolute path."""
        return self._root.as_posix()

    def at(self, path: str) -> "LocalStore":
        """Return the store rooted at `path` below this one."""
        return LocalStore(self._path(path), self._top)

    def list_dir(self, path: str = "") -> list[Entry]:
        """Return the direct children of `path`, sorted by name."""
        directory = self._path(path)
        try:
            with os.scandir(directory) as found:
                entries = [
                    self._entry(item) for item in found if not item.name.startswith(TEMPORARY)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"Cannot list {directory}: {error.strerror}.") from error
        return sorted((e for e in entries if e is not None), key=lambda entry: entry.name)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object."""
        with self._opened(key, max_bytes) as (file, size):
            return file.read(size)

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece; a file that is replaced meanwhile is read to its own end."""
        with self._opened(key, max_bytes) as (file, left):
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

    def _entry(self, item: "os.DirEntry[str]") -> Entry | None:
        try:
            if item.is_dir():  # which the listing itself says
                return Entry(name=item.name, is_dir=True, is_link=self._is_link(item))
            status = item.stat()
        except FileNotFoundError:
            return None  # deleted while we looked, or a link to nothing
        except OSError as error:
            if error.errno not in _NOWHERE:
                raise  # without its time, what is written to might look dead
            return Entry(name=item.name, is_dir=False)  # who reads it is told, and nobody else
        if not stat.S_ISREG(status.st_mode):
            return None  # a pipe or a device has no content that could be read to its end
        return Entry(
            name=item.name,
            is_dir=False,
            size_bytes=status.st_size,
            modified_at=_as_time(status.st_mtime),
            etag=f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}",
        )

    def _is_link(self, item: "os.DirEntry[str]") -> bool:
        """Whether a directory lies elsewhere in the store that was opened, or above it."""
        if not item.is_symlink():
            return False
        top, real = Path(os.path.realpath(self._top)), Path(os.path.realpath(item.path))
        return real.is_relative_to(top) or top.is_relative_to(real)

    def _path(self, key: str) -> Path:
        """Return where a key lies: always below the root, whoever made the key."""
        if key.startswith("/") or ".." in PurePosixPath(key).parts:
            raise InvalidInputError(f"{key!r} leads out of {self.uri}.")
        return self._root / key

    @contextlib.contextmanager
    def _opened(self, key: str, max_bytes: int | None) -> Iterator[tuple[BufferedReader, int]]:
        """Open a file, and say how much of it is read: whoever appends meanwhile is not followed."""
        path = self._path(key)
        try:
            with open(path, "rb", opener=_open_at_once) as file:  # noqa: PTH123  Path's takes no opener
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise KeyNotFoundError(
                        self.uri, key
                    )  # a pipe, a device: no object, as in listings
                size = status.st_size
                if max_bytes is not None and size > max_bytes:
                    raise TooLargeError(f"{path} holds {size} bytes; at most {max_bytes} are read.")
                yield file, size
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


def _as_time(seconds: float) -> datetime | None:
    """Return when a file was written; None where that is no year of ours, which disks may hold."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


if TYPE_CHECKING:
    _fits: ObjectStore = LocalStore(Path())
