"""The heartbeat of a runner: shows that it is alive, and ends it when another runner takes its place.

`protocol.attempts` has the rules that the order of reads and writes in `start` keeps. A slow store must
not keep a runner from ending in time, so a second thread, which makes no requests, watches the first.
"""

import contextlib
import json
import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from airflow_tune_restore.exceptions import KeyExistsError, LeaseLostError, TuneRestoreError
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.kept_lease import FRESH_SECONDS, look_until_fresh
from airflow_tune_restore.protocol.records import is_listed, read_heartbeat
from airflow_tune_restore.protocol.request import EXIT_FENCED, RunnerRequest
from airflow_tune_restore.runner.outcome import now
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

BEAT_SECONDS = 5.0

logger = logging.getLogger(__name__)


class FencedError(TuneRestoreError):
    """A newer attempt runs this trial, or the commit of its restore has begun."""


class _Beats:
    """The heartbeats of one attempt."""

    def __init__(self, store: ObjectStore, request: RunnerRequest) -> None:
        self.attempt = f"Attempt {request.attempt} of trial {request.trial_id}"
        self.runs_since = ""
        self._store = store
        self._records = AttemptRecords.of(store, request)
        self._number = request.attempt
        self._key = layout.heartbeat_key(request.restore_id, request.trial_id, request.attempt)
        self._count = 0
        self._nonce = secrets.token_hex(8)  # so that the store can recognise a repeated create

    def create_first(self) -> None:
        """Refuse a second runner of the same attempt: a deleted pod may still run on its node."""
        try:
            self._store.create(self._key, self._next())
        except KeyExistsError:
            beat = read_heartbeat(self._store, self._key) or b""
            if (
                self._nonce.encode() not in beat
            ):  # else it is ours: the answer to an earlier try was lost
                raise FencedError(
                    f"{self.attempt} stopped: another runner of the same attempt has started."
                ) from None

    def write(self) -> None:
        """Write the next one."""
        self._store.put(self._key, self._next())

    def check_newest(self) -> None:
        """Raise FencedError if there is a newer attempt."""
        newest = self._records.newest()
        if newest > self._number:
            raise FencedError(f"{self.attempt} stopped: attempt {newest} has been started.")

    def _next(self) -> bytes:
        self._count += 1
        beat = {"count": self._count, "pid": os.getpid(), "at": now(), "nonce": self._nonce}
        return json.dumps({**beat, "runs_since": self.runs_since}).encode()


class Heartbeat:
    """Writes heartbeats in one thread, and checks in another that they are written in time.

    The driver that trials share writes those of all attempts in work. If one of them must stop, the whole
    process ends: that happens only after the process was taken for dead.

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
        self._own = _Beats(store, request)
        self._in_work: dict[str, _Beats] = {}
        self._joining: dict[str, _Beats] = {}
        self._leaving: dict[str, _Beats] = {}
        self._beating = threading.Lock()
        self._parent_pid = parent_pid
        self._before_end = before_end
        self._epoch = 0
        self._ttl_seconds = lease_objects.DEFAULT_TTL_SECONDS
        self._last_success = time.monotonic()
        self._looked_at = self._joined_at = -math.inf
        self._looking = threading.Lock()
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
        self._own.create_first()
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
        self._own.runs_since = now()

    def join(self, request: RunnerRequest) -> None:
        """Write the first heartbeat of an attempt that this process runs, too, and go on with it.

        The next write of this process looks whether it may: the commit may have begun since the last
        look, and have found no runner of this attempt. After a StorageError, call it again.

        Raises:
            FencedError: If there is a newer attempt, or another runner of this one.
        """
        beats = self._joining.setdefault(request.trial_id, _Beats(self._store, request))
        beats.runs_since = now()  # a trial comes with its first attempt
        beats.check_newest()
        beats.create_first()
        beats.check_newest()
        with self._beating:
            self._in_work[request.trial_id] = self._joining.pop(request.trial_id)
            self._joined_at = time.monotonic()

    @contextlib.contextmanager
    def leaving(self, request: RunnerRequest) -> Iterator[None]:
        """End the heartbeats of an attempt with the block, which writes its outcome.

        A newer attempt may follow that outcome, and does not end this process. A store may take long to
        write it, so the heartbeats go on meanwhile, and after the block if it fails.
        """
        with self._beating:
            beats = self._in_work.pop(request.trial_id, None)
            if beats is not None:
                self._leaving[request.trial_id] = beats
        try:
            yield
        except BaseException:
            if beats is not None:
                self._in_work[request.trial_id] = beats
            raise
        finally:
            self._leaving.pop(request.trial_id, None)

    def beat(self) -> None:
        """Write one heartbeat of each attempt."""
        with self._beating:
            beats = [self._own, *self._in_work.values(), *self._leaving.values()]
            for_each(_Beats.write, beats)

    def check(self) -> None:
        """Raise if this attempt must stop; otherwise renew the lease."""
        began = time.monotonic()
        lease.renew(self._store, self._read_lease())
        self._looked_at = began

    def _read_lease(self) -> lease_objects.Lease:
        """Return the lease, unless this attempt must stop.

        It must if it is not the newest, or if its restore has lost the lease or begun its commit.
        """
        restore_id = self._request.restore_id
        for_each(self._check_newest, [self._own, *self._in_work.values()])
        held = lease.check_held(self._store, restore_id, epoch=self._epoch)
        if is_listed(self._store, layout.commit_key(restore_id)):
            raise FencedError(f"{self._own.attempt} stopped: the commit of its restore has begun.")
        self._epoch, self._ttl_seconds = held.epoch, held.ttl_seconds
        return held

    def _check_newest(self, beats: _Beats) -> None:
        try:
            beats.check_newest()
        except FencedError:
            if beats is self._own or beats in self._in_work.values():  # it may have left meanwhile
                raise

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
        if time.monotonic() - self._looked_lately() > FRESH_SECONDS:
            with self._looking:  # once for all threads that write
                look_until_fresh(self._store, self.check_or_end, self._looked_lately)

    def _looked_lately(self) -> float:
        """Return when the last look began that knew all attempts in work."""
        return self._looked_at if self._looked_at > self._joined_at else -math.inf

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
        # without work, nothing is lost: the restore has ended before its driver
        is_idle = self._request.trial_id == layout.SHARED_DRIVER and not self._in_work
        logger.log(logging.INFO if is_idle else logging.ERROR, "%s", why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FENCED)
