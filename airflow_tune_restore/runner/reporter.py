"""Progress that the runner writes for followers, and stop requests that it reads from them.

A follower reads one small object; the runner lists one directory. Both happen every few seconds, in a
thread, so that a slow store does not slow down the training.
"""

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Sequence

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.record_fields import OUTPUT_LENGTH
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress, RunnerRequest
from airflow_tune_restore.storage.base import ObjectStore

FLUSH_SECONDS = 2.0
KEPT_REPORTS = KEPT_LINES = 200
"""Enough for a follower that reads every few seconds."""

logger = logging.getLogger(__name__)


class _Kept:
    """Reports and lines that the follower of one trial may read."""

    def __init__(self) -> None:
        self.reports: deque[RunnerProgress] = deque(maxlen=KEPT_REPORTS)
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.report_count = self.line_count = 0

    def tail(self) -> ProgressTail:
        return ProgressTail(
            first=self.report_count - len(self.reports),
            reports=list(self.reports),
            lines=list(self.lines),
            first_line=self.line_count - len(self.lines),
        )


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
        self._kept: dict[str, _Kept] = defaultdict(_Kept)
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
            kept = self._kept[owner]
            kept.reports.append(progress)
            kept.report_count += 1
            self._unwritten[owner] = None

    def add_lines(self, owner: str, lines: Sequence[str]) -> None:
        """Keep lines that a trial printed, for the same task."""
        shown = [printable(line, OUTPUT_LENGTH) for line in lines]
        with self._lock:
            kept = self._kept[owner]
            kept.lines.extend(shown)
            kept.line_count += len(shown)
            self._unwritten[owner] = None

    def forget(self, owner: str) -> None:
        """Drop what is kept of a trial that has its outcome."""
        with self._lock:
            self._kept.pop(owner, None)
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
            tail = self._kept[owner].tail()
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
