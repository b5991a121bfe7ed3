"""Progress that the runner writes for followers, and stop requests that it reads from them.

A follower reads one small object; the runner lists one directory. Both happen every few seconds, in a
thread, so that a slow store does not slow down the training.
"""

import logging
import threading
from collections import defaultdict, deque

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress, RunnerRequest
from airflow_tune_restore.storage.base import ObjectStore

FLUSH_SECONDS = 2.0
KEPT_REPORTS = 200
"""Enough for a follower that reads every few seconds."""

logger = logging.getLogger(__name__)


class Reporter:
    """Writes progress for followers, and reads their stop requests, until it is stopped.

    Args:
        store: Rooted at the experiment directory.
        request: The attempt that this process runs.
        attempt: The attempt of the trials, if they have others than this process.
    """

    def __init__(
        self, store: ObjectStore, request: RunnerRequest, attempt: int | None = None
    ) -> None:
        self._store = store
        self._request = request
        self._attempt = attempt or request.attempt
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._reports: dict[str, deque[RunnerProgress]] = defaultdict(
            lambda: deque(maxlen=KEPT_REPORTS)
        )
        self._counts: dict[str, int] = defaultdict(int)
        self._unwritten: dict[str, None] = {}  # in order, unlike a set
        self._stops: set[str] = set()
        self._taken: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write the last progress and stop the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def add(self, owner: str, progress: RunnerProgress) -> None:
        """Keep a result for the task that follows `owner`, a trial id in the plan."""
        with self._lock:
            self._reports[owner].append(progress)
            self._counts[owner] += 1
            self._unwritten[owner] = None

    def forget(self, owner: str) -> None:
        """Drop the results of a trial that has its outcome."""
        with self._lock:
            self._reports.pop(owner, None)
            self._counts.pop(owner, None)
            self._unwritten.pop(owner, None)

    def new_stop_requests(self) -> list[str]:
        """Return the ids of trials that were asked to stop since the last call."""
        with self._lock:
            wanted = sorted(self._stops - self._taken)
            self._taken.update(wanted)
        return wanted

    def flush(self) -> None:
        """Write all results that were added before this call.

        One thread at a time, so that an older record never replaces a newer one. Call it before the
        outcome of a trial is written.
        """
        with self._writing:
            while (owner := self._next_owner()) is not None:
                try:
                    self._write(owner)
                except BaseException:
                    with self._lock:
                        self._unwritten[owner] = None
                    raise

    def _next_owner(self) -> str | None:
        with self._lock:
            return self._unwritten.popitem()[0] if self._unwritten else None

    def _write(self, owner: str) -> None:
        request = self._request
        with self._lock:
            kept = list(self._reports[owner])
            tail = ProgressTail(first=self._counts[owner] - len(kept), reports=kept)
        key = layout.progress_key(request.restore_id, owner, self._attempt)
        self._store.put(key, tail.to_json())

    def _run(self) -> None:
        while True:
            ending = self._stopped.wait(FLUSH_SECONDS)
            try:
                self.flush()
                if self._request.trial_id == layout.WHOLE_EXPERIMENT:
                    self._read_stop_requests()
            except (TuneRestoreError, OSError) as error:
                logger.warning(
                    "The progress could not be written; it will be tried again: %s", error
                )
            if ending:
                return

    def _read_stop_requests(self) -> None:
        directory = layout.stops_dir(self._request.restore_id, self._request.attempt)
        names = [entry.name.removesuffix(".json") for entry in self._store.list_dir(directory)]
        with self._lock:
            self._stops.update(map(layout.unsegment, names))
