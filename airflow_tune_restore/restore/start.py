"""Start a prepared restore: take the lease, write seeds and plan. Each step can be repeated."""

import contextlib
import time
from dataclasses import replace

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    LeaseHeldError,
    LeaseLostError,
    RecordUnreadableError,
    RestoredMeanwhileError,
    StateChangedError,
)
from airflow_tune_restore.experiments.budget import IN_WORK
from airflow_tune_restore.experiments.experiment import StateFile
from airflow_tune_restore.experiments.read import read_base_state
from airflow_tune_restore.experiments.state import Keep, State, encode_state
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.kept_lease import FRESH_SECONDS, keep_lease
from airflow_tune_restore.protocol.lease_objects import DEFAULT_TTL_SECONDS, DagRunId
from airflow_tune_restore.protocol.lease_watch import OnWait, log_wait
from airflow_tune_restore.protocol.records import is_listed
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.commit_record import name_commit, read_commit_record
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan, check_fits, read_plan
from airflow_tune_restore.restore.prepare import plan_again
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each
from airflow_tune_restore.storage.self_test import check_exclusive_create


def start_restore(
    prepared: PreparedRestore,
    *,
    holder: str,
    ttl_seconds: float,
    dag_run: DagRunId | None = None,
    on_wait: OnWait = log_wait,
) -> tuple[RestorePlan | None, CommitSummary | None]:
    """Take the lease and write the plan. First commit what a restore that died left behind.

    The lease is for `holder` (for people) and
    `dag_run` (for Airflow), and lasts `ttl_seconds` without a renewal. `on_wait` shows the watch of a
    restore that looks dead.

    Returns:
        The plan as written (None if nothing is left to do), and the summary of that commit (None if there
        was none).

    Raises:
        LeaseHeldError: If another restore is running.
        InvalidInputError: If the plan could not be read again.
        StateChangedError: If the experiment was written to since it was read.
        StorageError: If the store cannot create objects exclusively.
    """
    if prepared.is_started:
        return start_plan(prepared, holder=holder, ttl_seconds=ttl_seconds, dag_run=dag_run), None
    store, restore_id, watch = prepared.store, prepared.plan.restore_id, prepared.watch
    check_exclusive_create(store)  # without it the lease protects nothing
    try:
        settled = commit_abandoned(
            store,
            restore_id=restore_id,
            holder=holder,
            ttl_seconds=ttl_seconds,
            dag_run=dag_run,
            watch=watch,
            on_wait=on_wait,
        )
        if settled or watch is not None or prepared.nothing_to_do:
            prepared = plan_again(prepared)
    except LeaseHeldError:
        raise
    except Exception:
        release_unstarted(store, restore_id)
        raise
    summary = next(filter(None, reversed(settled.values())), None)
    if not prepared.plan.has_work and not prepared.plan.changes_trials:
        release_unstarted(store, restore_id)
        return None, summary
    return _write_under_lease(prepared), summary


def start_plan(
    prepared: PreparedRestore,
    *,
    holder: str,
    ttl_seconds: float = DEFAULT_TTL_SECONDS,
    dag_run: DagRunId | None = None,
) -> RestorePlan:
    """Take the lease, check that the plan still fits, write seeds and plan.

    Repeated for the same restore_id, it changes nothing and returns the plan as first written. A restore
    that an earlier try has started must still hold its lease (LeaseLostError).
    """
    store, plan = prepared.store, prepared.plan
    if prepared.is_started:
        lease.take_again(store, plan.restore_id, dag_run)
        return _write_under_lease(prepared)
    check_exclusive_create(store)
    lease.acquire(
        store,
        restore_id=plan.restore_id,
        holder=holder,
        ttl_seconds=ttl_seconds,
        dag_run=dag_run,
        watch=prepared.watch,
    )
    return _write_under_lease(prepared)


def _write_under_lease(prepared: PreparedRestore) -> RestorePlan:
    """Check that the plan still fits, and write it unless an earlier try has."""
    store, plan = prepared.store, prepared.plan
    try:
        with (
            keep_lease(store, plan.restore_id) as held_store,
            IN_WORK.hold(plan.base.size_bytes),
        ):
            entries = store.list_dir()
            keep = Keep(terminated_rows=plan.choices.flags.keeps_terminated_rows)
            newest, state = read_base_state(store, entries, keep)
            if newest.sha256 != plan.base.sha256:
                raise _changed(store, plan, newest)
            if prepared.is_started:
                return plan
            name_commit(store, entries, continues_search=plan.continues_search)
            return _write(held_store, _with_present_failures(store, plan), state)
    except Exception:
        release_unstarted(store, plan.restore_id)
        raise


def release_unstarted(store: ObjectStore, restore_id: str) -> None:
    """Release the lease of a restore that has no plan. With a plan, its runners may be at work.

    Another try of the same task may have written the plan meanwhile, under the same lease. So nothing is
    released after a look that took long: then the lease expires.
    """
    began = time.monotonic()
    if not is_listed(store, layout.plan_key(restore_id)):
        with contextlib.suppress(LeaseLostError):
            held = lease.check_held(store, restore_id)
            if time.monotonic() - began <= FRESH_SECONDS:
                lease.release(store, held)


def _changed(store: ObjectStore, plan: RestorePlan, newest: StateFile) -> StateChangedError:
    """Return the error for a state that was written after the plan was made."""
    for restore_id in lease.earlier_restores(store, plan.restore_id):
        try:
            record = read_commit_record(store, restore_id)
        except RecordUnreadableError:
            continue
        if record is not None and (record.state_file, record.sha256) == (
            newest.name,
            newest.sha256,
        ):
            return RestoredMeanwhileError(store.uri, plan.base.name, newest.name, restore_id)
    return StateChangedError(store.uri, plan.base.name, newest.name)


def _with_present_failures(store: ObjectStore, plan: RestorePlan) -> RestorePlan:
    """Return the plan with the failures as the ledger has them under the lease.

    A trial may have been released since the plan was made.
    """
    if not plan.failures:
        return plan
    known = read_ledger(store)[0].trials
    return replace(plan, failures={key: known[key] for key in plan.failures if key in known})


def _write(store: ObjectStore, plan: RestorePlan, state: State) -> RestorePlan:
    """Write the seeds, then the plan: a plan in the store has all its seeds."""
    try:
        body = plan.to_json()
        RestorePlan.from_json(body)
    except ValueError as error:  # found now, not after its trials have run
        raise InvalidInputError(
            f"The plan of {store.uri} is not valid: {error}. Nothing was started."
        ) from error

    def write_seed(trial: TrialPlan) -> None:
        store.put(layout.seed_key(plan.restore_id, trial.trial_id), _seed(plan, trial, state))

    for_each(write_seed, plan.with_tasks)
    try:
        store.create(layout.plan_key(plan.restore_id), body)
    except KeyExistsError:
        written = read_plan(store, plan.restore_id)
        if written.base != plan.base:
            raise StateChangedError(store.uri, written.base.name, plan.base.name) from None
        check_fits(store, written, state)
        return written
    return plan


def _seed(plan: RestorePlan, trial: TrialPlan, state: State) -> bytes:
    """Return the seed of a trial (`layout.seed_key`)."""
    part = {layout.PART_OF_PLAN: plan.part_of(trial).to_json().decode()}
    if plan.is_whole_experiment:
        return encode_state([], {}, {}, **part)
    return encode_state([state.rows[trial.trial_id]], state.runner, state.stats, **part)
