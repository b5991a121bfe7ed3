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
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    KeyNotFoundError,
    LeaseHeldError,
    LeaseLostError,
    RecordUnreadableError,
)
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore

DEFAULT_TTL_SECONDS = 120.0
MAX_TTL_SECONDS = 24 * 3600.0
"""No claim holds an experiment for longer without a sign of life, whatever it says."""

_LOOK_BACK = 20
_CLAIM, _RELEASE, _HEARTBEAT = "claim", "release", "heartbeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A held lease.

    Args:
        epoch: Its number, the fencing token.
        restore_id: Which restore holds it.
        holder: Who that is, for people (`dag nightly_recovery, run …`, `tune-restore on host`).
        ttl_seconds: How long a silent holder counts as alive.
    """

    epoch: int
    restore_id: str
    holder: str
    ttl_seconds: float


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
        if layout.lease_epoch(key.rpartition("/")[2], _CLAIM) is None:
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


def newest_claim(store: ObjectStore, entries: list[Entry]) -> Lease | None:
    """Read the claim with the highest number."""
    epochs = _claimed(entries)
    return _read_claim(store, max(epochs)) if epochs else None


def unreleased(store: ObjectStore, *, but: str) -> list[Lease]:
    """Return the claims of other restores that were never released, the oldest first.

    All but the newest were taken over; so was the newest once another one is created.
    """
    entries = store.list_dir(layout.LEASE)
    epochs = sorted(epoch for epoch in _claimed(entries) if not is_released(entries, epoch))
    claims = [_read_claim(store, epoch) for epoch in epochs]
    return [claim for claim in claims if claim.restore_id != but]


def earlier_restores(store: ObjectStore, restore_id: str) -> list[str]:
    """Return which restores held the lease before this one, the newest first."""
    epochs = sorted(_claimed(store.list_dir(layout.LEASE)), reverse=True)
    ids = [_read_claim(store, epoch).restore_id for epoch in epochs[:_LOOK_BACK]]
    return [earlier for earlier in dict.fromkeys(ids) if earlier != restore_id]


def is_released(entries: list[Entry], epoch: int) -> bool:
    """Whether the holder of this epoch has given it back."""
    return any(layout.lease_epoch(entry.name, _RELEASE) == epoch for entry in entries)


def _claimed(entries: list[Entry]) -> list[int]:
    found = (layout.lease_epoch(entry.name, _CLAIM) for entry in entries if not entry.is_dir)
    return [epoch for epoch in found if epoch is not None]


def _read_claim(store: ObjectStore, epoch: int) -> Lease:
    claim = _read(store, layout.lease_claim_key(epoch))
    return Lease(
        epoch=epoch,
        restore_id=_text(claim.get("restore_id")),
        holder=_text(claim.get("holder")),
        ttl_seconds=_ttl(claim.get("ttl_seconds")),
    )


def _read(store: ObjectStore, key: str) -> dict[str, Any]:
    """Read one of our objects; one that makes no sense counts as empty."""
    try:
        value = json.loads(store.get(key, max_bytes=65536))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return (printable(value) if isinstance(value, str) else "") or "?"


def _ttl(value: Any) -> float:
    """Read a TTL; one that makes no sense (NaN, "soon", 1e300) must not hold the lease for ever."""
    if type(value) in (int, float) and 0 <= value <= MAX_TTL_SECONDS:
        return float(value)
    return DEFAULT_TTL_SECONDS


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
    written = [
        entry.modified_at
        for entry in store.list_dir(layout.LEASE)
        if epoch in (layout.lease_epoch(entry.name, kind) for kind in (_CLAIM, _HEARTBEAT))
        and entry.modified_at is not None
    ]
    return (store.now() - max(written)).total_seconds() if written else 0.0


def _pulse(store: ObjectStore, epoch: int) -> bytes:
    try:
        return store.get(layout.lease_heartbeat_key(epoch), max_bytes=65536)
    except KeyNotFoundError:
        return b""
