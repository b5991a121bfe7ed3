"""An `ObjectStore` on a local or mounted disk.

Anyone who can write to a shared disk can create links there. In Ray's files links are followed, as Ray
does. Below `.tune_restore` links are never followed, whether to read, write or delete: each directory on
the way is opened by itself (`O_NOFOLLOW`), so that it cannot be replaced by a link between check and use.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    LinkRefusedError,
    StorageError,
    TooLargeError,
)
from airflow_tune_restore.storage.base import (
    ERROR_FILE,
    OWN_DIRECTORY,
    PIECE_BYTES,
    Entry,
    ObjectStore,
    as_time,
)

TEMPORARY = ".tmp-"
"""Prefix of half-written files; listings leave them out."""

_CANNOT_BE_FOLLOWED = (errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a link that leads to itself, or to a name that a disk cannot hold: it leads nowhere."""

_DEEPEST = 8
"""How many levels a walk below `.tune_restore` goes down. Records lie five levels deep."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_ANY_FILE_MODE = 0o666


class _Place(NamedTuple):
    """The place of a key: an open directory and a name in it."""

    directory: int
    name: str


class LocalStore(ObjectStore):
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
        """Return the direct children of `path`, sorted by name.

        Raises:
            StorageError: If it cannot be listed; or LinkRefusedError, if a link below `.tune_restore`
                leads there.
        """
        directory = self._path(path)
        read = _own_entry if self._own_parts(directory) else self._entry
        try:
            with self._scanned(directory) as found:
                entries = [read(item) for item in found if not item.name.startswith(TEMPORARY)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _failure(f"list {directory}", error) from error
        return sorted((e for e in entries if e is not None), key=lambda entry: entry.name)

    def walk(self, path: str = "") -> Iterator[Entry]:
        """Yield all objects below `path`.

        Raises:
            StorageError: As `list_dir`.
        """
        if not self._own_parts(self._path(path)):
            yield from super().walk(path)
            return
        try:
            with self._opened_directory(self._path(path)) as top:
                # by open directories, and through no link
                for place, directories, names, here in os.fwalk(
                    ".", dir_fd=top, onerror=_unless_gone
                ):
                    self._refuse_links(path, place[2:], directories, here)
                    yield from _own_entries(place[2:], directories, names, here)
                    if place.count("/") >= _DEEPEST:
                        directories.clear()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _failure(f"list {self._path(path)}", error) from error

    def _refuse_links(self, path: str, place: str, directories: list[str], here: int) -> None:
        """Refuse a link to a directory, as the listing of the directory does (LinkRefusedError)."""
        for name in directories:
            if stat.S_ISLNK(_status(_Place(here, name)).st_mode):
                raise LinkRefusedError((self._path(path) / place / name).as_posix())

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the whole object."""
        with self._opened(key, max_bytes) as (file, size):
            return file.read(size)

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece; a file that is replaced meanwhile is still read to its end."""
        with self._opened(key, max_bytes) as (file, left):
            while piece := file.read(min(left, PIECE_BYTES)):
                left -= len(piece)
                yield piece

    def create(self, key: str, body: bytes) -> None:
        """Write a new object. A hard link of a whole temporary file: atomic, and exclusive."""
        with self._temporary(key, body) as (temporary, target):
            try:
                os.link(
                    temporary.name,
                    target.name,
                    src_dir_fd=temporary.directory,
                    dst_dir_fd=target.directory,
                    follow_symlinks=False,
                )
            except FileExistsError as error:
                # NFS repeats a request whose answer was lost, and then finds its own link
                if _status(temporary).st_nlink < 2:  # noqa: PLR2004
                    if stat.S_ISLNK(_status(target).st_mode):
                        raise LinkRefusedError(self._path(key).as_posix()) from error
                    raise KeyExistsError(self.uri, key) from error
            finally:
                os.unlink(temporary.name, dir_fd=temporary.directory)

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object; a link of its name is replaced, not followed."""
        with self._temporary(key, body) as (temporary, target):
            os.replace(
                temporary.name,
                target.name,
                src_dir_fd=temporary.directory,
                dst_dir_fd=target.directory,
            )

    def delete(self, key: str) -> None:
        """Delete an object; a link itself, not its target."""
        path = self._path(key)
        try:
            with self._opened_directory(path.parent) as directory:
                os.unlink(path.name, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return  # it is gone, or below a file, where nothing can be
        except OSError as error:
            raise _failure(f"delete {path}", error) from error

    def now(self) -> datetime:
        """Return this machine's time: a disk does not have its own clock."""
        return datetime.now(UTC)

    @contextlib.contextmanager
    def _scanned(self, path: Path) -> Iterator[Iterator["os.DirEntry[str]"]]:
        if not self._own_parts(path):
            with os.scandir(path) as found:
                yield found
            return
        with self._opened_directory(path) as directory, os.scandir(directory) as found:
            yield found

    def _entry(self, item: "os.DirEntry[str]") -> Entry | None:
        """Return one entry of a listing; None if it cannot hold content.

        A link that cannot be followed must not hide the other entries. But if this disk itself fails, the
        listing fails: without the times of writes, a live experiment would look dead.
        """
        try:
            if item.is_dir():  # known from the listing itself
                return self._directory_entry(item)
            status = item.stat()
        except FileNotFoundError:
            return None  # deleted meanwhile, or a link to nothing
        except OSError as error:
            if not item.is_symlink():
                raise
            if error.errno == errno.ENOTDIR:
                return None  # it leads through a file, so to nothing
            return Entry(name=item.name)  # an error only for its readers
        return _file_entry(item.name, status)

    def _directory_entry(self, item: "os.DirEntry[str]") -> Entry:
        """Return the entry of a directory; of a link, whether it leads inside this store, or where."""
        if not item.is_symlink():
            return Entry(name=item.name, is_dir=True)
        top, real = Path(os.path.realpath(self._top)), Path(os.path.realpath(item.path))
        if real.is_relative_to(top) or top.is_relative_to(real):
            return Entry(name=item.name, is_dir=True, is_link=True)
        return Entry(name=item.name, is_dir=True, place=real.as_posix())

    def _path(self, key: str) -> Path:
        """Return the path of a key, which is always below the root; keys are untrusted."""
        if key.startswith("/") or (".." in key and ".." in PurePosixPath(key).parts):
            raise InvalidInputError(f"{key!r} leads out of {self.uri}.")
        return self._root / key

    def _own_parts(self, path: Path) -> tuple[str, ...]:
        """Return the part of a path that starts with `.tune_restore`, below the root that was opened."""
        if OWN_DIRECTORY not in str(path):  # as nearly always, and ten times faster
            return ()
        parts = path.relative_to(self._top).parts
        return parts[parts.index(OWN_DIRECTORY) :] if OWN_DIRECTORY in parts else ()

    @contextlib.contextmanager
    def _opened_directory(self, path: Path, *, make: bool = False) -> Iterator[int]:
        """Open a directory, through links except below `.tune_restore`.

        Raises:
            LinkRefusedError: If there is a link below; OSError if it cannot be opened.
        """
        own = self._own_parts(path)
        base = path.parents[len(own) - 1] if own else path
        if make:
            base.mkdir(parents=True, exist_ok=True)
        directory = os.open(base, _DIRECTORY)
        try:
            for depth, name in enumerate(own):
                is_made = make and _make(name, directory)
                here = _Place(directory, name)
                above = directory
                directory = _open_unlinked(here, _DIRECTORY, base.joinpath(*own[: depth + 1]))
                try:
                    if is_made:
                        _give_to_owner_of(above, directory)
                finally:
                    os.close(above)
            yield directory
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def _opened(self, key: str, max_bytes: int | None) -> Iterator[tuple[BufferedReader, int]]:
        """Open a file, and return how much of it is read: bytes appended meanwhile are not."""
        path = self._path(key)
        try:
            # by an opener, because fdopen leaves the descriptor of a directory open
            with open(path, "rb", opener=lambda *_: self._open_file(path)) as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    # a pipe or a device is not an object, as in listings
                    raise KeyNotFoundError(self.uri, key)
                size = status.st_size
                if max_bytes is not None and size > max_bytes:
                    raise TooLargeError(f"{path} holds {size} bytes; at most {max_bytes} are read.")
                yield file, size
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise KeyNotFoundError(self.uri, key) from error
        except OSError as error:
            raise _failure(f"read {path}", error) from error

    def _open_file(self, path: Path) -> int:
        """Open a file without waiting for the other end of a pipe."""
        flags = os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if path.name == ERROR_FILE else 0)
        if not self._own_parts(path):
            return os.open(path, flags)
        with self._opened_directory(path.parent) as directory:
            return _open_unlinked(_Place(directory, path.name), flags, path)

    @contextlib.contextmanager
    def _temporary(self, key: str, body: bytes) -> Iterator[tuple[_Place, _Place]]:
        """Write the whole body to a file beside its target, and sync it before it gets its name."""
        path = self._path(key)
        try:
            with self._opened_directory(path.parent, make=True) as directory:
                temporary = _Place(directory, f"{TEMPORARY}{secrets.token_hex(8)}")
                try:
                    _write_new(temporary, body)
                    yield temporary, _Place(directory, path.name)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary.name, dir_fd=directory)
                    raise
        except OSError as error:
            raise _failure(f"write {path}", error) from error


def _failure(what: str, error: OSError) -> StorageError:
    """Return the error for an action that failed; a broken link differs from a failing disk."""
    kind = CannotBeFollowedError if error.errno in _CANNOT_BE_FOLLOWED else StorageError
    return kind(f"Cannot {what}: {error.strerror}.")


def _own_entry(item: "os.DirEntry[str]") -> Entry | None:
    """Return one entry of a listing below `.tune_restore`; of a link, only that its name is taken."""
    try:
        if item.is_dir(follow_symlinks=False):
            return Entry(name=item.name, is_dir=True)
        return _file_entry(item.name, item.stat(follow_symlinks=False))
    except FileNotFoundError:
        return None  # deleted meanwhile


def _unless_gone(error: OSError) -> None:
    """Raise the error of a directory that cannot be walked into, unless it was deleted meanwhile."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _own_entries(
    place: str, directories: list[str], names: list[str], here: int
) -> Iterator[Entry]:
    """Yield the files in one directory of a walk below `.tune_restore`; itself, if it is empty."""
    if place and not directories and not names:
        yield Entry(name=place, is_dir=True)
    for name in names:
        if name.startswith(TEMPORARY):
            continue
        try:
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
        except FileNotFoundError:
            continue  # deleted meanwhile
        if (entry := _file_entry(f"{place}/{name}".lstrip("/"), status)) is not None:
            yield entry


def _file_entry(name: str, status: os.stat_result) -> Entry | None:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None  # a pipe or a device has no end
    return Entry(
        name=name,
        size_bytes=status.st_size,
        modified_at=as_time(status.st_mtime),
        etag=f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}",
    )


def _open_unlinked(place: _Place, flags: int, path: Path) -> int:
    """Open a file or directory itself, without following a link.

    Raises:
        LinkRefusedError: If it is a link; OSError if it cannot be opened.
    """
    try:
        return os.open(place.name, flags | os.O_NOFOLLOW, dir_fd=place.directory)
    except OSError as error:
        # which of the two depends on whether a directory was wanted
        is_perhaps_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        if is_perhaps_link and stat.S_ISLNK(_status(place).st_mode):
            raise LinkRefusedError(path.as_posix()) from error
        raise


def _make(name: str, directory: int) -> bool:
    """Make a directory; return whether it was not there before."""
    try:
        os.mkdir(name, dir_fd=directory)
    except FileExistsError:
        return False
    return True


def _give_to_owner_of(directory: int, new: int) -> None:
    """Give a file or directory that root makes to the owner of its directory.

    A runner may have that account, and so may the driver of the next sweep.
    """
    if os.geteuid() == 0:
        owner = os.fstat(directory)
        # some disks forbid it, or the owner does not exist in this container
        with contextlib.suppress(OSError):
            os.fchown(new, owner.st_uid, owner.st_gid)


def _write_new(place: _Place, body: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(place.name, flags, _ANY_FILE_MODE, dir_fd=place.directory)
    with os.fdopen(descriptor, "wb") as file:
        _give_to_owner_of(place.directory, descriptor)
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _status(place: _Place) -> os.stat_result:
    return os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
