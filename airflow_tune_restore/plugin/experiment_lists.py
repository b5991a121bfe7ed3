"""The experiments below each prefix, kept for a while. Of browsers that ask at once, one has it read."""

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.plugin.lease_holders import ask_database
from airflow_tune_restore.plugin.places import Places
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.quarantine import Quarantine, read_quarantines
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.views.best_values import BestValues
from airflow_tune_restore.views.experiments import list_experiments


class _Scanned(NamedTuple):
    """A scan of one prefix; `began` is by the clock of this process."""

    began: float
    at: datetime
    store: ObjectStore
    found: Sequence[Quarantine]


class ExperimentLists:
    """Lists the experiments below the configured prefixes.

    A scan is kept for the `cache_seconds` of the settings. The best values of its experiments are read
    beside it, so a list of the same scan may have more of them.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        # one for each prefix: a store that does not answer holds up the values of no other one
        self._best_values: defaultdict[str, BestValues] = defaultdict(BestValues)
        self._kept: dict[str, _Scanned] = {}
        self._forgotten: dict[str, float] = {}
        self._scanning: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def read(self, prefix: str, *, fresh: bool = False) -> dict[str, Any]:
        """Return the experiments below a prefix; the scan of a fresh list began after the call.

        Raises:
            StorageError: If the prefix cannot be opened, or does not answer.
        """
        asked = self._places.monotonic()
        oldest = asked if fresh else asked - self._places.settings.cache_seconds
        with self._scanning[prefix]:
            kept = self._kept.get(prefix)
            is_known = kept is not None and kept.began > self._forgotten.get(prefix, -math.inf)
            if kept is None or not is_known or kept.began < oldest:
                kept = self._kept[prefix] = self._scan(prefix)
            best_values = self._best_values[prefix]
        listed = list_experiments(
            kept.store, kept.found, best_values, prefix=prefix, scanned_at=kept.at
        )
        return listed | {"address": printable(str(self._places.address(prefix)))}

    def forget(self, prefix: str) -> None:
        """Scan a prefix again when it is asked for: an experiment has changed."""
        self._forgotten[prefix] = self._places.monotonic()  # of a scan that runs now, too

    def _scan(self, prefix: str) -> _Scanned:
        began = self._places.monotonic()
        store = self._places.open_prefix(prefix)
        at = store.now()
        stale_after = timedelta(seconds=self._places.settings.stale_after)
        found = read_quarantines(
            store, scan(store, stale_after=stale_after, ask_holder=ask_database)
        )
        return _Scanned(began, at, store, found)
