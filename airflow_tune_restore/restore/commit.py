"""Outcomes -> one new state file, so that Ray reads the experiment as if it had never failed.

Rows of resumed trials are what their runners left in their last snapshot; all others go in byte for byte.
One object is added in one put; its name sorts after every other. Deleting it undoes the commit.
"""

import json

import msgspec

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    KeyNotFoundError,
    RunnerError,
    StateChangedError,
    StateUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.state import (
    MalformedStateError,
    RawRow,
    State,
    encode_state,
    parse_state,
)
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.restore import lease
from airflow_tune_restore.restore.attempts import (
    list_attempts,
    newest_started,
    read_outcome,
    wait_until_over,
)
from airflow_tune_restore.restore.plan import RestorePlan, TrialAction, TrialPlan, decode, encode
from airflow_tune_restore.restore.start import read_plan
from airflow_tune_restore.restore.summary import CommitSummary, summarise
from airflow_tune_restore.storage.base import ObjectStore


class _CommitRecord(msgspec.Struct, frozen=True):
    """Written before the state file, so that a commit that was cut off makes the same bytes again."""

    state_file: str  # "" once it is known that nothing has changed
    start_time: float
    attempts: dict[str, int]
    is_done: bool = False  # set at the end: with nothing changed there is no state file to tell
    schema: int = 1


def commit_restore(store: ObjectStore, restore_id: str) -> CommitSummary:
    """Commit what the runners left and release the lease. Done again it changes nothing.

    Raises:
        KeyNotFoundError: If there is no such restore.
        LeaseLostError: If a newer restore took over before anything was committed.
        StateChangedError: If somebody else wrote a newer state meanwhile.
    """
    plan = read_plan(store, restore_id)
    record = _read_record(store, restore_id)
    if record is None or not record.is_done:
        lease.check_held(store, restore_id)
        record = _commit(store, plan, record)
    summary = _summary(store, plan, record)
    _release(store, restore_id)
    return summary


def settle_abandoned(
    store: ObjectStore,
    *,
    restore_id: str,
    holder: str,
    ttl_seconds: float = lease.DEFAULT_TTL_SECONDS,
) -> CommitSummary | None:
    """Commit what restores that died left behind, so that the next plan starts from it.

    Does nothing if every other restore has ended. Otherwise takes the lease for the restore about to
    start, after the holder was watched for its TTL, and keeps it: `start_restore` re-enters it. Cut off
    anywhere, it is done again by whoever comes next.

    Args:
        store: Rooted at the experiment directory.
        restore_id: The restore about to start.
        holder: Who is asking, for the lease.
        ttl_seconds: TTL of the lease it takes.

    Returns:
        What was committed last; None if there was nothing to settle.

    Raises:
        LeaseHeldError: If the holder is alive.
    """
    if not lease.unreleased(store, but=restore_id):
        return None
    held = lease.acquire(store, restore_id=restore_id, holder=holder, ttl_seconds=ttl_seconds)
    summary = None
    try:
        for dead in lease.unreleased(store, but=restore_id):
            if dead.epoch > held.epoch:
                break  # it is we who were taken for dead
            summary = _settle(store, dead.restore_id) or summary
            lease.release(store, dead)  # settled: nobody looks at it again
    except TuneRestoreError:
        lease.release(store, held)
        raise
    return summary


def _settle(store: ObjectStore, restore_id: str) -> CommitSummary | None:
    try:
        plan = read_plan(store, restore_id)
    except KeyNotFoundError:
        return None  # it died before it had a plan
    try:
        record = _read_record(store, restore_id)
        if record is None or not record.is_done:
            record = _commit(store, plan, record)
        return _summary(store, plan, record)
    except StateChangedError:
        return None  # its own driver has run since; what the dead restore did no longer fits


def _commit(store: ObjectStore, plan: RestorePlan, record: _CommitRecord | None) -> _CommitRecord:
    if record is None or not _exists(store, record.state_file):
        base = read_experiment(store)
        if base.state_file.sha256 != plan.base.sha256:
            raise StateChangedError(store.uri, plan.base.name, base.state_file.name)
        record = record or _write_record(store, plan, base)
        body = _build_state(store, plan, base, record)
        if body is not None:
            _put_state(store, record.state_file, body)
        else:  # the name is free for the next restore
            record = msgspec.structs.replace(record, state_file="")
    done = msgspec.structs.replace(record, is_done=True)
    store.put(layout.commit_key(plan.restore_id), encode(done))
    return done


def _write_record(store: ObjectStore, plan: RestorePlan, base: Experiment) -> _CommitRecord:
    """Fix which attempts are committed, under which name and time."""
    attempts: dict[str, int] = {}
    for trial in plan.to_run:
        numbers = list_attempts(store, plan.restore_id, trial.trial_id)
        started = newest_started(store, plan.restore_id, trial.trial_id)
        if started is not None:
            over = wait_until_over(
                store, plan.restore_id, trial.trial_id, started, patience_seconds=120.0
            )
            if not over:
                raise RunnerError(
                    f"Trial {trial.trial_id} of {plan.experiment} still has a living runner (attempt "
                    f"{started}). Nothing was committed; wait for it to end, or stop it."
                )
        with_snapshot = [n for n in numbers if _snapshot(store, plan, trial, n) is not None]
        if with_snapshot:
            attempts[trial.trial_id] = with_snapshot[-1]
    names = [e.name for e in store.list_dir() if not e.is_dir and layout.is_state_file(e.name)]
    record = _CommitRecord(
        state_file=layout.committed_state_name(names),
        # states are ordered by the start of their session: ours comes right after what it is made from
        start_time=max(base.state.start_time, store.now().timestamp()) + 0.001,
        attempts=attempts,
    )
    try:
        store.create(layout.commit_key(plan.restore_id), encode(record))
    except KeyExistsError:
        written = _read_record(store, plan.restore_id)
        if written is not None:
            return written
    return record


def _build_state(
    store: ObjectStore, plan: RestorePlan, base: Experiment, record: _CommitRecord
) -> bytes | None:
    """Return the new state file, or None if every row stays as it was."""
    planned = {trial.trial_id: trial for trial in plan.trials}
    rows = [
        _committed_row(store, plan, planned[trial.trial_id], row, record)
        for trial, row in zip(base.trials, base.state.rows, strict=True)
    ]
    if rows == list(base.state.rows):
        return None
    stats = {**base.state.stats, "start_time": record.start_time}
    return encode_state(rows, base.state.runner, stats)


def _committed_row(
    store: ObjectStore, plan: RestorePlan, trial: TrialPlan, row: RawRow, record: _CommitRecord
) -> RawRow:
    if trial.action is TrialAction.TERMINATE:
        return _terminated(row)
    attempt = record.attempts.get(trial.trial_id)
    if attempt is None:
        return row
    state = _snapshot(store, plan, trial, attempt)
    if state is None:
        raise StateUnreadableError(
            store.uri, f"the snapshot of attempt {attempt} of trial {trial.trial_id} is gone"
        )
    return state.rows[0]


def _terminated(row: RawRow) -> RawRow:
    """Return the row with the status Ray gives a skipped unfinished trial."""
    document = json.loads(msgspec.json.decode(row.trial, type=str))
    document["status"] = TrialStatus.TERMINATED.value
    text = json.dumps(document, indent=2)  # as Trial.get_json_state writes it
    return RawRow(msgspec.Raw(json.dumps(text).encode()), row.metadata)


def _snapshot(
    store: ObjectStore, plan: RestorePlan, trial: TrialPlan, attempt: int
) -> State | None:
    """Read what a runner left, if it is whole and speaks of this trial alone."""
    try:
        state = parse_state(
            store.get(layout.snapshot_key(plan.restore_id, trial.trial_id, attempt))
        )
    except (KeyNotFoundError, MalformedStateError):
        return None
    if [row.trial_id for row in state.trials] != [trial.final_trial_id]:
        return None
    return state


def _put_state(store: ObjectStore, name: str, body: bytes) -> None:
    try:
        store.create(name, body)
    except KeyExistsError:
        if store.get(name) != body:
            raise StateChangedError(store.uri, "the state it was planned from", name) from None


def _read_record(store: ObjectStore, restore_id: str) -> _CommitRecord | None:
    try:
        record: _CommitRecord = decode(store.get(layout.commit_key(restore_id)), _CommitRecord)
    except KeyNotFoundError:
        return None
    return record


def _exists(store: ObjectStore, name: str) -> bool:
    return any(entry.name == name and not entry.is_dir for entry in store.list_dir())


def _release(store: ObjectStore, restore_id: str) -> None:
    """Release a lease that a commit cut off before its last step may still hold."""
    entries = store.list_dir(layout.LEASE)
    held = lease.newest_claim(store, entries)
    if held is not None and held.restore_id == restore_id:
        lease.release(store, held)


def _summary(store: ObjectStore, plan: RestorePlan, record: _CommitRecord) -> CommitSummary:
    before = parse_state(store.get(plan.base.name))
    committed = _exists(store, record.state_file)
    outcomes = {
        trial.trial_id: read_outcome(store, plan.restore_id, trial.trial_id)
        for trial in plan.to_run
    }
    return summarise(
        plan,
        state_file=record.state_file if committed else None,
        before=before,
        after=parse_state(store.get(record.state_file)) if committed else before,
        outcomes={key: outcome for key, outcome in outcomes.items() if outcome is not None},
    )
