"""The listing of an experiment's root, and when it was made."""

from datetime import datetime
from typing import NamedTuple

from airflow_tune_restore.storage.base import Entry, ObjectStore


class Root(NamedTuple):
    """A listing of an experiment's root, and the time by the store's clock just before it was made.

    So if this process freezes between the two, the experiment looks younger than it is, never older.
    """

    entries: list[Entry]
    now: datetime


def list_root(store: ObjectStore) -> Root:
    """List the root of a store."""
    now = store.now()
    return Root(store.list_dir(), now)
