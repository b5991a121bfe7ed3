"""The run of a sweep's own script: it holds the lease as a restore does, and leaves nothing to commit.

Its id begins with `names.SWEEP_PREFIX`, and its plan has no trials. Ray's own driver writes the
experiment. So the lease only shows other processes that a sweep is running, and when it has died.
"""

from typing import NamedTuple

from airflow_tune_restore.exceptions import LeaseHeldError, LeaseLostError, StateChangedError
from airflow_tune_restore.experiments.experiment import NO_STATE_FILE
from airflow_tune_restore.experiments.read import read_base_state
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords, wait_until_all_over
from airflow_tune_restore.protocol.kept_lease import keep_lease
from airflow_tune_restore.protocol.lease_objects import DagRunId
from airflow_tune_restore.protocol.lease_watch import OnWait, log_wait
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.names import SWEEP_PREFIX
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.choices import PlanChoices, Strategy
from airflow_tune_restore.restore.committed_attempts import list_started
from airflow_tune_restore.restore.own_restore import look_for_own
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.start import release_unstarted
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.self_test import check_exclusive_create

PATIENCE_SECONDS = 120.0
"""How long a runner may take to save its last snapshot before it loses the lease and its script."""


class OwnSweep(NamedTuple):
    """The runs of the caller's sweep.

    Args:
        running: The id of the one that holds the lease, even if its script has ended; None if none does.
        last: The id of the newest one; None if none was ever started.
    """

    running: str | None
    last: str | None


def find_sweep(store: ObjectStore, base_id: str) -> OwnSweep:
    """Return the runs of a caller's sweep; `base_id` identifies the caller, as for its restores."""
    first = f"{SWEEP_PREFIX}{base_id}"
    sweep_id, is_held = look_for_own(store, first)
    if is_held:
        return OwnSweep(sweep_id, sweep_id)
    if sweep_id == first:
        return OwnSweep(None, None)
    before = int(sweep_id.removeprefix(f"{first}-")) - 1
    return OwnSweep(None, first if before == 1 else f"{first}-{before}")


def start_sweep(
    store: ObjectStore,
    base_id: str,
    *,
    holder: str,
    ttl_seconds: float,
    dag_run: DagRunId | None = None,
    on_wait: OnWait = log_wait,
) -> RestorePlan:
    """Take the lease of an experiment without a state, and write the plan of its sweep.

    The arguments are those of `start_restore`.

    Raises:
        LeaseHeldError: If a restore or another sweep is running there.
        StateChangedError: If the experiment has a state meanwhile.
        StorageError: If the store cannot create objects exclusively.
    """
    plan = _plan(store, look_for_own(store, f"{SWEEP_PREFIX}{base_id}")[0])
    check_exclusive_create(store)
    try:
        commit_abandoned(
            store,
            restore_id=plan.restore_id,
            holder=holder,
            ttl_seconds=ttl_seconds,
            dag_run=dag_run,
            on_wait=on_wait,
        )
        with keep_lease(store, plan.restore_id) as held_store:
            if found := find_state(store):
                raise StateChangedError(store.uri, "an experiment without a state", found)
            held_store.create(layout.plan_key(plan.restore_id), plan.to_json())
    except LeaseHeldError:
        raise
    except Exception:
        release_unstarted(store, plan.restore_id)
        raise
    return plan


def find_state(store: ObjectStore) -> str:
    """Return the name of the state with a trial; "" without one. From then on it is only restored.

    Raises:
        StateUnreadableError: If no state can be used.
    """
    entries = store.list_dir()
    if not any(layout.is_state_file(entry.name) for entry in entries if not entry.is_dir):
        return ""
    return read_base_state(store, entries)[0].name


def end_sweep(store: ObjectStore, sweep_id: str) -> None:
    """Release the lease of a sweep when its runner is over; one that lives too long loses it first.

    Its runner kills the script when it sees that the lease is lost. Returns when nothing of it lives.
    """
    plan = read_plan(store, sweep_id)
    left = [
        attempt
        for attempt in list_started(RestoreRecords(store, sweep_id), plan.units)
        if AttemptRecords(store, sweep_id, attempt.trial_id).exit(attempt.attempt) is None
    ]
    alive, _ = wait_until_all_over(store, left, patience_seconds=PATIENCE_SECONDS)
    release_sweep(store, sweep_id)
    wait_until_all_over(store, alive)


def release_sweep(store: ObjectStore, sweep_id: str) -> None:
    """Release the lease of a sweep whose runner is over, if it still holds it."""
    try:
        held = lease.check_held(store, sweep_id)
    except LeaseLostError:
        return
    lease.release(store, held)


def _plan(store: ObjectStore, sweep_id: str) -> RestorePlan:
    return RestorePlan(
        restore_id=sweep_id,
        experiment=store.uri,
        base=NO_STATE_FILE,
        trainable_name="",
        choices=PlanChoices(),
        strategy=Strategy.WHOLE_EXPERIMENT,
        strategy_reason="the sweep's own script runs all trials",
        samples_left=None,
        metric=None,
        mode=None,
        trials=(),
    )
