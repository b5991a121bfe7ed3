"""Finds the token of a task in texts, in files, and in all processes of this machine."""

import base64
import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

_TOKEN = re.compile(rb"eyJ[\w-]+\.(eyJ[\w-]+)\.[\w-]+")


def has_token(text: bytes, task_uuid: str) -> bool:
    """Return whether there is a token of a task instance in a text; others may have theirs in it."""
    return any(task_uuid in _claims(match[1]).values() for match in _TOKEN.finditer(text))


def _claims(part: bytes) -> dict[str, object]:
    with contextlib.suppress(ValueError):
        return json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    return {}


def files_with_token(directory: Path, task_uuid: str) -> list[Path]:
    """Return the files below a directory that have it, packed ones, too."""
    return [
        path
        for path in directory.rglob("*")
        if any(has_token(text, task_uuid) for text in _contents(path))
    ]


def _contents(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # it was removed, or it is a socket
        if path.is_file():
            yield path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from (archive.read(name) for name in archive.namelist())


def processes_with_token(task_uuid: str) -> list[int]:
    """Return the processes that show it in their command or their environment."""
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if any(has_token(_shown(process / name), task_uuid) for name in ("cmdline", "environ"))
    ]


def _shown(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""
