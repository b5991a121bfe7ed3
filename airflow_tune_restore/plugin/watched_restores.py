"""The restores that people watch: what a look has read of records that stay is kept for the next one."""

import threading
from collections import OrderedDict
from typing import Any

from airflow_tune_restore.plugin.places import Place
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.views.progress import RestoreProgress

MAX_RESTORES = 50
"""The first to go is the one that was looked at least lately."""


class WatchedRestores:
    """Looks at restores, and keeps the last ones. Threads may look at once."""

    def __init__(self) -> None:
        self._watched: OrderedDict[tuple[Place, str], RestoreProgress] = OrderedDict()
        self._lock = threading.Lock()

    def look(
        self, store: ObjectStore, place: Place, restore_id: str, ask_holder: AskHolder | None = None
    ) -> dict[str, Any]:
        """Return where each trial of a restore is now; raises as `RestoreProgress.look`."""
        key = (place, restore_id)
        with self._lock:
            if key not in self._watched:
                self._watched[key] = RestoreProgress(store, restore_id)
            self._watched.move_to_end(key)
            watched = self._watched[key]
            watched.store = store  # its credentials are newer
            while len(self._watched) > MAX_RESTORES:
                self._watched.popitem(last=False)
        return watched.look(ask_holder)
