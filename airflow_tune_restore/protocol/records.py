"""Reading records of this package from storage, within limits. Standard library only."""

from collections.abc import Callable
from typing import TypeVar

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LinkRefusedError,
    RecordUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import ObjectStore

_Record = TypeVar("_Record")

MAX_HEARTBEAT_BYTES = 65536
"""Size limit of a heartbeat, which holds a few numbers."""


def read_record(
    store: ObjectStore,
    key: str,
    parse: Callable[[bytes], _Record],
    *,
    max_bytes: int = layout.MAX_RECORD_BYTES,
) -> _Record:
    """Read a record (KeyNotFoundError if it does not exist, RecordUnreadableError if it is not valid)."""
    try:
        return parse(store.get(key, max_bytes=max_bytes))
    except TooLargeError as error:
        raise RecordUnreadableError(store.uri, key, str(error).rstrip(".")) from error
    except LinkRefusedError as error:
        raise RecordUnreadableError(store.uri, key, f"{error.path} is a link") from error
    except (ValueError, TypeError, RecursionError) as error:
        reason = printable(str(error), 200) or type(error).__name__
        raise RecordUnreadableError(store.uri, key, reason) from error


def is_listed(store: ObjectStore, key: str) -> bool:
    """Whether the listing of its directory has an object. It is not read: it may be a large one."""
    directory, _, name = key.rpartition("/")
    return any(entry.name == name for entry in store.list_dir(directory))


def read_heartbeat(store: ObjectStore, key: str) -> bytes | None:
    """Read an object that a running process overwrites; None if it does not exist.

    Only its changes count. An object that is too large, or a link, counts as one that never changes.
    """
    try:
        return store.get(key, max_bytes=MAX_HEARTBEAT_BYTES)
    except KeyNotFoundError:
        return None
    except (TooLargeError, LinkRefusedError):
        return b""
