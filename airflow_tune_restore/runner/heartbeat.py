"""A runner's pulse: says that it lives, and notices when it must not go on.

It creates its first beat, which a second runner of the same attempt cannot, before it looks for newer
attempts, and whoever claims a newer attempt does so before looking at the beat; so of two runners of one
trial at least one sees the other. A store that keeps it waiting does not keep it from ending in time: a
second thread, which asks no store, looks after that.
"""

import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from typing import NoReturn

from airflow_tune_restore.exceptions import KeyExistsError, LeaseLostError, TuneRestoreError
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import EXIT_FENCED, RunnerRequest
from airflow_tune_restore.runner.outcome import now
from airflow_tune_restore.storage.base import ObjectStore

BEAT_SECONDS = 5.0

logger = logging.getLogger(__name__)


class FencedError(TuneRestoreError):
    """A newer attempt runs this trial."""


class Heartbeat:
    """Beats in a thread, and watches over itself in another, until it is stopped."""

    def __init__(self, store: ObjectStore, request: RunnerRequest, parent_pid: int | None) -> None:
        self._store = store
        self._request = request
        self._parent_pid = parent_pid
        self._count = 0
        self._nonce = secrets.token_hex(8)  # so that a create is recognised as ours
        self._runs_since = ""
        self._epoch = 0
        self._ttl_seconds = lease_objects.DEFAULT_TTL_SECONDS
        self._last_success = time.monotonic()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="heartbeat-watch", daemon=True),
        ]

    def start(self) -> None:
        """Beat once, check that this attempt may run, and go on beating.

        Raises:
            FencedError: If there is a newer attempt, or another runner of this one.
            LeaseLostError: If the restore no longer holds the lease.
        """
        self._begin()
        self.check()
        self._last_success = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop beating."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def runs(self) -> None:
        """Say from now on that earlier attempts are over and this one runs the trial."""
        self._runs_since = now()

    def beat(self) -> None:
        """Write one beat."""
        self._store.put(self._key, self._next_beat())

    def _begin(self) -> None:
        """Write the first beat, alone: a pod that is gone from its cluster may still run on its node."""
        try:
            self._store.create(self._key, self._next_beat())
        except KeyExistsError:
            raise FencedError(
                f"Attempt {self._request.attempt} of trial {self._request.trial_id} stopped: another "
                "runner of the same attempt has begun."
            ) from None

    @property
    def _key(self) -> str:
        request = self._request
        return layout.heartbeat_key(request.restore_id, request.trial_id, request.attempt)

    def _next_beat(self) -> bytes:
        self._count += 1
        beat = {"count": self._count, "pid": os.getpid(), "at": now(), "nonce": self._nonce}
        return json.dumps({**beat, "runs_since": self._runs_since}).encode()

    def check(self) -> None:
        """Raise if this attempt must stop; renew the lease if it may go on."""
        request = self._request
        newest = max(
            AttemptRecords(self._store, request.restore_id, request.trial_id).numbers(),
            default=request.attempt,
        )
        if newest > request.attempt:
            raise FencedError(
                f"Attempt {request.attempt} of trial {request.trial_id} stopped: attempt {newest} "
                "has been started."
            )
        held = lease.check_held(self._store, request.restore_id)
        if self._epoch not in (0, held.epoch):
            newer = f"it was lost and taken again: epoch {held.epoch} is not {self._epoch}"
            raise LeaseLostError(self._store.uri, request.restore_id, newer)
        self._epoch, self._ttl_seconds = held.epoch, held.ttl_seconds
        lease.renew(self._store, held)

    def check_or_end(self) -> None:
        """End this process if it must stop; no thread of it may write anything more.

        Its actors end with it: a private Ray shares its fate, a cluster stops a lost driver's job.
        """
        try:
            self.check()
        except (FencedError, LeaseLostError) as error:
            _end(error)

    def _run(self) -> None:
        while not self._stopped.wait(self._period()):
            self._end_if_overdue()  # first: a process that was frozen must not write even a beat
            began = time.monotonic()
            try:
                self.beat()
                self.check_or_end()
                self._last_success = began
            except Exception as error:  # noqa: BLE001  whatever a store raises, this thread lives on
                logger.warning("No heartbeat: %s", error)

    def _watch(self) -> None:
        while not self._stopped.wait(self._period()):
            self._end_if_overdue()
            self._watch_parent()

    def _period(self) -> float:
        return min(BEAT_SECONDS, self._ttl_seconds / 4)

    def _end_if_overdue(self) -> None:
        silent = time.monotonic() - self._last_success
        if silent > self._ttl_seconds * 2 / 3:
            _end(f"No heartbeat for {silent:.0f} s: others may take this runner for dead by now.")

    def _watch_parent(self) -> None:
        """If whoever started us was killed, end as if it had told us to."""
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            logger.warning("The process that started this runner is gone; stopping.")
            self._parent_pid = None
            os.kill(os.getpid(), signal.SIGTERM)


def _end(why: object) -> NoReturn:
    logger.error("%s", why)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_FENCED)
