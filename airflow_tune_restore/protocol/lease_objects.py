"""Reading the numbered lease objects that `protocol.lease` writes.

Standard library only: runners use it inside Ray images.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_tune_restore.exceptions import LinkRefusedError, TooLargeError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_key_name
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore

DEFAULT_TTL_SECONDS = 120.0
MAX_TTL_SECONDS = 24 * 3600.0
"""Longest TTL that counts, whatever a claim holds."""

MAX_CLAIM_BYTES = 65536

CLOCKS_AGREE_SECONDS = 120.0
"""Times that differ by no more than this may be the same time by two clocks."""

CLAIM, RELEASE, HEARTBEAT = "claim", "release", "heartbeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A held lease.

    Args:
        epoch: Its number, the fencing token.
        holder: Its restore for people (`dag nightly_recovery, run …`, `tune-restore on host`).
        ttl_seconds: How long a silent holder counts as alive.
    """

    epoch: int
    restore_id: str
    holder: str
    ttl_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """A lease that was not released; silent since the last write, by the store's clock."""

    lease: Lease
    silent_seconds: float

    @property
    def is_alive(self) -> bool:
        """Whether the holder wrote within its TTL."""
        return is_alive_after(self.silent_seconds, self.lease.ttl_seconds)


def read_lease_status(store: ObjectStore, root: list[Entry], now: datetime) -> LeaseStatus | None:
    """Return the lease of an experiment if it was never released; None otherwise.

    No request is made without the package's own directory in `root`, the listing of the experiment.
    `now` is the time by the store's clock.
    """
    if not was_restored(root):
        return None
    entries = store.list_dir(layout.LEASE)
    epochs = claimed(entries)
    if not epochs or is_released(entries, max(epochs)):
        return None
    lease = read_claim(store, max(epochs))
    silent = silent_seconds(entries, lease.epoch, now)
    if silent < -CLOCKS_AGREE_SECONDS:  # `now` may be out of date
        silent = silent_seconds(entries, lease.epoch, store.now())
    return LeaseStatus(lease=lease, silent_seconds=silent)


def is_alive_after(silent_seconds: float, ttl_seconds: float) -> bool:
    """Whether a holder that was silent for so long counts as alive.

    A write in the future does not count: it could keep a dead holder alive for ever.
    """
    return -CLOCKS_AGREE_SECONDS <= silent_seconds < ttl_seconds


def was_restored(root: list[Entry]) -> bool:
    """Whether an experiment was ever restored, by the listing of its root."""
    return any(entry.is_dir and entry.name == layout.ROOT for entry in root)


def newest_claim(store: ObjectStore, entries: list[Entry]) -> Lease | None:
    """Read the claim with the highest number."""
    epochs = claimed(entries)
    return read_claim(store, max(epochs)) if epochs else None


def used(entries: list[Entry]) -> set[int]:
    """Return every epoch that is used in the name of a lease object."""
    return _epochs(entries, CLAIM, RELEASE, HEARTBEAT)


def released(entries: list[Entry]) -> set[int]:
    """Return the released epochs."""
    return _epochs((entry for entry in entries if not entry.is_dir), RELEASE)


def is_released(entries: list[Entry], epoch: int) -> bool:
    """Whether an epoch was released."""
    return epoch in released(entries)


def claimed(entries: list[Entry]) -> set[int]:
    """Return the epochs that were ever claimed."""
    return _epochs((entry for entry in entries if not entry.is_dir), CLAIM)


def _epochs(entries: Iterable[Entry], *kinds: str) -> set[int]:
    found = (layout.lease_epoch(entry.name, kind) for entry in entries for kind in kinds)
    return {epoch for epoch in found if epoch is not None}


def silent_seconds(entries: list[Entry], epoch: int, now: datetime) -> float:
    """Return the seconds since the holder's last write, by the store's clock.

    Negative for a write in the future. Infinite if the store returns no times: then only watching the
    holder shows whether it is alive.
    """
    written = (
        entry.modified_at
        for entry in entries
        if epoch in (layout.lease_epoch(entry.name, kind) for kind in (CLAIM, HEARTBEAT))
    )
    newest = max(filter(None, written), default=None)
    return math.inf if newest is None else (now - newest).total_seconds()


def read_claim(store: ObjectStore, epoch: int) -> Lease:
    """Read a claim; an unreadable one gets placeholder names."""
    claim = read_lease_object(store, layout.lease_claim_key(epoch))
    return Lease(
        epoch=epoch,
        restore_id=_restore_id(claim.get("restore_id")),
        holder=_text(claim.get("holder")),
        ttl_seconds=_ttl(claim.get("ttl_seconds")),
    )


def read_lease_object(store: ObjectStore, key: str) -> dict[str, Any]:
    """Read a lease object; one that is not valid counts as empty."""
    try:
        value = json.loads(store.get(key, max_bytes=MAX_CLAIM_BYTES))
    except (ValueError, RecursionError, TooLargeError, LinkRefusedError):
        return {}
    return value if isinstance(value, dict) else {}


def _restore_id(value: Any) -> str:
    return value if isinstance(value, str) and is_key_name(value) else "?"


def _text(value: Any) -> str:
    return (printable(value) if isinstance(value, str) else "") or "?"


def _ttl(value: Any) -> float:
    """Read a TTL; one that is not valid (NaN, "soon", 1e300) must not hold the lease for ever."""
    if type(value) in (int, float) and 0 <= value <= MAX_TTL_SECONDS:
        return float(value)
    return DEFAULT_TTL_SECONDS
