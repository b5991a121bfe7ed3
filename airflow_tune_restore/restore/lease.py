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
import time
from collections.abc import Callable

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    KeyNotFoundError,
    LeaseHeldError,
    LeaseLostError,
    RecordUnreadableError,
)
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.claims import (
    CLAIM,
    DEFAULT_TTL_SECONDS,
    MAX_TTL_SECONDS,
    Lease,
    claimed,
    is_released,
    last_sign_of_life,
    newest_claim,
    read_claim,
)
from airflow_tune_restore.storage.base import ObjectStore

__all__ = [
    "DEFAULT_TTL_SECONDS",
    "MAX_TTL_SECONDS",
    "Lease",
    "acquire",
    "check_held",
    "earlier_restores",
    "is_released",
    "newest_claim",
    "refuse_if_alive",
    "release",
    "renew",
    "unreleased",
]

logger = logging.getLogger(__name__)

_LOOK_BACK = 20


def acquire(
    store: ObjectStore,
    *,
    restore_id: str,
    holder: str,
    ttl_seconds: float = DEFAULT_TTL_SECONDS,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Take the lease of the experiment at the store's root, or re-enter our own.

    Blocks for one TTL of a predecessor that looks dead, to make sure.

    Raises:
        LeaseHeldError: If another restore is alive; names it.
    """
    while True:
        entries = store.list_dir(layout.LEASE)
        current = newest_claim(store, entries)
        if current is not None and not is_released(entries, current.epoch):
            if current.restore_id == restore_id:
                renew(store, current)
                return current
            _wait_for_death(store, current, monotonic, sleep)
        epoch = current.epoch + 1 if current is not None else 1
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


def refuse_if_alive(store: ObjectStore, restore_id: str) -> None:
    """Find out early, without waiting, that `acquire` would be refused.

    Raises:
        LeaseHeldError: If another restore has shown a sign of life within its TTL.
    """
    entries = store.list_dir(layout.LEASE)
    current = newest_claim(store, entries)
    if current is None or current.restore_id == restore_id:
        return
    if not is_released(entries, current.epoch):
        _refuse_recent(store, current)


def renew(store: ObjectStore, lease: Lease) -> None:
    """Say that the restore lives. Cheap: one put."""
    beat = {"restore_id": lease.restore_id, "nonce": secrets.token_hex(8)}
    store.put(layout.lease_heartbeat_key(lease.epoch), json.dumps(beat).encode())


def release(store: ObjectStore, lease: Lease) -> None:
    """Give the lease back. Releasing twice is no error."""
    body = json.dumps({"restore_id": lease.restore_id}).encode()
    store.put(layout.lease_release_key(lease.epoch), body)


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
    epochs = sorted(epoch for epoch in claimed(entries) if not is_released(entries, epoch))
    claims = [read_claim(store, epoch) for epoch in epochs]
    return [claim for claim in claims if claim.restore_id != but]


def earlier_restores(store: ObjectStore, restore_id: str) -> list[str]:
    """Return which restores held the lease before this one, the newest first."""
    epochs = sorted(claimed(store.list_dir(layout.LEASE)), reverse=True)
    ids = [read_claim(store, epoch).restore_id for epoch in epochs[:_LOOK_BACK]]
    return [earlier for earlier in dict.fromkeys(ids) if earlier != restore_id]


def _wait_for_death(
    store: ObjectStore,
    current: Lease,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Return when the holder was silent, or its lease released, for as long as we watched.

    Raises:
        LeaseHeldError: If it shows a sign of life.
    """
    _refuse_recent(store, current)
    logger.warning(
        "Restore %s of %s ended without releasing its lease. Looking for %.0f s whether it is dead; then "
        "this one begins.",
        *(current.restore_id, store.uri, current.ttl_seconds),
    )
    before = _pulse(store, current.epoch)
    started = monotonic()
    while monotonic() - started < current.ttl_seconds:
        sleep(min(5.0, current.ttl_seconds / 4))
        if is_released(store.list_dir(layout.LEASE), current.epoch):
            return
        if _pulse(store, current.epoch) != before:
            raise LeaseHeldError(store.uri, current.restore_id, current.holder, 0.0)


def _refuse_recent(store: ObjectStore, current: Lease) -> None:
    age = _silent_for(store, current.epoch)
    if age < current.ttl_seconds:
        raise LeaseHeldError(store.uri, current.restore_id, current.holder, age)


def _silent_for(store: ObjectStore, epoch: int) -> float:
    """Return the seconds since the holder's last write, by the store's clock."""
    written = last_sign_of_life(store.list_dir(layout.LEASE), epoch)
    return (store.now() - written).total_seconds() if written else 0.0


def _pulse(store: ObjectStore, epoch: int) -> bytes:
    try:
        return store.get(layout.lease_heartbeat_key(epoch), max_bytes=65536)
    except KeyNotFoundError:
        return b""
