"""Work without a runner under a lease: it is renewed meanwhile, and nothing is written without it.

A process may be frozen anywhere (a suspended machine, an overloaded one), and thaw when its restore was
taken for dead. It must not write then (`protocol.lease`, rule 7). So each write first looks at the last
renewal by this process's own clock, and renews the lease if that began too long ago, until a renewal is
quick enough. A silent holder is watched for longer than that before its lease is taken over.

Runners have a heartbeat that renews the lease. They, too, write through a `HeldStore`.

Standard library only.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_tune_restore.exceptions import LeaseLostError, StorageError, TuneRestoreError
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.lease_watch import CLOCK, Clock
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.wrapped import WrappedStore

FRESH_SECONDS = 15.0
"""A write is sent this long after the last renewal at most: half of the shortest watch of a silent holder
(`lease_watch.KNOWN_DEAD_SECONDS`)."""

REST_SECONDS = 31.0
"""How long a released lease rests before an undo: `FRESH_SECONDS`, then 15 s for a request that its
sender has given up, and one more, because the times of some stores are whole seconds."""

_MAX_LOOKS = 5
"""If so many looks in a row took longer, the store is slow: this process was not frozen in each."""

_SHORTEST_PERIOD, _JOIN_SECONDS = 0.05, 30.0

logger = logging.getLogger(__name__)


@contextmanager
def keep_lease(store: ObjectStore, restore_id: str) -> Iterator[ObjectStore]:
    """Renew the lease of a restore, at once and then from a thread, until the block ends.

    For work without a runner (runners renew the lease) that may take longer than a TTL.

    Returns:
        The store to write through: it refuses writes once the lease is lost (LeaseLostError).

    Raises:
        LeaseLostError: If the restore does not hold the lease.
    """
    kept = _KeptLease(store, restore_id)
    ttl_seconds = kept.renew()
    has_ended = threading.Event()

    def renew_until_then() -> None:
        while not has_ended.wait(max(_SHORTEST_PERIOD, min(ttl_seconds / 5, lease.RENEW_SECONDS))):
            try:
                kept.renew()
            except TuneRestoreError as error:
                why = printable(str(error))
                logger.warning("The lease of %s could not be renewed: %s", store.uri, why)
                if isinstance(error, LeaseLostError):
                    return

    thread = threading.Thread(target=renew_until_then, name="lease", daemon=True)
    thread.start()
    try:
        yield HeldStore(store, kept.check)
    finally:
        has_ended.set()
        thread.join(_JOIN_SECONDS)  # not for ever: the store may hang in the last renewal


class _KeptLease:
    """The lease of a restore, and when it was last renewed by this process's own clock."""

    def __init__(self, store: ObjectStore, restore_id: str) -> None:
        self._store = store
        self._restore_id = restore_id
        self._renewed_at = 0.0
        self._epoch = 0
        self._looking = threading.Lock()

    def renew(self) -> float:
        """Renew the lease and return its TTL in seconds; LeaseLostError if it is lost.

        It is lost, too, if another try of the same restore has taken it again after another restore.
        """
        began = time.monotonic()  # not when the answer comes: this process may freeze before that
        held = lease.keep_alive(self._store, self._restore_id, epoch=self._epoch)
        self._epoch, self._renewed_at = held.epoch, began
        return held.ttl_seconds

    def check(self) -> None:
        """Renew the lease if the last renewal was too long ago; LeaseLostError if it is lost."""
        if time.monotonic() - self._renewed_at > FRESH_SECONDS:
            with self._looking:  # once for all threads that write
                look_until_fresh(self._store, self.renew, lambda: self._renewed_at)


def look_until_fresh(
    store: ObjectStore, look: Callable[[], object], looked_at: Callable[[], float]
) -> None:
    """Look at the lease, unless the last look began within `FRESH_SECONDS`.

    This process may freeze in a look, too. Then what it has found no longer counts, and it looks again.
    `looked_at` returns when the last look began, by the monotonic clock.

    Raises:
        StorageError: If each of `_MAX_LOOKS` looks took longer.
    """
    looks = 0
    while time.monotonic() - looked_at() > FRESH_SECONDS:
        if looks == _MAX_LOOKS:
            raise StorageError(
                f"{store.uri}: {looks} looks at the lease in a row took longer than "
                f"{FRESH_SECONDS:.0f} s each, so nothing more was written. Once the storage answers "
                "faster, clear the task, or start the same command again."
            )
        look()
        looks += 1


def let_rest(store: ObjectStore, *, clock: Clock = CLOCK) -> None:
    """Wait until no try of a restore that has just released its lease writes any more.

    Two tries of one task share their lease. If one releases it, the other writes until it looks again.
    For work that such a write would spoil: an undo, or a release of trials, once it holds the lease.
    """
    entries = store.list_dir(layout.LEASE)
    released_at = max(lease_objects.release_times(entries), default=None)
    if released_at is not None:
        ago = (store.now() - released_at).total_seconds()
        left = min(max(0.0, REST_SECONDS - ago), REST_SECONDS)
        if left:
            logger.warning(
                "The lease of %s was released just now. Waiting for %.0f s: until then, a second try of "
                "the task that released it may still write.",
                *(store.uri, math.ceil(left)),
            )
        clock.sleep(left)


class HeldStore(WrappedStore):
    """A store that writes only while a restore holds its lease. It reads as the store behind it.

    Args:
        check: Called before each write. It does not return if the lease is lost.
    """

    def __init__(self, store: ObjectStore, check: Callable[[], None]) -> None:
        super().__init__(store)
        self._check = check

    def at(self, path: str) -> "HeldStore":
        """Return the store rooted at `path` below this one, under the same lease."""
        return HeldStore(self._store.at(path), self._check)

    def create(self, key: str, body: bytes) -> None:
        """Write a new object, after the check."""
        self._check()
        super().create(key, body)

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite an object, after the check."""
        self._check()
        super().put(key, body)

    def delete(self, key: str) -> None:
        """Delete an object, after the check."""
        self._check()
        super().delete(key)
