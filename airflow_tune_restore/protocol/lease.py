"""One restore of an experiment at a time.

The lease is a row of numbered objects; creating the next number exclusively takes it, the highest
number holds it, and the number is the fencing token. Heartbeat and release are objects of their own.
Only create, put and list are needed: compare-and-swap does not exist for local disks.

A holder is dead when its heartbeat has not changed for a whole TTL by the observer's own monotonic
clock. The store's clock only decides whether watching is worth while: a recent heartbeat refuses at
once. All parts of one restore (plan, runners, commit) share its lease: they re-enter it by restore_id.
Standard library only: runners use it inside Ray images.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    LeaseHeldError,
    LeaseLostError,
    RecordUnreadableError,
    StorageError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.lease_objects import (
    CLAIM,
    DEFAULT_TTL_SECONDS,
    MAX_TTL_SECONDS,
    Lease,
    claimed,
    is_alive_after,
    is_released,
    newest_claim,
    read_claim,
    released,
    silent_seconds,
    used,
)
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.records import read_heartbeat
from airflow_tune_restore.storage.base import Entry, ObjectStore

logger = logging.getLogger(__name__)

_LOOK_BACK = 20
_SHORTEST_PERIOD, _JOIN_SECONDS = 0.05, 30.0
_CONCURRENCY = 16

MAX_WATCH_SECONDS = 900.0
"""How long a holder is watched at most, whatever its claim asks for: anybody may have written that.

As long as the lease of a DAG unless told otherwise. A holder with a longer one was silent for all of it
by the store's clock before it is watched at all.
"""

_MAX_TRIES = 20
"""How often a number is found taken, each time by another; then the store does not list what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What was seen of a holder that looks dead.

    Args:
        epoch: The lease it holds.
        pulse: Its heartbeat.
        since: When that was read, by this process's monotonic clock.
    """

    epoch: int
    pulse: bytes | None
    since: float


def acquire(
    store: ObjectStore,
    *,
    restore_id: str,
    holder: str,
    ttl_seconds: float = DEFAULT_TTL_SECONDS,
    watch: Watch | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Take the lease of the experiment at the store's root, or re-enter our own.

    Blocks until a predecessor that looks dead was watched for its TTL, `MAX_WATCH_SECONDS` at most; with
    a `watch` that has begun before, only for what is left of that.

    Raises:
        LeaseHeldError: If another restore is alive; names it.
        InvalidInputError: If `ttl_seconds` is more than a lease can have.
        StorageError: If the store has claims that it does not list.
    """
    check_ttl(ttl_seconds)
    watched: int | None = None
    for _ in range(_MAX_TRIES):
        entries = store.list_dir(layout.LEASE)
        current = newest_claim(store, entries)
        if current is not None and not is_released(entries, current.epoch):
            if current.restore_id == restore_id:
                renew(store, current)
                return current
            if watched not in (None, current.epoch):  # somebody was faster, and has it now
                raise LeaseHeldError(store.uri, current.restore_id, current.holder, 0.0)
            watched = current.epoch
            _wait_for_death(store, current, entries, watch, monotonic, sleep)
        # a release or heartbeat without its claim has used its number up, too
        epoch = max(used(entries), default=0) + 1
        claim = {
            "restore_id": restore_id,
            "holder": holder,
            "ttl_seconds": ttl_seconds,
            "nonce": secrets.token_hex(8),
        }
        key = layout.lease_claim_key(epoch)
        if layout.lease_epoch(key.rpartition("/")[2], CLAIM) is None:
            raise RecordUnreadableError(
                store.uri, layout.lease_claim_key(epoch - 1), "no number is left after it"
            )
        try:
            store.create(key, json.dumps(claim).encode())
        except KeyExistsError:
            continue  # somebody was faster: look who
        return Lease(epoch=epoch, restore_id=restore_id, holder=holder, ttl_seconds=ttl_seconds)
    raise StorageError(
        f"{store.uri}: the lease cannot be taken: {key} exists, but {layout.LEASE} does not list it. "
        "Nothing was started. If no other restore begins just now, find out who made it, then delete it."
    )


def check_ttl(ttl_seconds: float) -> None:
    """Refuse a TTL that nobody who reads the claim would believe (InvalidInputError)."""
    if not 0 <= ttl_seconds <= MAX_TTL_SECONDS:
        raise InvalidInputError(
            f"A lease cannot last {ttl_seconds:.0f} s without a sign of life: lease_ttl is at most "
            f"{MAX_TTL_SECONDS:.0f} s (a day). Nothing was started."
        )


def refuse_if_alive(
    store: ObjectStore, restore_id: str, *, monotonic: Callable[[], float] = time.monotonic
) -> Watch | None:
    """Find out early, without waiting, that `acquire` would be refused.

    Returns:
        A watch for `acquire`, if another restore ended without releasing the lease: the time until then
        counts. Who begins with many experiments waits for all of them at once.

    Raises:
        LeaseHeldError: If another restore has shown a sign of life within its TTL.
    """
    entries = store.list_dir(layout.LEASE)
    current = newest_claim(store, entries)
    if current is None or current.restore_id == restore_id:
        return None
    if is_released(entries, current.epoch):
        return None
    _refuse_recent(store, current, entries)
    return Watch(epoch=current.epoch, pulse=_pulse(store, current.epoch), since=monotonic())


def renew(store: ObjectStore, lease: Lease) -> None:
    """Say that the restore lives. Cheap: one put."""
    beat = {"restore_id": lease.restore_id, "nonce": secrets.token_hex(8)}
    store.put(layout.lease_heartbeat_key(lease.epoch), json.dumps(beat).encode())


def keep_alive(store: ObjectStore, restore_id: str) -> Lease:
    """Renew the lease that this restore holds, and return it.

    Raises:
        LeaseLostError: If it was released, or a newer restore took over; then nothing is written.
    """
    held = check_held(store, restore_id)
    renew(store, held)
    return held


@contextmanager
def kept(store: ObjectStore, restore_id: str, ttl_seconds: float) -> Iterator[None]:
    """Renew the lease of a restore until the block ends, from a thread beside it.

    For work that may take longer than a TTL while no runner renews it. A lease that was lost meanwhile is
    not renewed.
    """
    has_ended = threading.Event()

    def renew_until_then() -> None:
        while not has_ended.wait(max(_SHORTEST_PERIOD, ttl_seconds / 5)):
            try:
                keep_alive(store, restore_id)
            except TuneRestoreError as error:
                logger.warning(
                    "The lease of %s could not be renewed: %s", store.uri, printable(str(error))
                )

    thread = threading.Thread(target=renew_until_then, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join(_JOIN_SECONDS)  # not for ever: a store may hang in the very last beat


def release(store: ObjectStore, lease: Lease) -> None:
    """Give the lease back. Releasing twice is no error."""
    body = json.dumps({"restore_id": lease.restore_id}).encode()
    store.put(layout.lease_release_key(lease.epoch), body)


def release_all(store: ObjectStore, leases: Iterable[Lease]) -> None:
    """Give back the leases of restores that died; there may be thousands."""
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        for _ in pool.map(lambda lease: release(store, lease), leases):
            pass  # an error of any is raised here


def check_held(store: ObjectStore, restore_id: str) -> Lease:
    """Return the lease if this restore still holds it.

    Raises:
        LeaseLostError: If it was released, or a newer restore took over.
    """
    entries = store.list_dir(layout.LEASE)
    current = newest_claim(store, entries)
    if current is None:
        raise LeaseLostError(store.uri, restore_id, "there is no lease at all")
    if current.restore_id != restore_id:
        newer = f"restore {current.restore_id} of {current.holder} took over"
        raise LeaseLostError(store.uri, restore_id, newer)
    if is_released(entries, current.epoch):
        raise LeaseLostError(store.uri, restore_id, "the restore has ended and released it")
    return current


def unreleased(store: ObjectStore, *, but: str) -> list[Lease]:
    """Return the claims of other restores that were never released, the oldest first.

    All but the newest were taken over; so was the newest once another one is created.
    """
    entries = store.list_dir(layout.LEASE)
    epochs = sorted(claimed(entries) - released(entries))
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        claims = pool.map(lambda epoch: read_claim(store, epoch), epochs)
        return [claim for claim in claims if claim.restore_id != but]


def earlier_restores(store: ObjectStore, restore_id: str) -> list[str]:
    """Return which restores held the lease before this one, the newest first."""
    epochs = sorted(claimed(store.list_dir(layout.LEASE)), reverse=True)
    ids = [read_claim(store, epoch).restore_id for epoch in epochs[:_LOOK_BACK]]
    return [earlier for earlier in dict.fromkeys(ids) if earlier != restore_id]


def _wait_for_death(  # noqa: PLR0913  what was seen, and the clocks
    store: ObjectStore,
    current: Lease,
    entries: list[Entry],
    watch: Watch | None,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Return when the holder was silent for as long as it must be watched, or has released its lease.

    Raises:
        LeaseHeldError: If it shows a sign of life.
    """
    _refuse_recent(store, current, entries)
    if watch is None or watch.epoch != current.epoch:
        watch = Watch(epoch=current.epoch, pulse=_pulse(store, current.epoch), since=monotonic())
    needed = min(current.ttl_seconds, MAX_WATCH_SECONDS)
    left = needed - (monotonic() - watch.since)
    if left > 0:
        logger.warning(
            "Restore %s of %s ended without releasing its lease. Looking for %.0f s whether it is dead; "
            "then this one begins.",
            *(current.restore_id, store.uri, left),
        )
    while True:
        if is_released(store.list_dir(layout.LEASE), current.epoch):
            return
        if _pulse(store, current.epoch) != watch.pulse:
            raise LeaseHeldError(store.uri, current.restore_id, current.holder, 0.0)
        left = needed - (monotonic() - watch.since)
        if left <= 0:
            return
        sleep(min(5.0, left + 0.1))


def _refuse_recent(store: ObjectStore, current: Lease, entries: list[Entry]) -> None:
    silent = silent_seconds(entries, current.epoch, store.now())
    if is_alive_after(silent, current.ttl_seconds):
        raise LeaseHeldError(store.uri, current.restore_id, current.holder, max(0.0, silent))


def _pulse(store: ObjectStore, epoch: int) -> bytes | None:
    return read_heartbeat(store, layout.lease_heartbeat_key(epoch))
