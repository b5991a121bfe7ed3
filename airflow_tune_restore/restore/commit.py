"""Outcomes -> one new state file, so that Ray reads the experiment as if it had never failed.

Rows of resumed trials are what their runners left in their last snapshot; all others go in byte for byte.
One object is added in one put; its name sorts after every other. Deleting it undoes the commit.
Where a run drew samples, their rows follow, and the searcher's state is put beside the state file under
the same session, as Ray does: with one of the two alone, samples would be lost or drawn again.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from airflow_tune_restore.exceptions import (
    CommitUndoneError,
    KeyExistsError,
    KeyNotFoundError,
    LinkRefusedError,
    RecordUnreadableError,
    RunnerError,
    StateChangedError,
    StateUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.experiments.samples import read_samples_left
from airflow_tune_restore.experiments.state import (
    NO_STATE,
    parse_state,
)
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords, wait_until_all_over
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore import ledger
from airflow_tune_restore.restore.commit_record import (
    CommitRecord,
    committed_sha256,
    is_in_root,
    name_commit,
    read_commit_record,
    stands,
)
from airflow_tune_restore.restore.committed_state import build_committed_state, read_snapshot
from airflow_tune_restore.restore.plan import RestorePlan, check_fits, read_plan
from airflow_tune_restore.restore.record_json import encode
from airflow_tune_restore.restore.summary import CommitSummary, summarise
from airflow_tune_restore.storage.base import ObjectStore

_PATIENCE_SECONDS = 120.0
"""How long a commit waits for a runner that still lives."""

_CONCURRENCY = 16

logger = logging.getLogger(__name__)


def commit_restore(store: ObjectStore, restore_id: str) -> CommitSummary:
    """Commit what the runners left and release the lease. Done again it changes nothing.

    Raises:
        KeyNotFoundError: If there is no such restore.
        LeaseLostError: If a newer restore took over before anything was committed.
        StateChangedError: If somebody else wrote a newer state meanwhile.
        CommitUndoneError: If it was committed, and taken back since.
    """
    plan = read_plan(store, restore_id)
    record = read_commit_record(store, restore_id)
    if record is not None and record.undone_at and not stands(store, record):
        raise CommitUndoneError(store.uri, restore_id, record.undone_at)
    if record is None or not record.is_done:
        held = lease.check_held(store, restore_id)
        with lease.kept(store, restore_id, held.ttl_seconds):
            if record is None:
                _wait_for_runners(store, _started(store, plan))
            record = _commit(store, plan, record)
    summary = _summary(store, plan, record)
    _release(store, restore_id)
    return summary


def commit_abandoned(
    store: ObjectStore,
    *,
    restore_id: str,
    holder: str,
    ttl_seconds: float = lease_objects.DEFAULT_TTL_SECONDS,
    watch: lease.Watch | None = None,
) -> CommitSummary | None:
    """Commit what restores that died left behind, so that the next plan starts from it.

    Does nothing if every other restore has ended. Otherwise takes the lease for the restore about to
    start, after the holder was watched for its TTL, and keeps it: `start_plan` re-enters it. Cut off
    anywhere, it is done again by whoever comes next.

    Args:
        store: Rooted at the experiment directory.
        restore_id: The restore about to start.
        holder: Who is asking, for the lease.
        ttl_seconds: TTL of the lease it takes.
        watch: Of the holder, if it has begun before.

    Returns:
        What was committed last; None if there was nothing to settle.

    Raises:
        LeaseHeldError: If the holder is alive.
    """
    if not lease.unreleased(store, but=restore_id):
        return None
    held = lease.acquire(
        store, restore_id=restore_id, holder=holder, ttl_seconds=ttl_seconds, watch=watch
    )
    summary = None
    try:
        with lease.kept(store, restore_id, ttl_seconds):
            abandoned = _abandoned(store, held)
            _wait_for_runners(store, _started_by_all(store, abandoned))
            for dead_id, leases in abandoned.items():
                summary = _commit_abandoned(store, dead_id) or summary
                lease.release_all(store, leases)  # settled: nobody looks at them again
    except Exception:
        lease.release(store, held)
        raise
    return summary


def _abandoned(
    store: ObjectStore, held: lease_objects.Lease
) -> dict[str, list[lease_objects.Lease]]:
    """Return what the restores before ours never released, by restore, the oldest first.

    A newer one took us for dead; what it holds is its own.
    """
    found: dict[str, list[lease_objects.Lease]] = {}
    for dead in lease.unreleased(store, but=held.restore_id):
        if dead.epoch < held.epoch:
            found.setdefault(dead.restore_id, []).append(dead)
    return found


def _commit_abandoned(store: ObjectStore, restore_id: str) -> CommitSummary | None:
    try:
        plan = read_plan(store, restore_id)
    except KeyNotFoundError:
        return None  # it died before it had a plan
    try:
        record = read_commit_record(store, restore_id)
        if record is None or not record.is_done:
            record = _commit(store, plan, record)
        return _summary(store, plan, record)
    except StateChangedError:
        return None  # its own driver has run since; what the dead restore did no longer fits


def _commit(store: ObjectStore, plan: RestorePlan, record: CommitRecord | None) -> CommitRecord:
    digest = ""
    if record is None or (record.state_file and not is_in_root(store, record.state_file)):
        base = read_base(store)
        if base.state_file.sha256 != plan.base.sha256:
            raise StateChangedError(store.uri, plan.base.name, base.state_file.name)
        check_fits(store, plan, base.state)
        record = record or _write_record(store, plan, base)
        if record.state_file <= plan.base.name:  # Ray would never look at it
            key = layout.commit_key(plan.restore_id)
            raise RecordUnreadableError(
                store.uri, key, f"{record.state_file} does not sort after {plan.base.name}"
            )
        body = build_committed_state(store, plan, base, record)
        if body is not None:
            _check_is_readable(store, body, len(base.trials))
            _put_state(store, record.state_file, body)
            digest = hashlib.sha256(body).hexdigest()
        else:  # the name is free for the next restore
            record = msgspec.structs.replace(record, state_file="")
    if plan.continues_search and record.state_file:
        _put_searcher(store, plan, record)
    if record.state_file:
        _put_callbacks(store, plan, record)
    ledger.record_failures(store, plan)
    digest = digest or committed_sha256(store, record)
    done = msgspec.structs.replace(record, is_done=True, sha256=digest)
    store.put(layout.commit_key(plan.restore_id), encode(done))
    return done


def _write_record(store: ObjectStore, plan: RestorePlan, base: Experiment) -> CommitRecord:
    """Fix which attempts are committed, under which name and time."""
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        newest = pool.map(lambda unit: _newest_attempt_with_snapshot(store, plan, unit), plan.units)
        found = zip(plan.units, newest, strict=True)
        attempts = {unit: attempt for unit, attempt in found if attempt is not None}
    record = CommitRecord(
        state_file=name_commit(store, continues_search=plan.continues_search),
        # states are ordered by the start of their session: ours comes right after what it is made from
        start_time=max(base.state.start_time, store.now().timestamp()) + 0.001,
        attempts=attempts,
    )
    try:
        store.create(layout.commit_key(plan.restore_id), encode(record))
    except KeyExistsError:
        written = read_commit_record(store, plan.restore_id)
        if written is not None:
            return written
    return record


def _started(store: ObjectStore, plan: RestorePlan) -> list[AttemptId]:
    """Return the newest attempt of each trial whose runner has shown itself."""
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        newest = pool.map(
            lambda unit: AttemptRecords(store, plan.restore_id, unit).newest_started(), plan.units
        )
        found = zip(plan.units, newest, strict=True)
        return [
            AttemptId(plan.restore_id, unit, attempt)
            for unit, attempt in found
            if attempt is not None
        ]


def _started_by_all(store: ObjectStore, restore_ids: Iterable[str]) -> list[AttemptId]:
    """Return those of several restores that died and are not committed yet."""
    started = []
    for restore_id in restore_ids:
        if read_commit_record(store, restore_id) is None:
            with contextlib.suppress(KeyNotFoundError):  # it died before it had a plan
                started += _started(store, read_plan(store, restore_id))
    return started


def _wait_for_runners(store: ObjectStore, started: list[AttemptId]) -> None:
    """Wait until no runner works any more, watching all of them at once.

    Raises:
        RunnerError: If one goes on running.
    """
    alive = wait_until_all_over(store, started, patience_seconds=_PATIENCE_SECONDS)
    if alive:
        first = alive[0]
        what = "The run" if first.trial_id == layout.WHOLE_EXPERIMENT else f"Trial {first.trial_id}"
        others = f", and {len(alive) - 1} others have" if alive[1:] else ""
        raise RunnerError(
            f"{what} of {store.uri} still has a living runner (attempt {first.attempt}){others}. "
            "Nothing was committed; wait for it to end, or stop it."
        )


def _newest_attempt_with_snapshot(store: ObjectStore, plan: RestorePlan, unit: str) -> int | None:
    """Return the newest attempt that left a snapshot; None if none did."""
    numbers = AttemptRecords(store, plan.restore_id, unit).numbers()
    left = (n for n in reversed(numbers) if read_snapshot(store, plan, unit, n) is not None)
    return next(left, None)


def _put_searcher(store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
    """Put the searcher's state where Ray looks for it, under the session of the state file."""
    attempt = record.attempts.get(layout.WHOLE_EXPERIMENT)
    session = layout.session_of(record.state_file)
    if attempt is None or session is None:
        return
    state = read_snapshot(store, plan, layout.WHOLE_EXPERIMENT, attempt)
    number = state.stats.get("searcher") if state is not None else None
    if not isinstance(number, int):
        return
    directory, prefix = layout.searcher_dir(plan.restore_id, attempt), layout.numbered(number)
    for entry in store.list_dir(directory):
        name = layout.in_session(entry.name.removeprefix(prefix), session)
        # what a searcher saves, and nothing that only lies there: it could replace a state
        if entry.name.startswith(prefix) and layout.is_searcher_state(name) and is_safe_name(name):
            body = store.get(f"{directory}/{entry.name}", max_bytes=layout.MAX_STATE_BYTES)
            store.put(name, body)


def _put_callbacks(store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
    """Put the state of callbacks where Ray looks for it; of several runs each has its own."""
    session = layout.session_of(record.state_file)
    if len(record.attempts) != 1 or session is None:
        return
    ((unit, attempt),) = record.attempts.items()
    saved = layout.callbacks_name(layout.KEPT)
    key = f"{layout.attempt_dir(plan.restore_id, unit, attempt)}/{saved}"
    try:
        body = store.get(key, max_bytes=layout.MAX_RESULT_BYTES)
    except KeyNotFoundError:
        return  # no callback has any
    except (TooLargeError, LinkRefusedError) as error:
        logger.warning("The state of callbacks is not committed: %s", error)
        return
    store.put(layout.in_session(saved, session), body)


def _check_is_readable(store: ObjectStore, body: bytes, trials: int) -> None:
    """Refuse to write a state that nobody of us would read again (StateUnreadableError)."""
    most = layout.MAX_STATE_BYTES
    if len(body) > most:
        raise StateUnreadableError(
            store.uri,
            f"its new state would hold {len(body)} bytes, and at most {most} are read. Nothing was "
            f"committed; what the runners left of its {trials} trials stays under {layout.ROOT}",
        )


def _put_state(store: ObjectStore, name: str, body: bytes) -> None:
    try:
        store.create(name, body)
    except KeyExistsError:
        if store.get(name, max_bytes=layout.MAX_STATE_BYTES) != body:
            raise StateChangedError(store.uri, "the state it was planned from", name) from None


def _release(store: ObjectStore, restore_id: str) -> None:
    """Release a lease that a commit cut off before its last step may still hold."""
    entries = store.list_dir(layout.LEASE)
    held = lease_objects.newest_claim(store, entries)
    if held is not None and held.restore_id == restore_id:
        lease.release(store, held)


def _summary(store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> CommitSummary:
    before = NO_STATE
    if plan.base.name:
        before = parse_state(store.get(plan.base.name, max_bytes=layout.MAX_STATE_BYTES))
    check_fits(store, plan, before)
    committed = is_in_root(store, record.state_file)
    after = before
    if committed:
        after = parse_state(store.get(record.state_file, max_bytes=layout.MAX_STATE_BYTES))
    drawn = len(after.trials) - len(before.trials)
    if drawn and not (drawn > 0 and plan.continues_search):
        raise RecordUnreadableError(
            store.uri, record.state_file, f"it has not as many trials as {plan.base.name}"
        )
    histories = ledger.read_ledger(store)[0].trials
    ids = [trial.trial_id for trial in plan.to_run]
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        read = pool.map(
            lambda name: AttemptRecords(store, plan.restore_id, name).outcome_or_interrupted(), ids
        )
        outcomes = dict(zip(ids, read, strict=True))
    return summarise(
        plan,
        state_file=record.state_file if committed else None,
        before=before,
        after=after,
        outcomes={key: outcome for key, outcome in outcomes.items() if outcome is not None},
        samples_left=_samples_left(store, plan, len(after.trials)),
        broke_off=_why_it_broke_off(store, plan),
        quarantined=[
            trial.final_trial_id
            for trial in plan.to_run
            if trial.final_trial_id in histories and histories[trial.final_trial_id].quarantined
        ],
    )


def _samples_left(store: ObjectStore, plan: RestorePlan, trials: int) -> int | None:
    """Return what the next scan will find: a searcher that was ended early draws no more."""
    if not plan.continues_search:
        return plan.samples_left
    return read_samples_left(store, store.list_dir(), trials)


def _why_it_broke_off(store: ObjectStore, plan: RestorePlan) -> str:
    """Say why the one run of all did not come to its end; "" if it did, or if there was none."""
    if layout.WHOLE_EXPERIMENT not in plan.units:
        return ""
    outcome = AttemptRecords(
        store, plan.restore_id, layout.WHOLE_EXPERIMENT
    ).outcome_or_interrupted()
    if outcome is None:
        return "its runner ended without a word"
    if outcome.result == Result.FINISHED:
        return ""
    return f"{outcome.error_type}: {outcome.error}".removeprefix(": ")
