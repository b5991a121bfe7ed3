"""The heartbeat of a runner: shows that it is alive, and ends it when another runner takes its place.

`protocol.attempts` has the rules that the order of reads and writes in `start` keeps. A slow store must
not keep a runner from ending in time, so a second thread, which makes no requests, watches the first.
"""

import json
import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from airflow_tune_restore.exceptions import KeyExistsError, LeaseLostError, TuneRestoreError
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.kept_lease import look_until_fresh
from airflow_tune_restore.protocol.records import is_listed
from airflow_tune_restore.protocol.request import EXIT_FENCED, RunnerRequest
from airflow_tune_restore.runner.outcome import now
from airflow_tune_restore.storage.base import ObjectStore

BEAT_SECONDS = 5.0

logger = logging.getLogger(__name__)


class FencedError(TuneRestoreError):
    """A newer attempt runs this trial, or the commit of its restore has begun."""


class Heartbeat:
    """Writes heartbeats in one thread, and checks in another that they are written in time.

    Args:
        store: Rooted at the experiment directory.
        request: The attempt.
        parent_pid: The process with which this one ends; None if it outlives it.
        before_end: Called right before this process ends at once: what it started must not write on.
    """

    def __init__(
        self,
        store: ObjectStore,
        request: RunnerRequest,
        parent_pid: int | None,
        before_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._request = request
        self._key = layout.heartbeat_key(request.restore_id, request.trial_id, request.attempt)
        self._parent_pid = parent_pid
        self._before_end = before_end
        self._count = 0
        self._nonce = secrets.token_hex(8)  # so that the store can recognise a repeated create
        self._runs_since = ""
        self._epoch = 0
        self._ttl_seconds = lease_objects.DEFAULT_TTL_SECONDS
        self._last_success = time.monotonic()
        self._looked_at = -math.inf
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="heartbeat-watch", daemon=True),
        ]

    def start(self) -> None:
        """Write the first heartbeat and start both threads; write nothing if this attempt must not run.

        Raises:
            FencedError: If there is a newer attempt, another runner of this one, or a commit.
            LeaseLostError: If the restore no longer holds the lease.
        """
        self._read_lease()
        self._create_first_beat()
        self.check()
        self._last_success = self._looked_at
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop both threads."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def mark_running(self) -> None:
        """Record in the next heartbeats that earlier attempts are over and this one runs the trial."""
        self._runs_since = now()

    def beat(self) -> None:
        """Write one heartbeat."""
        self._store.put(self._key, self._next_beat())

    def _create_first_beat(self) -> None:
        """Refuse a second runner of the same attempt: a deleted pod may still run on its node."""
        try:
            self._store.create(self._key, self._next_beat())
        except KeyExistsError:
            raise FencedError(
                f"Attempt {self._request.attempt} of trial {self._request.trial_id} stopped: another "
                "runner of the same attempt has started."
            ) from None

    def _next_beat(self) -> bytes:
        self._count += 1
        beat = {"count": self._count, "pid": os.getpid(), "at": now(), "nonce": self._nonce}
        return json.dumps({**beat, "runs_since": self._runs_since}).encode()

    def check(self) -> None:
        """Raise if this attempt must stop; otherwise renew the lease."""
        began = time.monotonic()
        lease.renew(self._store, self._read_lease())
        self._looked_at = began

    def _read_lease(self) -> lease_objects.Lease:
        """Return the lease, unless this attempt must stop.

        It must if it is not the newest, or if its restore has lost the lease or begun its commit.
        """
        request = self._request
        newest = AttemptRecords.of(self._store, request).newest()
        if newest > request.attempt:
            raise FencedError(
                f"Attempt {request.attempt} of trial {request.trial_id} stopped: attempt {newest} "
                "has been started."
            )
        held = lease.check_held(self._store, request.restore_id, epoch=self._epoch)
        if is_listed(self._store, layout.commit_key(request.restore_id)):
            raise FencedError(
                f"Attempt {request.attempt} of trial {request.trial_id} stopped: the commit of its "
                "restore has begun."
            )
        self._epoch, self._ttl_seconds = held.epoch, held.ttl_seconds
        return held

    def check_or_end(self) -> None:
        """End this process at once if this attempt must stop: none of its threads may write again.

        Its actors end, too: a private Ray ends with its driver, a cluster stops the job of a lost one.
        """
        try:
            self.check()
        except (FencedError, LeaseLostError) as error:
            self._end(error)

    def check_lately_or_end(self) -> None:
        """Do the same, unless it was done lately: this process may have been frozen since.

        Before each write: the heartbeats go on from another thread, so it seldom costs a request.
        """
        look_until_fresh(self._store, self.check_or_end, lambda: self._looked_at)

    def _run(self) -> None:
        while not self._stopped.wait(self._period()):
            self._end_if_overdue()  # first: a process that was frozen must not write
            began = time.monotonic()
            try:
                self.beat()
                self.check_or_end()
                self._last_success = began
            except Exception as error:  # noqa: BLE001  whatever a store raises, this thread goes on
                logger.warning("The heartbeat could not be written: %s", error)

    def _watch(self) -> None:
        while not self._stopped.wait(self._period()):
            self._end_if_overdue()
            self._watch_parent()

    def _period(self) -> float:
        return min(BEAT_SECONDS, self._ttl_seconds / 4)

    def _end_if_overdue(self) -> None:
        silent = time.monotonic() - self._last_success
        if silent > self._ttl_seconds * 2 / 3:
            self._end(
                f"No heartbeat was written for {silent:.0f} s: another runner may have started."
            )

    def _watch_parent(self) -> None:
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            logger.warning("The process that started this runner has ended; stopping.")
            self._parent_pid = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _end(self, why: object) -> NoReturn:
        self._before_end()
        logger.error("%s", why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FENCED)
