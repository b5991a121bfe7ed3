"""The holders of leases: they tell who made a restore, and when."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from airflow_tune_restore.protocol import lease_objects
from airflow_tune_restore.protocol.lease_objects import AskHolder, Lease, LeaseStatus
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

LEFT = "It was not committed. The next restore commits what its trials have done, and goes on from there."
"""The fate of a restore that ended without a commit."""

MOST_CLAIMS = 1000
"""Leases that are read to find the restores of an experiment: the newest. Each is one small object."""

_FIRST, _AT_ONCE = 2, 128
"""Leases that are read at the same time: a restore at work has one of the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A lease as it was taken. Times are by the store's clock; None if it reports none.

    Args:
        claimed_at: When its restore took it.
        released_at: When it was released; None if it was not.
    """

    lease: Lease
    claimed_at: datetime | None
    released_at: datetime | None


def find_holders(
    store: ObjectStore, entries: list[Entry], restore_ids: Collection[str]
) -> dict[str, Held]:
    """Return the newest lease of each of these restores, the newest first.

    `entries` are the lease objects. A restore whose lease is older than `MOST_CLAIMS` others is missing.
    """
    epochs = sorted(lease_objects.claimed(entries), reverse=True)[:MOST_CLAIMS]
    claimed, released = (
        lease_objects.times_of(entries, kind)
        for kind in (lease_objects.CLAIM, lease_objects.RELEASE)
    )
    found: dict[str, Held] = {}
    start, size = 0, _FIRST
    while start < len(epochs) and len(found) < len(restore_ids):
        for lease in _read(store, entries, epochs[start : start + size]):
            if lease.restore_id in restore_ids and lease.restore_id not in found:
                found[lease.restore_id] = Held(
                    lease=lease,
                    claimed_at=claimed.get(lease.epoch),
                    released_at=released.get(lease.epoch),
                )
        start, size = start + size, _AT_ONCE
    return found


def find_living(
    store: ObjectStore, entries: list[Entry], ask_holder: AskHolder | None
) -> LeaseStatus | None:
    """Return the newest lease if it is not released, however long its holder is silent.

    `ask_holder` returns whether a holder that looks alive is known to have ended.
    """
    newest = lease_objects.newest_claim(store, entries)
    if newest is None or lease_objects.is_released(entries, newest.epoch):
        return None
    status = lease_objects.status_of(store, newest, entries, store.now())
    if ask_holder is None or not status.is_alive:
        return status
    return replace(status, holder=ask_holder(status))


def describe_left(living: LeaseStatus | None) -> str:
    """Return the fate of a restore without a commit; `living` is its lease if it did not release it."""
    if living is None:
        return LEFT
    return " ".join(filter(None, (LEFT, living.describe(), living.found and f"{living.found}.")))


def dag_run_of(lease: Lease | None) -> dict[str, Any] | None:
    """Return the ids of the DAG run that took a lease; None if another process did."""
    if lease is None or lease.dag_run is None:
        return None
    return {"dag_id": lease.dag_run.dag_id, "run_id": lease.dag_run.run_id}


def _read(store: ObjectStore, entries: list[Entry], epochs: Sequence[int]) -> list[Lease]:
    return for_each(lambda epoch: lease_objects.read_held(store, entries, epoch), epochs)
