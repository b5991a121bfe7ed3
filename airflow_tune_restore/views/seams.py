"""Store -> where restores continued trials: the seams in their curves.

A plan tells after which iteration each trial is resumed. It is immutable, and holds all trials of its
restore: one request, where their seeds would be one for each. What a finished restore did is kept.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.undo import list_restores
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

MAX_RESTORES = 20
"""Of one experiment: the newest ones are looked at for seams."""

_LISTED_RESTORES = 100
"""Directories of restores that are listed to find the newest ones: the last by their names."""

_KEPT = 256
"""Restores that a process keeps, of all experiments."""

_NEVER = datetime.min.replace(tzinfo=UTC)

_T = TypeVar("_T")

log = logging.getLogger(__name__)


class Seam(NamedTuple):
    """A restore continued a trial after this iteration; `at` is when the restore was planned."""

    iteration: int
    restore_id: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class _Restore:
    """The deeds of a restore.

    Args:
        resumed: The iteration that each trial was resumed after. A trial that was restarted has a new id
            and no seam; so has one whose checkpoint has no known iteration.
        is_whole: Whether one runner ran all trials.
        ran: The units whose attempts were committed; None if the restore is not over.
    """

    resumed: dict[str, int]
    is_whole: bool
    ran: frozenset[str] | None


class Seams:
    """Finds the seams of trials, and keeps what restores that are over did. Threads may share one."""

    def __init__(self) -> None:
        self._times: OrderedDict[tuple[str, str], datetime | None] = OrderedDict()
        self._restores: OrderedDict[tuple[str, str], _Restore] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self, store: ObjectStore, address: str, trial_ids: Collection[str]
    ) -> dict[str, list[Seam]]:
        """Return the seams of trials by id, the oldest restore first; `address` is that of the store.

        A restore whose records cannot be read has none, and so has one that a later restore of the trial
        went back behind.
        """
        ids = sorted(list_restores(store))[-_LISTED_RESTORES:]
        times = dict(zip(ids, for_each(lambda r: self._time(store, address, r), ids), strict=True))
        order = sorted(ids, key=lambda restore_id: times[restore_id] or _NEVER)[-MAX_RESTORES:]
        found: dict[str, list[Seam]] = {trial_id: [] for trial_id in trial_ids}
        read = for_each(lambda restore_id: self._restore(store, address, restore_id), order)
        for restore_id, restore in zip(order, read, strict=True):
            if restore is None:
                continue
            for trial_id in _that_ran(store, restore_id, restore, trial_ids):
                seam = Seam(restore.resumed[trial_id], restore_id, times[restore_id])
                found[trial_id] = [*_outlasting(found[trial_id], seam), seam]
        return found

    def _time(self, store: ObjectStore, address: str, restore_id: str) -> datetime | None:
        """Return when a restore was planned; None without a plan."""
        key = (address, restore_id)
        with self._lock:
            if key in self._times:
                return self._times[key]
        directory, _, name = layout.plan_key(restore_id).rpartition("/")
        plans = [entry for entry in store.list_dir(directory) if entry.name == name]
        at = plans[0].modified_at if plans else None
        if plans:  # it is never written again
            self._keep(self._times, key, at)
        return at

    def _restore(self, store: ObjectStore, address: str, restore_id: str) -> _Restore | None:
        key = (address, restore_id)
        with self._lock:
            if key in self._restores:
                return self._restores[key]
        try:
            restore = _read_restore(store, restore_id)
        except TuneRestoreError as error:
            log.warning("%s: no seams of a restore are shown: %s", store.uri, printable(str(error)))
            return None
        if restore.ran is not None:
            self._keep(self._restores, key, restore)
        return restore

    def _keep(
        self, kept: "OrderedDict[tuple[str, str], _T]", key: tuple[str, str], value: _T
    ) -> None:
        with self._lock:
            kept[key] = value
            while len(kept) > _KEPT:
                kept.popitem(last=False)


def _outlasting(seams: Iterable[Seam], later: Seam) -> Iterator[Seam]:
    """Yield the earlier seams that a later restore left: it replaced all rows after its checkpoint."""
    return (seam for seam in seams if seam.iteration < later.iteration)


def _read_restore(store: ObjectStore, restore_id: str) -> _Restore:
    plan = read_plan(store, restore_id)
    commit = read_commit_record(store, restore_id)
    return _Restore(
        {
            trial.trial_id: trial.iteration
            for trial in plan.to_run
            if trial.action is TrialAction.RESUME and trial.iteration > 0
        },
        plan.is_whole_experiment,
        frozenset(commit.attempts) if commit is not None and commit.is_done else None,
    )


def _that_ran(
    store: ObjectStore, restore_id: str, restore: _Restore, trial_ids: Iterable[str]
) -> Iterator[str]:
    """Yield the trials that a restore resumed and has run."""
    wanted = [trial_id for trial_id in trial_ids if trial_id in restore.resumed]

    def has_attempt(unit: str) -> bool:
        if restore.ran is not None:
            return unit in restore.ran
        return bool(AttemptRecords(store, restore_id, unit).numbers())

    if not restore.is_whole:
        ran = for_each(has_attempt, wanted)
        yield from (trial_id for trial_id, did in zip(wanted, ran, strict=True) if did)
    elif wanted and has_attempt(layout.WHOLE_EXPERIMENT):
        yield from wanted
