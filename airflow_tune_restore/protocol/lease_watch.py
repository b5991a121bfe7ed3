"""The watch of a holder that did not release its lease: rules 4 and 5 of `protocol.lease`.

Standard library only: runners use it inside Ray images.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from airflow_tune_restore.exceptions import LeaseHeldError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.lease_objects import (
    AskHolder,
    HolderStatus,
    Lease,
    LeaseStatus,
    is_released,
    status_of,
)
from airflow_tune_restore.protocol.listed_records import read_heartbeats
from airflow_tune_restore.protocol.records import read_heartbeat
from airflow_tune_restore.storage.base import Entry, ObjectStore

logger = logging.getLogger(__name__)

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

_LOOK_SECONDS = 1.0


class Clock:
    """The clock of this process, in seconds, and how it waits."""

    def monotonic(self) -> float:
        """Return the time of a clock that is never set."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


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
        found = self.status.found and f"{self.status.found}. "
        return (
            f"{self.status.describe()} {found}It is watched for {self.seconds:.0f} s. If it stays "
            "silent, its lease is taken over then."
        )


OnWait = Callable[[Watch], Callable[[float], None]]
"""Called when a wait begins. The function that it returns is called with the seconds that are left, at
each look at the holder; at the end with 0.
"""


def log_wait(watch: Watch) -> Callable[[float], None]:
    """Log that a wait begins."""
    logger.warning("%s", watch.describe())
    return lambda _left: None


def begin_watch(
    store: ObjectStore,
    current: Lease,
    entries: list[Entry],
    ask_holder: AskHolder | None,
    clock: Clock,
) -> Watch:
    """Take the first look at a holder (LeaseHeldError if it is alive)."""
    status = status_of(store, current, entries, store.now())
    if ask_holder is not None:
        status = replace(status, holder=ask_holder(status))
    if status.is_alive:
        raise refusal(status)
    return Watch(
        status=status,
        pulse=_pulse(store, current.epoch),
        runners=read_heartbeats(store, current.restore_id) if status.has_ended else {},
        since=clock.monotonic(),
        seconds=min(
            current.ttl_seconds, KNOWN_DEAD_SECONDS if status.has_ended else MAX_WATCH_SECONDS
        ),
    )


def wait_for_death(store: ObjectStore, watch: Watch, on_wait: OnWait, clock: Clock) -> None:
    """Return once the holder was silent during the whole watch, or released its lease.

    Raises:
        LeaseHeldError: If it wrote.
    """
    current = watch.status.lease
    show_left = on_wait(watch) if watch.left(clock.monotonic()) > 0 else lambda _left: None
    while (left := watch.left(clock.monotonic())) > 0:
        if is_released(store.list_dir(layout.LEASE), current.epoch):
            break
        _refuse_if_moved(store, watch)
        show_left(left)
        clock.sleep(min(_LOOK_SECONDS, left + 0.1))
    show_left(0.0)
    if not is_released(store.list_dir(layout.LEASE), current.epoch):
        _refuse_if_moved(store, watch)
        if watch.status.has_ended and read_heartbeats(store, current.restore_id) != watch.runners:
            raise held_by_living(watch.status)


def has_moved(store: ObjectStore, watch: Watch) -> bool:
    """Whether the holder has written since the watch began."""
    return _pulse(store, watch.status.lease.epoch) != watch.pulse


def _refuse_if_moved(store: ObjectStore, watch: Watch) -> None:
    if has_moved(store, watch):
        raise held_by_living(watch.status)


def held_by_living(status: LeaseStatus) -> LeaseHeldError:
    """Return the error for a holder that has written just now."""
    lives = HolderStatus(has_ended=False, found="It lives: it wrote while it was watched")
    return refusal(replace(status, silent_seconds=0.0, holder=lives))


def refusal(status: LeaseStatus) -> LeaseHeldError:
    """Return the error for a lease that another restore holds."""
    return LeaseHeldError(
        status.experiment,
        status.lease.restore_id,
        status.lease.holder,
        max(0.0, status.silent_seconds),
        taken=status.taken,
        found=status.found,
    )


def _pulse(store: ObjectStore, epoch: int) -> bytes | None:
    return read_heartbeat(store, layout.lease_heartbeat_key(epoch))
