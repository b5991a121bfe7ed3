"""Reading our own records back: bounded, and garbage is an error with a name. Standard library only."""

from collections.abc import Callable
from typing import TypeVar

from airflow_tune_restore.exceptions import RecordUnreadableError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.printable import printable
from airflow_tune_restore.storage.base import ObjectStore

_Record = TypeVar("_Record")


def read_record(
    store: ObjectStore,
    key: str,
    parse: Callable[[bytes], _Record],
    *,
    max_bytes: int = layout.MAX_RECORD_BYTES,
) -> _Record:
    """Read one of our records.

    Raises:
        KeyNotFoundError: If it does not exist.
        RecordUnreadableError: If it is none of ours, or damaged.
    """
    body = store.get(key, max_bytes=max_bytes)
    try:
        return parse(body)
    except (ValueError, TypeError, RecursionError) as error:
        reason = printable(str(error), 200) or type(error).__name__
        raise RecordUnreadableError(store.uri, key, reason) from error
