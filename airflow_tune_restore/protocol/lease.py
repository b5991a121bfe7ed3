"""The lease of an experiment: one restore at a time.

Rules:

1. The lease is a series of numbered objects. The exclusive create of the next number takes the lease.
   The highest number holds it, and this number is the fencing token (the epoch).
2. Heartbeat and release are objects of their own. Create, put and list are enough: compare-and-swap does
   not exist for local disks.
3. A number is used once. A heartbeat or release without a claim uses its number, too.
4. A holder that wrote within its TTL, by the clock of the store, is alive: others are refused at once.
   This does not hold for a holder that is known to have ended: by a person (`--break-lease`), or by
   Airflow, whose DAG run it was.
5. Any other holder is dead if its heartbeat does not change for a whole TTL (at most
   `MAX_WATCH_SECONDS`) by the observer's own monotonic clock. A holder that is known to have ended is
   dead if neither its heartbeat nor those of its runners change for `KNOWN_DEAD_SECONDS`.
6. All parts of one restore (plan, runners, commit) share its lease: the same `restore_id` takes it again.
   If its DAG run was started again (cleared), the new start is recorded beside the claim. The number
   stays, so its runners live on.
7. A restore that no longer holds the lease writes nothing more (`protocol.kept_lease`, and the heartbeat
   of a runner). So a holder that lives after all loses time, and no results.

Standard library only: runners use it inside Ray images.
"""

import json
import math
import secrets
from collections.abc import Iterable
from dataclasses import asdict, replace

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    LeaseLostError,
    RecordUnreadableError,
    StorageError,
)
from airflow_tune_restore.protocol import layout, lease_objects
from airflow_tune_restore.protocol.lease_objects import (
    AskHolder,
    DagRunId,
    Lease,
    is_released,
    newest_claim,
    read_claim,
    status_of,
)
from airflow_tune_restore.protocol.lease_watch import (
    CLOCK,
    KNOWN_DEAD_SECONDS,
    Clock,
    OnWait,
    Watch,
    begin_watch,
    has_moved,
    held_by_living,
    log_wait,
    wait_for_death,
)
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

_LOOK_BACK = 20
"""How many claims are read, the newest first, to find earlier restores."""

RENEW_SECONDS = 20.0
"""A lease is renewed this often by a task that works or waits without a runner."""

_MAX_TRIES = 20
"""Tries to create a number that the store does not list. After that, its lists are not complete."""


def acquire(
    store: ObjectStore,
    *,
    restore_id: str,
    holder: str,
    ttl_seconds: float = lease_objects.DEFAULT_TTL_SECONDS,
    dag_run: DagRunId | None = None,
    watch: Watch | None = None,
    on_wait: OnWait = log_wait,
    clock: Clock = CLOCK,
) -> Lease:
    """Take the lease of the experiment at the store's root, or take it again for the same restore.

    Blocks while a silent holder is watched (rule 5); a `watch` that began earlier shortens this.

    Raises:
        LeaseHeldError: If another restore is alive.
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
                return _renew_for(store, current, dag_run)
            if watched not in (None, current.epoch):  # another restore was faster
                raise held_by_living(status_of(store, current, entries, store.now()))
            watched = current.epoch
            watch = _wait_for_death(store, current, entries, watch, on_wait, clock)
        latest = max(lease_objects.used(entries), default=0)
        key = layout.lease_claim_key(latest)
        is_listed = latest == 0 or latest in lease_objects.claimed(entries)
        if not is_listed and _is_claimed(store, latest):
            continue  # it was claimed while this listing was made: list again
        epoch = latest + 1
        claim = {
            "restore_id": restore_id,
            "holder": holder,
            "ttl_seconds": ttl_seconds,
            "dag_run": None if dag_run is None else asdict(dag_run),
            "nonce": secrets.token_hex(8),
        }
        key = layout.lease_claim_key(epoch)
        if layout.lease_epoch(key.rpartition("/")[2], lease_objects.CLAIM) is None:
            newest = layout.lease_claim_key(epoch - 1)
            raise RecordUnreadableError(store.uri, newest, "lease numbers are exhausted")
        try:
            store.create(key, json.dumps(claim).encode())
        except KeyExistsError:
            continue  # another restore was faster: list again
        if watched is not None and watch is not None and has_moved(store, watch):
            clock.sleep(KNOWN_DEAD_SECONDS)  # its holder lives after all; it ends at its next look
        return Lease(
            epoch=epoch,
            restore_id=restore_id,
            holder=holder,
            ttl_seconds=ttl_seconds,
            dag_run=dag_run,
        )
    raise StorageError(
        f"{store.uri}: the lease cannot be taken: {key} exists, but {layout.LEASE} does not list it. "
        "Nothing was started. If no other restore is starting now, find out what wrote it, and delete it."
    )


def _is_claimed(store: ObjectStore, epoch: int) -> bool:
    """Whether a claim exists, for an epoch whose other objects were listed without it."""
    try:
        read_claim(store, epoch)
    except KeyNotFoundError:
        return False
    return True


def take_again(store: ObjectStore, restore_id: str, dag_run: DagRunId | None = None) -> Lease:
    """Renew the lease that this restore still holds, for its DAG run; raises as `check_held` does."""
    return _renew_for(store, check_held(store, restore_id), dag_run)


def _renew_for(store: ObjectStore, held: Lease, dag_run: DagRunId | None) -> Lease:
    """Renew the lease of the same restore, and record the start of its DAG run if that is a new one."""
    if dag_run is not None and dag_run != held.dag_run:
        body = json.dumps(asdict(dag_run)).encode()
        store.put(layout.lease_dag_run_key(held.epoch), body)
        held = replace(held, dag_run=dag_run)
    renew(store, held)
    return held


def check_ttl(ttl_seconds: float) -> None:
    """Refuse a TTL that readers of the claim would ignore (InvalidInputError)."""
    if not 0 <= ttl_seconds <= lease_objects.MAX_TTL_SECONDS:
        raise InvalidInputError(
            f"A lease cannot last {ttl_seconds:.0f} s without a sign of life: lease_ttl is at most "
            f"{lease_objects.MAX_TTL_SECONDS:.0f} s (a day). Nothing was started."
        )


def refuse_if_alive(
    store: ObjectStore,
    restore_id: str,
    *,
    ask_holder: AskHolder | None = None,
    clock: Clock = CLOCK,
) -> Watch | None:
    """Refuse early, without waiting, what `acquire` would refuse at once (LeaseHeldError).

    Returns:
        A watch for `acquire`, if another restore ended without releasing the lease. The time from now on
        counts, so that many experiments are watched at the same time.
    """
    entries = store.list_dir(layout.LEASE)
    current = newest_claim(store, entries)
    if current is None or current.restore_id == restore_id or is_released(entries, current.epoch):
        return None
    return begin_watch(store, current, entries, ask_holder, clock)


def renew(store: ObjectStore, lease: Lease) -> None:
    """Write a heartbeat: one put."""
    beat = {"restore_id": lease.restore_id, "nonce": secrets.token_hex(8)}
    store.put(layout.lease_heartbeat_key(lease.epoch), json.dumps(beat).encode())


def keep_alive(store: ObjectStore, restore_id: str, *, epoch: int = 0) -> Lease:
    """Renew the lease that this restore holds, and return it; takes and raises as `check_held`."""
    held = check_held(store, restore_id, epoch=epoch)
    renew(store, held)
    return held


def release(store: ObjectStore, lease: Lease) -> None:
    """Release the lease. Releasing twice is fine."""
    body = json.dumps({"restore_id": lease.restore_id}).encode()
    store.put(layout.lease_release_key(lease.epoch), body)


def release_all(store: ObjectStore, leases: Iterable[Lease]) -> None:
    """Release the leases of dead restores; there may be thousands."""
    for_each(lambda lease: release(store, lease), leases)


def check_held(store: ObjectStore, restore_id: str, *, epoch: int = 0) -> Lease:
    """Return the lease; raise LeaseLostError if it was released or a newer restore took over.

    `epoch` is the number that the caller knows: with another one, the lease was lost in between. 0 if it
    knows none yet.
    """
    entries = store.list_dir(layout.LEASE)
    current = newest_claim(store, entries)
    if current is None:
        raise LeaseLostError(store.uri, restore_id, "the experiment has no lease")
    if current.restore_id != restore_id:
        newer = f"{current.name} has taken it"
        raise LeaseLostError(store.uri, restore_id, newer)
    if is_released(entries, current.epoch):
        raise LeaseLostError(store.uri, restore_id, "the restore has ended and released it")
    if epoch not in (0, current.epoch):
        again = f"it was lost and taken again: epoch {current.epoch} is not {epoch}"
        raise LeaseLostError(store.uri, restore_id, again)
    return current


def last_before(
    store: ObjectStore, epoch: float = math.inf, *, but: str | None = None
) -> Lease | None:
    """Return the newest claim before a number, released or not; None without one, or if it is `but`'s."""
    epochs = [one for one in lease_objects.claimed(store.list_dir(layout.LEASE)) if one < epoch]
    last = read_claim(store, max(epochs)) if epochs else None
    return None if last is None or last.restore_id == but else last


def unreleased(store: ObjectStore, *, but: str) -> list[Lease]:
    """Return the claims of other restores that were never released, the oldest first.

    All but the newest have successors; so has the newest once this restore takes the lease.
    """
    entries = store.list_dir(layout.LEASE)
    epochs = sorted(lease_objects.claimed(entries) - lease_objects.released(entries))
    claims = for_each(lambda epoch: read_claim(store, epoch), epochs)
    return [claim for claim in claims if claim.restore_id != but]


def earlier_restores(store: ObjectStore, restore_id: str) -> list[str]:
    """Return the ids of the restores that held the lease before this one, the newest first."""
    epochs = sorted(lease_objects.claimed(store.list_dir(layout.LEASE)), reverse=True)
    ids = [read_claim(store, epoch).restore_id for epoch in epochs[:_LOOK_BACK]]
    return [earlier for earlier in dict.fromkeys(ids) if earlier != restore_id]


def find_heir(store: ObjectStore, restore_id: str) -> Lease | None:
    """Return the restore that took the lease from one that had not released it; None if none did.

    Of a restore that died, its heir writes the release, too: after its own claim.
    """
    entries = store.list_dir(layout.LEASE)
    epochs = sorted(lease_objects.claimed(entries), reverse=True)
    newer = None
    for claim in (read_claim(store, epoch) for epoch in epochs[:_LOOK_BACK]):
        if claim.restore_id == restore_id:
            is_taken = newer is not None and lease_objects.is_taken_over(entries, claim, newer)
            return newer if is_taken else None
        newer = claim
    return None


def _wait_for_death(
    store: ObjectStore,
    current: Lease,
    entries: list[Entry],
    watch: Watch | None,
    on_wait: OnWait,
    clock: Clock,
) -> Watch:
    """Watch a holder to its end; a watch of this holder may have begun before."""
    if watch is None or watch.status.lease.epoch != current.epoch:
        watch = begin_watch(store, current, entries, None, clock)
    wait_for_death(store, watch, on_wait, clock)
    return watch
