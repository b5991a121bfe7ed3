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
7. A restore that no longer holds the lease writes nothing more. So a holder that lives after all loses
   time, and no results.

Standard library only: runners use it inside Ray images.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    LeaseHeldError,
    LeaseLostError,
    RecordUnreadableError,
    StorageError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptId, read_heartbeats
from airflow_tune_restore.protocol.lease_objects import (
    DagRunId,
    HolderStatus,
    Lease,
    LeaseStatus,
    is_released,
    newest_claim,
    read_claim,
    status_of,
)
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.records import read_heartbeat
from airflow_tune_restore.storage.base import Entry, ObjectStore

logger = logging.getLogger(__name__)

_LOOK_BACK = 20
"""How many claims are read, the newest first, to find earlier restores."""

_SHORTEST_PERIOD, _JOIN_SECONDS = 0.05, 30.0
_CONCURRENCY = 16

MAX_WATCH_SECONDS = 900.0
"""Longest watch of a holder, whatever TTL its claim holds: an attacker may have written the claim.

This is the default TTL of a DAG. A holder with a longer TTL was silent for all of it by the store's
clock before the watch begins.
"""

KNOWN_DEAD_SECONDS = 30.0
"""Watch of a holder that is known to have ended: every living part of a restore writes more often.

A runner writes every 5 s, and whatever else can renew a lease does so every `RENEW_SECONDS`. After the
lease is taken, `commit_abandoned` still waits until the runners were silent for `attempts.QUIET_SECONDS`.
"""

RENEW_SECONDS = 20.0
"""A lease is renewed this often by a task that works or waits without a runner."""

_LOOK_SECONDS = 1.0
_MAX_TRIES = 20
"""Tries to create a number that the store does not list. After that, its lists are not complete."""


class Clock(NamedTuple):
    """The clock of this process, in seconds, and how it waits."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


CLOCK = Clock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The first look at a holder that may be dead.

    Args:
        status: The holder.
        pulse: Its heartbeat.
        runners: The heartbeats of its runners, if it is known to have ended. Else its own is enough.
        since: When they were read, by this process's monotonic clock.
        seconds: How long they must not change.
    """

    status: LeaseStatus
    pulse: bytes | None
    runners: Mapping[AttemptId, bytes] = field(default_factory=dict)
    since: float
    seconds: float

    def left(self, now: float) -> float:
        """Return how many seconds are left; `now` is by the clock of `since`."""
        return self.seconds - (now - self.since)

    def describe(self) -> str:
        """Return who holds the lease, since when, and how long it is watched."""
        status, lease = self.status, self.status.lease
        return (
            f"Restore {lease.restore_id} of {lease.holder} did not release the lease of "
            f"{status.experiment}. It took the lease {_at(status.claimed_at)}. Its last sign of life was "
            f"{_at(status.seen_at)}. {status.found and f'{status.found}. '}It is watched for "
            f"{self.seconds:.0f} s. If it stays silent, its lease is taken over then."
        )


OnWait = Callable[[Watch, float], None]
"""Called at each look at a silent holder, with the seconds that are left; at the end with 0."""

AskHolder = Callable[[LeaseStatus], HolderStatus]
"""Returns whether the holder of a lease is known to have ended."""


def log_wait(watch: Watch, left: float) -> None:
    """Log the begin of a watch."""
    if left >= watch.seconds - _LOOK_SECONDS:
        logger.warning("%s", watch.describe())


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
                renew(store, current)
                return current
            if watched not in (None, current.epoch):  # another restore was faster
                raise _held_by_living(status_of(store, current, entries, store.now()))
            watched = current.epoch
            _wait_for_death(store, current, entries, watch, on_wait, clock)
        epoch = max(lease_objects.used(entries), default=0) + 1
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
    return _begin_watch(store, current, entries, ask_holder, clock)


def renew(store: ObjectStore, lease: Lease) -> None:
    """Write a heartbeat: one put."""
    beat = {"restore_id": lease.restore_id, "nonce": secrets.token_hex(8)}
    store.put(layout.lease_heartbeat_key(lease.epoch), json.dumps(beat).encode())


def keep_alive(store: ObjectStore, restore_id: str) -> Lease:
    """Renew the lease that this restore holds, and return it; raises as `check_held` does."""
    held = check_held(store, restore_id)
    renew(store, held)
    return held


@contextmanager
def kept(store: ObjectStore, restore_id: str, ttl_seconds: float) -> Iterator[None]:
    """Renew the lease of a restore from a thread until the block ends.

    For work without a runner (runners renew the lease) that may take longer than a TTL. A lost lease is
    not renewed.
    """
    has_ended = threading.Event()

    def renew_until_then() -> None:
        while not has_ended.wait(max(_SHORTEST_PERIOD, min(ttl_seconds / 5, RENEW_SECONDS))):
            try:
                keep_alive(store, restore_id)
            except TuneRestoreError as error:
                why = printable(str(error))
                logger.warning("The lease of %s could not be renewed: %s", store.uri, why)

    thread = threading.Thread(target=renew_until_then, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join(_JOIN_SECONDS)  # not for ever: the store may hang in the last renewal


def release(store: ObjectStore, lease: Lease) -> None:
    """Release the lease. Releasing twice is fine."""
    body = json.dumps({"restore_id": lease.restore_id}).encode()
    store.put(layout.lease_release_key(lease.epoch), body)


def release_all(store: ObjectStore, leases: Iterable[Lease]) -> None:
    """Release the leases of dead restores; there may be thousands."""
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        for _ in pool.map(lambda lease: release(store, lease), leases):
            pass  # raises the error of any release


def check_held(store: ObjectStore, restore_id: str) -> Lease:
    """Return the lease; raise LeaseLostError if it was released or a newer restore took over."""
    entries = store.list_dir(layout.LEASE)
    current = newest_claim(store, entries)
    if current is None:
        raise LeaseLostError(store.uri, restore_id, "the experiment has no lease")
    if current.restore_id != restore_id:
        newer = f"restore {current.restore_id} of {current.holder} has taken it"
        raise LeaseLostError(store.uri, restore_id, newer)
    if is_released(entries, current.epoch):
        raise LeaseLostError(store.uri, restore_id, "the restore has ended and released it")
    return current


def unreleased(store: ObjectStore, *, but: str) -> list[Lease]:
    """Return the claims of other restores that were never released, the oldest first.

    All but the newest have successors; so has the newest once this restore takes the lease.
    """
    entries = store.list_dir(layout.LEASE)
    epochs = sorted(lease_objects.claimed(entries) - lease_objects.released(entries))
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        claims = pool.map(lambda epoch: read_claim(store, epoch), epochs)
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


def _begin_watch(
    store: ObjectStore,
    current: Lease,
    entries: list[Entry],
    ask_holder: AskHolder | None,
    clock: Clock,
) -> Watch:
    """Take the first look at a holder; LeaseHeldError if it is alive."""
    status = status_of(store, current, entries, store.now())
    if ask_holder is not None:
        status = replace(status, holder=ask_holder(status))
    if status.is_alive:
        raise _held(status)
    return Watch(
        status=status,
        pulse=_pulse(store, current.epoch),
        runners=read_heartbeats(store, current.restore_id) if status.has_ended else {},
        since=clock.monotonic(),
        seconds=min(
            current.ttl_seconds, KNOWN_DEAD_SECONDS if status.has_ended else MAX_WATCH_SECONDS
        ),
    )


def _wait_for_death(
    store: ObjectStore,
    current: Lease,
    entries: list[Entry],
    watch: Watch | None,
    on_wait: OnWait,
    clock: Clock,
) -> None:
    """Return once the holder was silent during the whole watch, or released its lease."""
    if watch is None or watch.status.lease.epoch != current.epoch:
        watch = _begin_watch(store, current, entries, None, clock)
    while (left := watch.left(clock.monotonic())) > 0:
        if is_released(store.list_dir(layout.LEASE), current.epoch):
            break
        _refuse_if_moved(store, watch)
        on_wait(watch, left)
        clock.sleep(min(_LOOK_SECONDS, left + 0.1))
    on_wait(watch, 0.0)
    if not is_released(store.list_dir(layout.LEASE), current.epoch):
        _refuse_if_moved(store, watch)
        if watch.status.has_ended and read_heartbeats(store, current.restore_id) != watch.runners:
            raise _held_by_living(watch.status)


def _refuse_if_moved(store: ObjectStore, watch: Watch) -> None:
    if _pulse(store, watch.status.lease.epoch) != watch.pulse:
        raise _held_by_living(watch.status)


def _held_by_living(status: LeaseStatus) -> LeaseHeldError:
    """Return the error for a holder that has written just now."""
    return _held(replace(status, silent_seconds=0.0))


def _held(status: LeaseStatus) -> LeaseHeldError:
    return LeaseHeldError(
        status.experiment,
        status.lease.restore_id,
        status.lease.holder,
        max(0.0, status.silent_seconds),
        taken=_at(status.claimed_at),
        found=status.found,
    )


def _pulse(store: ObjectStore, epoch: int) -> bytes | None:
    return read_heartbeat(store, layout.lease_heartbeat_key(epoch))


def _at(moment: datetime | None) -> str:
    return f"at {moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "at an unknown time"
