"""Commits the work that restores left behind when they died, before the next restore starts.

So no result of theirs is lost, and the next plan starts from there.
"""

import contextlib
import math
from collections.abc import Iterable

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    RecordUnreadableError,
    StateChangedError,
)
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.kept_lease import keep_lease
from airflow_tune_restore.protocol.lease_objects import (
    DEFAULT_TTL_SECONDS,
    DagRunId,
    Lease,
)
from airflow_tune_restore.protocol.lease_watch import OnWait, Watch, log_wait
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.restore import commit_record, ledger, undo
from airflow_tune_restore.restore.commit import Committed, summarise_commit, write_commit
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.committed_attempts import list_started, wait_for_runners
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore


def commit_abandoned(
    store: ObjectStore,
    *,
    restore_id: str,
    holder: str,
    ttl_seconds: float = DEFAULT_TTL_SECONDS,
    dag_run: DagRunId | None = None,
    watch: Watch | None = None,
    on_wait: OnWait = log_wait,
) -> dict[str, CommitSummary | None]:
    """Commit what restores that died left behind, and finish what an undo that died has begun.

    So the next plan starts from there. It takes the lease for the restore about to start, after a watch
    of a holder that looks dead. The caller releases it, also after an error. If it is cut off anywhere,
    the next restore repeats it. `restore_id`, `holder` (for people), `ttl_seconds` and `dag_run` are
    those of the new lease. `watch` is a watch of the old one that has begun before, and `on_wait` shows
    it.

    Returns:
        What was left behind, by restore, the oldest first, with the summary of each commit: None if there
        was nothing to commit.

    Raises:
        LeaseHeldError: If the holder is alive.
    """
    held = lease.acquire(
        store,
        restore_id=restore_id,
        holder=holder,
        ttl_seconds=ttl_seconds,
        dag_run=dag_run,
        watch=watch,
        on_wait=on_wait,
    )
    # under the lease: before it, another restore may still begin, and die
    abandoned = _left_behind(store, restore_id, before=held.epoch)
    if not abandoned:
        return {}
    with keep_lease(store, restore_id) as held_store:
        wait_for_runners(store, _started_by_all(store, abandoned))
        settled: dict[str, CommitSummary | None] = {}
        for dead_id, leases in abandoned.items():
            settled[dead_id] = _settle(held_store, dead_id)
            lease.release_all(held_store, leases)  # no later restore looks at it again
        return settled


def has_left_work(store: ObjectStore, restore_id: str) -> bool:
    """Whether something that died left work: a restore to commit, or an undo to finish."""
    return any(_has_uncommitted_work(store, dead) for dead in _left_behind(store, restore_id))


def _left_behind(
    store: ObjectStore, restore_id: str, *, before: float = math.inf
) -> dict[str, list[Lease]]:
    """Return the restores that ended without a commit, the oldest first, with leases to release.

    They did not release their leases; or the last one did, because another try of its plan had failed. A
    newer restore, whose lease has a number after `before`, keeps its own: it took this one for dead.
    """
    found: dict[str, list[Lease]] = {}
    for dead in lease.unreleased(store, but=restore_id):
        if dead.epoch < before:
            found.setdefault(dead.restore_id, []).append(dead)
    last = lease.last_before(store, before, but=restore_id)
    if (
        last is not None
        and last.restore_id not in found
        and _has_uncommitted_work(store, last.restore_id)
    ):
        found[last.restore_id] = []
    return found


def _has_uncommitted_work(store: ObjectStore, restore_id: str) -> bool:
    """Whether runners of a restore have started, and its commit is not done; False if unreadable.

    For the id of an undo: whether it has begun and is not done.
    """
    try:
        if undo.is_undo(restore_id):
            return undo.is_cut_off(store, restore_id)
        record = read_commit_record(store, restore_id)
        if record is not None:
            return not record.is_done
        plan = read_plan(store, restore_id)
        if plan.is_sweep:
            return False  # its own driver has written all that it did
        units = plan.units
        return bool(list_started(RestoreRecords(store, restore_id), units))
    except (KeyNotFoundError, RecordUnreadableError):
        return False


def _settle(store: ObjectStore, restore_id: str) -> CommitSummary | None:
    if undo.is_undo(restore_id):
        undo.finish(store, restore_id)
        return None
    try:
        plan = read_plan(store, restore_id)
    except KeyNotFoundError:
        return None  # it died before it had a plan
    if plan.is_sweep:
        return None
    records = RestoreRecords(store, restore_id)
    try:
        record = read_commit_record(store, restore_id)
        if record is None or not record.is_done:
            done = write_commit(store, plan, record, records)
        elif plan.base.name and not commit_record.is_in_root(store, plan.base.name):
            return None  # it was committed, and the state before it was undone since
        else:
            done = Committed(record=record)
        return summarise_commit(store, plan, records, done)
    except StateChangedError:
        # its own driver has run since: what the dead restore did no longer fits, but its failures count
        ledger.record_failures(store, plan, records)
        return None


def _started_by_all(store: ObjectStore, restore_ids: Iterable[str]) -> list[AttemptId]:
    """Return the started attempts of several restores that died and are not committed yet."""
    started = []
    for restore_id in restore_ids:
        if read_commit_record(store, restore_id) is None:
            with contextlib.suppress(KeyNotFoundError):  # it died before it had a plan
                units = read_plan(store, restore_id).units
                started += list_started(RestoreRecords(store, restore_id), units)
    return started
