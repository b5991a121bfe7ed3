"""Reading the numbered lease objects that `protocol.lease` writes.

Standard library only: runners use it inside Ray images.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any

from airflow_tune_restore.exceptions import LinkRefusedError, TooLargeError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_key_name, is_sweep
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.record_fields import Moment, Record, must_be
from airflow_tune_restore.storage.base import Entry, ObjectStore

DEFAULT_TTL_SECONDS = 120.0
MAX_TTL_SECONDS = 24 * 3600.0
"""Longest TTL that counts, whatever a claim holds."""

MAX_CLAIM_BYTES = 65536

CLOCKS_AGREE_SECONDS = 120.0
"""Times that differ by no more than this may be the same time by two clocks."""

CLAIM, RELEASE, HEARTBEAT, DAG_RUN = "claim", "release", "heartbeat", "dag_run"


_MAX_AIRFLOW_ID = 250
_AIRFLOW_ID = re.compile(r"[\w.~:+-]+")
"""Airflow's client puts an id into the path of a request as it is: a slash would name another request."""


def is_airflow_id(text: str) -> bool:
    """Whether a text can be the id of a DAG, of a DAG run or of a task, by Airflow's default patterns."""
    return (
        len(text) <= _MAX_AIRFLOW_ID
        and text not in (".", "..")
        and _AIRFLOW_ID.fullmatch(text) is not None
    )


AirflowId = Annotated[str, must_be(is_airflow_id, "an id of Airflow")]


@dataclass(frozen=True, kw_only=True)
class DagRunId(Record):
    """The DAG run that took a lease, so that another one can ask Airflow whether it has ended.

    Args:
        started_at: When it started, ISO 8601. Two Airflow deployments may have a DAG run of the same
            ids, but none that started in the same microsecond.
    """

    dag_id: AirflowId
    run_id: AirflowId
    started_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A held lease.

    Args:
        epoch: Its number, the fencing token.
        holder: Its restore for people (`dag nightly_recovery, run …`, `tune-restore on host`).
        ttl_seconds: How long a silent holder counts as alive.
        dag_run: The DAG run that took it, or took it again; None if another process did, or an older
            version.
    """

    epoch: int
    restore_id: str
    holder: str
    ttl_seconds: float
    dag_run: DagRunId | None = None

    @property
    def name(self) -> str:
        """Its restore, or its sweep, in words."""
        kind = "sweep" if is_sweep(self.restore_id) else "restore"
        return f"{kind} {self.restore_id} of {self.holder}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderStatus:
    """Whether the holder of a lease is known to have ended.

    False decides nothing: then only silence shows that a holder is dead. `found` is how that is known, in
    words, or how a user can find out.
    """

    has_ended: bool
    found: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """A lease that was not released. All times are by the store's clock.

    Args:
        experiment: URI of the experiment.
        claimed_at: When the lease was taken; None if the store reports no times.
        seen_at: When its holder wrote last; None if the store reports no times.
        silent_seconds: The time since then. Negative if the write is in the future; infinite if unknown.
        holder: The answer of a person, or of Airflow; None if no one was asked.
    """

    experiment: str
    lease: Lease
    claimed_at: datetime | None
    seen_at: datetime | None
    silent_seconds: float
    holder: HolderStatus | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the holder is known to have ended."""
        return self.holder is not None and self.holder.has_ended

    @property
    def is_alive(self) -> bool:
        """Whether the holder wrote within its TTL, and is not known to have ended.

        A write in the future does not count: it could keep a dead holder alive for ever.
        """
        in_time = -CLOCKS_AGREE_SECONDS <= self.silent_seconds < self.lease.ttl_seconds
        return in_time and not self.has_ended

    @property
    def found(self) -> str:
        """The answer of a person, or of Airflow, in words; "" without one."""
        return self.holder.found if self.holder is not None else ""

    @property
    def taken(self) -> str:
        """When the lease was taken, in words."""
        return _in_words(self.claimed_at)

    def describe(self) -> str:
        """Return who holds the lease, and since when."""
        name = self.lease.name
        return (
            f"{name[0].upper()}{name[1:]} did not release the lease of "
            f"{self.experiment}. It took the lease {self.taken}. Its last sign of life was "
            f"{_in_words(self.seen_at)}."
        )


AskHolder = Callable[[LeaseStatus], HolderStatus]
"""Returns whether the holder of a lease is known to have ended."""


def _in_words(moment: datetime | None) -> str:
    return f"at {moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "at an unknown time"


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
    lease = read_held(store, entries, max(epochs))
    status = status_of(store, lease, entries, now)
    if status.silent_seconds < -CLOCKS_AGREE_SECONDS:  # `now` may be out of date
        status = status_of(store, lease, entries, store.now())
    return status


def status_of(store: ObjectStore, lease: Lease, entries: list[Entry], now: datetime) -> LeaseStatus:
    """Return how a lease stands, by the listing of the lease objects."""
    claimed_at = _written_at(entries, lease.epoch, CLAIM)
    seen_at = max(
        filter(None, [claimed_at, _written_at(entries, lease.epoch, HEARTBEAT)]), default=None
    )
    return LeaseStatus(
        experiment=store.uri,
        lease=lease,
        claimed_at=claimed_at,
        seen_at=seen_at,
        silent_seconds=math.inf if seen_at is None else (now - seen_at).total_seconds(),
    )


def times_held(entries: list[Entry]) -> tuple[tuple[datetime, datetime], ...]:
    """Return when each lease was held: from its claim to the last sign of life of its holder."""
    first = times_of(entries, CLAIM)
    last = times_of(entries, HEARTBEAT)
    return tuple((at, max(at, last.get(epoch, at))) for epoch, at in first.items())


def release_times(entries: list[Entry]) -> list[datetime]:
    """Return when leases were released."""
    return list(times_of(entries, RELEASE).values())


def times_of(entries: list[Entry], kind: str) -> dict[int, datetime]:
    """Return when the lease objects of a kind were written, by epoch; no others than known times."""
    found = ((layout.lease_epoch(entry.name, kind), entry.modified_at) for entry in entries)
    return {epoch: at for epoch, at in found if epoch is not None and at is not None}


def was_restored(root: list[Entry]) -> bool:
    """Whether an experiment may have been restored, by the listing of its root.

    Without the package's own directory it was not. A recipe makes that directory, too.
    """
    return any(entry.is_dir and entry.name == layout.ROOT for entry in root)


def newest_claim(store: ObjectStore, entries: list[Entry]) -> Lease | None:
    """Read the claim with the highest number, with the latest start of its DAG run."""
    epochs = claimed(entries)
    return read_held(store, entries, max(epochs)) if epochs else None


def read_held(store: ObjectStore, entries: list[Entry], epoch: int) -> Lease:
    """Read a claim, with the latest start of its DAG run; `entries` are the lease objects."""
    claim = read_claim(store, epoch)
    if epoch not in _epochs((entry for entry in entries if not entry.is_dir), DAG_RUN):
        return claim
    return replace(
        claim, dag_run=_dag_run(read_lease_object(store, layout.lease_dag_run_key(epoch)))
    )


def used(entries: list[Entry]) -> set[int]:
    """Return every epoch that is used in the name of a lease object."""
    return _epochs(entries, CLAIM, RELEASE, HEARTBEAT, DAG_RUN)


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


def is_taken_over(entries: list[Entry], earlier: Lease, later: Lease) -> bool:
    """Whether the lease of the earlier claim was not released before the later claim was made."""
    released_at = _written_at(entries, earlier.epoch, RELEASE)
    claimed_at = _written_at(entries, later.epoch, CLAIM)
    if released_at is None or claimed_at is None:
        return not is_released(entries, earlier.epoch)
    return released_at > claimed_at


def _written_at(entries: list[Entry], epoch: int, kind: str) -> datetime | None:
    """Return when a lease object was written; None if that is not known."""
    of_kind = (entry for entry in entries if layout.lease_epoch(entry.name, kind) == epoch)
    return next((entry.modified_at for entry in of_kind), None)


def read_claim(store: ObjectStore, epoch: int) -> Lease:
    """Read a claim; an unreadable one gets placeholder names."""
    claim = read_lease_object(store, layout.lease_claim_key(epoch))
    return Lease(
        epoch=epoch,
        restore_id=_restore_id(claim.get("restore_id")),
        holder=_text(claim.get("holder")),
        ttl_seconds=_ttl(claim.get("ttl_seconds")),
        dag_run=_dag_run(claim.get("dag_run")),
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


def _dag_run(value: Any) -> DagRunId | None:
    """Read the DAG run of a claim; one that is not valid is not asked about."""
    try:
        return DagRunId.read(value)
    except (ValueError, TypeError):
        return None
