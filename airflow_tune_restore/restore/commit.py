"""Commit: outcomes -> one new state file, so that Ray reads the experiment as if it had never failed.

Rows of restored trials come from the last snapshots of their runners; all others stay byte for byte. The
state file is created in one put, and its name sorts after every other. Deleting it undoes the commit. If
the run continued the search, the rows of new trials follow, and the searcher's state is put beside the
state file under the same session, as Ray does. With only one of the two, samples would be lost or drawn
again.

Preconditions, in the order in which they are checked:

1. The commit was not undone (`_refuse_undone`).
2. The restore holds the lease, and renews it to the end. Without it nothing is written (`keep_lease`).
3. No runner of the restore is alive (`wait_for_runners`). Those that were silent, or have begun since,
   are watched again once the commit record exists: if they live, they end then (`settle_late_attempts`).
4. The newest state is the one that the plan was made from: nothing else wrote one since (`_check_base`).
5. The trials of the plan are the trials of that state (`plan.check_fits`).
6. The name of the new state sorts after that of the old one (`_check_sorts_last`).
7. The new state is small enough to be read again (`_check_size`).
8. The name of the new state is free, or an earlier try wrote the same bytes (`_put_state`).

A commit record is created before anything else. It fixes the name and the start time of the new state,
and runners that see it end: none of them writes after that. So a commit that was cut off makes the same
bytes when it is repeated.
"""

import hashlib
import math
from dataclasses import dataclass

import msgspec

from airflow_tune_restore.exceptions import (
    CommitUndoneError,
    KeyExistsError,
    RecordUnreadableError,
    StateChangedError,
    StateUnreadableError,
)
from airflow_tune_restore.experiments.budget import IN_WORK
from airflow_tune_restore.experiments.experiment import StateFile
from airflow_tune_restore.experiments.read import read_base_state
from airflow_tune_restore.experiments.state import NO_STATE, Keep, State, parse_pieces
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.experiments.tuner_file import read_samples_left
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.kept_lease import keep_lease
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore import commit_record, committed_state, ledger
from airflow_tune_restore.restore.commit_record import CommitRecord, read_commit_record
from airflow_tune_restore.restore.committed_attempts import (
    settle_late_attempts,
    wait_for_units,
)
from airflow_tune_restore.restore.ledger import Ledger
from airflow_tune_restore.restore.paused import find_paused
from airflow_tune_restore.restore.plan import RestorePlan, check_fits, read_plan
from airflow_tune_restore.restore.record_json import encode
from airflow_tune_restore.restore.snapshots import Snapshots
from airflow_tune_restore.restore.summary import CommitSummary, summarise
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import for_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A commit that is done, and what is known of it because it was done just now.

    Args:
        failures: The ledger with its failures.
        before, after: The state that it started from, and the one that it wrote, if one was written;
            without rows.
    """

    record: CommitRecord
    failures: Ledger | None = None
    before: State | None = None
    after: State | None = None


def commit_restore(store: ObjectStore, restore_id: str) -> CommitSummary:
    """Commit what the runners left and release the lease. Repeated, it changes nothing.

    Raises:
        KeyNotFoundError: If the restore does not exist.
        LeaseLostError: If a newer restore took over before anything was committed.
        RunnerError: If a runner of the restore does not end.
        StateChangedError: If something else wrote a newer state.
        CommitUndoneError: If it was committed, and then undone.
    """
    plan = read_plan(store, restore_id)
    record = read_commit_record(store, restore_id)
    _refuse_undone(store, restore_id, record)
    records = RestoreRecords(store, restore_id)
    if record is not None and record.is_done:
        done = Committed(record=record)
    else:
        with keep_lease(store, restore_id) as held:
            over = wait_for_units(store, records, plan.units)
            with IN_WORK.hold(plan.base.size_bytes):
                done = write_commit(held, plan, record, records, over)
    summary = summarise_commit(store, plan, records, done)
    _release(store, restore_id)
    return summary


def write_commit(
    store: ObjectStore,
    plan: RestorePlan,
    record: CommitRecord | None,
    records: RestoreRecords,
    over: dict[str, int] | None = None,
) -> Committed:
    """Write what a commit adds; `over` is as for `settle_late_attempts`."""
    digest, after = "", None
    record, before = _begin(store, plan, record)
    settle_late_attempts(store, records, plan.units, over)
    snapshots = Snapshots(store, records, record.attempts)
    if before is None:
        snapshots.read_all(plan)
    else:
        _check_sorts_last(store, plan, record)
        body, after = committed_state.build(store, plan, before, record.start_time, snapshots)
        if body is not None:
            _check_size(store, body, len(before.trials))
            _put_state(store, record.state_file, body)
            digest = hashlib.sha256(body).hexdigest()
        else:  # the name is free for the next restore
            record = msgspec.structs.replace(record, state_file="")
        del body
    # sorted: threads have read them, and a commit that is repeated writes the same bytes
    record = msgspec.structs.replace(record, attempts=dict(sorted(snapshots.attempts.items())))
    if record.state_file:
        if plan.continues_search:
            committed_state.put_searcher(store, plan, record, snapshots)
        committed_state.put_callbacks(store, plan, record)
    failures = ledger.record_failures(store, plan, records)
    digest = digest or commit_record.committed_sha256(store, record)
    done = msgspec.structs.replace(record, is_done=True, sha256=digest)
    store.put(layout.commit_key(plan.restore_id), encode(done))
    return Committed(record=done, failures=failures, before=before, after=after)


def _begin(
    store: ObjectStore, plan: RestorePlan, record: CommitRecord | None
) -> tuple[CommitRecord, State | None]:
    """Return the record, which exists from now on, and the base; None for it if the state exists, too."""
    if record is not None and _has_state(store, record):
        return record, None
    entries = store.list_dir()
    keep = Keep(shown=True, packed=True, metric=plan.metric)
    file, base = read_base_state(store, entries, keep)
    try:
        _check_base(store, plan, file, base)
    except StateChangedError:
        # another try of this task may have written the state just now; it may die before it is done
        record = read_commit_record(store, plan.restore_id)
        if record is None or not _has_state(store, record):
            raise
        return record, None
    return record or _write_record(store, plan, entries, base), base


def _has_state(store: ObjectStore, record: CommitRecord) -> bool:
    return bool(record.state_file) and commit_record.is_in_root(store, record.state_file)


def _write_record(
    store: ObjectStore, plan: RestorePlan, entries: list[Entry], base: State
) -> CommitRecord:
    """Begin the commit: fix the name and the time of its state. Runners that see the record end."""
    searches = plan.continues_search
    record = CommitRecord(
        state_file=commit_record.name_commit(store, entries, continues_search=searches),
        start_time=_start_time(store, base),
        attempts={},
    )
    try:
        store.create(layout.commit_key(plan.restore_id), encode(record))
    except KeyExistsError:
        return read_commit_record(store, plan.restore_id) or record
    return record


def _start_time(store: ObjectStore, base: State) -> float:
    """Return the start of the committed state, in Unix seconds: right after that of its base.

    States are ordered by their start (ADR 0009). The time of the commit could be later than the start of
    a driver that a user starts after it: clocks differ.
    """
    start = base.start_time
    return (start if math.isfinite(start) else store.now().timestamp()) + 0.001


def _release(store: ObjectStore, restore_id: str) -> None:
    """Release the lease; a commit that was cut off before its last step may still hold it."""
    held = lease.last_before(store)
    if held is not None and held.restore_id == restore_id:
        lease.release(store, held)


# The preconditions, in the order of the list at the top


def _refuse_undone(store: ObjectStore, restore_id: str, record: CommitRecord | None) -> None:
    """Refuse a commit that was undone: committing it again would bring it back."""
    if record is not None and record.undone_at and not commit_record.state_exists(store, record):
        raise CommitUndoneError(store.uri, restore_id, record.undone_at)


def _check_base(store: ObjectStore, plan: RestorePlan, file: StateFile, base: State) -> None:
    """Check that no other process wrote a newer state, and that the plan fits this one."""
    if file.sha256 != plan.base.sha256:
        raise StateChangedError(store.uri, plan.base.name, file.name)
    check_fits(store, plan, base)


def _check_sorts_last(store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
    """Check the recorded name: Ray reads the state whose name sorts last."""
    if record.state_file <= plan.base.name:
        reason = f"{record.state_file} does not sort after {plan.base.name}"
        raise RecordUnreadableError(store.uri, layout.commit_key(plan.restore_id), reason)


def _check_size(store: ObjectStore, body: bytes, trials: int) -> None:
    """Refuse a state that this package could not read again (StateUnreadableError)."""
    limit = layout.MAX_STATE_BYTES
    if len(body) > limit:
        raise StateUnreadableError(
            store.uri,
            f"its new state would have {len(body)} bytes, and at most {limit} are read. Nothing was "
            f"committed; what the runners left of its {counted(trials, 'trial')} stays under "
            f"{layout.ROOT}",
        )


def _put_state(store: ObjectStore, name: str, body: bytes) -> None:
    """Create the state file. It may exist with the same bytes: an earlier try was cut off."""
    try:
        store.create(name, body)
    except KeyExistsError:
        if store.get(name, max_bytes=layout.MAX_STATE_BYTES) != body:
            raise StateChangedError(store.uri, "the state it was planned from", name) from None


# The summary of a commit


def summarise_commit(
    store: ObjectStore,
    plan: RestorePlan,
    records: RestoreRecords,
    done: Committed,
    *,
    reads_finished: bool = True,
) -> CommitSummary:
    """Return what a commit did to each trial. It reads the states, unless they are known.

    Without `reads_finished`, the outcomes of trials that it made TERMINATED are not read: their rows say
    enough for people who only look, and there may be thousands.
    """
    record, before = done.record, done.before
    if before is None:
        before = _read_state(store, plan, plan.base.name) if plan.base.name else NO_STATE
        check_fits(store, plan, before)
    if done.after is not None:
        committed, after = bool(record.state_file), done.after
    else:
        committed = commit_record.is_in_root(store, record.state_file)
        after = _read_state(store, plan, record.state_file) if committed else before
    drawn = len(after.trials) - len(before.trials)
    if drawn and not (drawn > 0 and plan.continues_search):
        raise RecordUnreadableError(
            store.uri, record.state_file, f"its number of trials does not fit {plan.base.name}"
        )
    histories = (done.failures or ledger.read_ledger(store)[0]).trials
    units = [trial.trial_id for trial in plan.to_run]
    outcomes = {} if reads_finished else _assume_finished(plan, before, after)
    unread = [unit for unit in units if unit not in outcomes]
    read = for_each(lambda unit: records.of(unit).outcome_or_interrupted(), unread)
    outcomes |= {unit: found for unit, found in zip(unread, read, strict=True) if found is not None}
    if layout.WHOLE_EXPERIMENT in plan.units:
        run = records.of(layout.WHOLE_EXPERIMENT).outcome_or_interrupted()
        outcomes |= {layout.WHOLE_EXPERIMENT: run} if run is not None else {}
    failed = {unit for unit in units if unit in histories and histories[unit].has(plan.restore_id)}
    paused = find_paused(store, plan, outcomes, failed)
    return summarise(
        plan,
        state_file=record.state_file if committed else None,
        before=before,
        after=after,
        outcomes=outcomes,
        # what the next scan will find: a searcher that ended early suggests no more
        samples_left=read_samples_left(store, store.list_dir(), len(after.trials))
        if plan.continues_search
        else plan.samples_left,
        paused=paused,
        quarantined=[
            trial.final_trial_id
            for trial in plan.to_run
            if trial.final_trial_id in histories and histories[trial.final_trial_id].quarantined
        ],
    )


def _assume_finished(plan: RestorePlan, before: State, after: State) -> dict[str, RunnerOutcome]:
    """Return the outcomes, without what they measured, of the trials to run that are TERMINATED now."""
    done = TrialStatus.TERMINATED
    finished = {
        old.trial_id: new.trial_id
        for old, new in zip(before.trials, after.trials, strict=False)
        if new.status is done and old.status is not done
    }
    return {
        trial.trial_id: RunnerOutcome(
            restore_id=plan.restore_id,
            trial_id=trial.trial_id,
            attempt=1,
            result=Result.FINISHED,
            status=done.value,
            final_trial_id=finished[trial.trial_id],
        )
        for trial in plan.to_run
        if trial.trial_id in finished
    }


def _read_state(store: ObjectStore, plan: RestorePlan, name: str) -> State:
    """Read what tables show of a state that was valid before."""
    pieces = store.stream(name, max_bytes=layout.MAX_STATE_BYTES)
    return parse_pieces(pieces, Keep(shown=True, metric=plan.metric))
