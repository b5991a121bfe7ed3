"""From a plan to a restore that runners can work on: lease, seeds, plan. Each step can be redone."""

from dataclasses import replace

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    RecordUnreadableError,
    StateChangedError,
    StorageError,
)
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.older_runs import describe_older_runs, older_states
from airflow_tune_restore.experiments.read import read_base_file
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.experiments.state import State, encode_state
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.restore.commit_record import name_commit
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.restore.plan import DEFAULT_MAX_MEMORY_BYTES, RestorePlan
from airflow_tune_restore.restore.planner import build_plan, choices_for, trials_to_run
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.self_test import check_exclusive_create

_MAX_SAME = 1000
"""So often one DAG run may be restored and committed anew; more were made by somebody else."""


def fresh_restore_id(store: ObjectStore, base: str) -> str:
    """Return `base`, or `base-2`, `base-3` … if restores of that id were committed already.

    Callers make `base` from what identifies their run, so that a retry re-enters its own restore, and
    running the same DAG run again after its commit starts a new one.
    """
    for number in range(1, _MAX_SAME + 1):
        restore_id = base if number == 1 else f"{base}-{number}"
        key = layout.commit_key(restore_id)
        beside = store.list_dir(layout.restore_dir(restore_id))  # the record may be a large one
        if not any(key.endswith(f"/{entry.name}") for entry in beside):
            return restore_id
    raise StorageError(
        f"{store.uri} holds {_MAX_SAME} restores of the id {base}. Nothing was started. Find out who "
        f"made them, then delete them from {layout.ROOT}; or start a new DAG run."
    )


def plan_restore(  # noqa: PLR0913  what the user chose, by name
    store: ObjectStore,
    experiment: Experiment,
    *,
    restore_id: str,
    flags: ResumeFlags,
    strategy: str = "auto",
    fresh_budget: bool = False,
    trim_results: bool = False,
    remember_scheduler: bool = False,
    allow_scratch: bool = False,
    newest_checkpoint: bool = False,
    can_search: bool = False,
    max_attempts: int | None = None,
    max_memory_bytes: float = DEFAULT_MAX_MEMORY_BYTES,
) -> RestorePlan:
    """Look at the checkpoints and failures of the trials the flags take up, and build the plan.

    Writes nothing. `newest_checkpoint` takes one that was reported after the state was saved; the other
    choices are those of `build_plan`.
    """
    choices = choices_for(experiment, flags)
    resumable = [
        trial
        for trial in trials_to_run(experiment, flags)
        if choices[trial.trial_id] is ResumeType.RESUME
    ]
    ledger, warning = read_ledger(store)
    plan = build_plan(
        experiment,
        restore_id=restore_id,
        flags=flags,
        checkpoints=read_checkpoint_choices(store, resumable, prefer_newest=newest_checkpoint),
        strategy=strategy,
        fresh_budget=fresh_budget,
        trim_results=trim_results,
        remember_scheduler=remember_scheduler,
        allow_scratch=allow_scratch,
        can_search=can_search,
        quarantined=ledger.quarantined(max_attempts),
        max_attempts=max_attempts,
        max_memory_bytes=max_memory_bytes,
    )
    older = older_states(store.list_dir(), experiment.state_file.name)
    notes = (*filter(None, [warning]), *describe_older_runs(store, older, experiment.state))
    return replace(plan, warnings=(*plan.warnings, *notes))


def start_restore(
    store: ObjectStore,
    experiment: Experiment,
    plan: RestorePlan,
    *,
    holder: str,
    ttl_seconds: float = lease_objects.DEFAULT_TTL_SECONDS,
    watch: lease.Watch | None = None,
) -> RestorePlan:
    """Take the lease, check that the plan still fits, write seeds and plan.

    Done again for the same restore_id it changes nothing and returns the plan as first written.

    Raises:
        StorageError: If the store cannot create objects exclusively.
        LeaseHeldError: If another restore is alive.
        StateChangedError: If the experiment was written to since it was read.
    """
    check_exclusive_create(store)  # or the lease would be worth nothing
    held = lease.acquire(
        store, restore_id=plan.restore_id, holder=holder, ttl_seconds=ttl_seconds, watch=watch
    )
    try:
        with lease.kept(store, plan.restore_id, ttl_seconds):
            newest = read_base_file(store)
            if newest.sha256 != plan.base.sha256:
                raise StateChangedError(store.uri, plan.base.name, newest.name)
            name_commit(store, continues_search=plan.continues_search)
            return _write(store, experiment, plan)
    except Exception:
        lease.release(store, held)
        raise


def read_plan(store: ObjectStore, restore_id: str) -> RestorePlan:
    """Read the plan of a restore.

    Raises:
        KeyNotFoundError: If there is none.
        RecordUnreadableError: If what is there is no plan of this restore.
    """
    key = layout.plan_key(restore_id)
    plan = read_record(store, key, RestorePlan.from_json, max_bytes=layout.MAX_PLAN_BYTES)
    if plan.restore_id != restore_id:
        raise RecordUnreadableError(store.uri, key, "it is the plan of another restore")
    # an experiment may have moved since, and whoever can write a plan may name one that is not his
    return replace(plan, experiment=store.uri)


def check_fits(store: ObjectStore, plan: RestorePlan, state: State) -> None:
    """Refuse a stored plan that does not name the trials of the state that it was made from.

    Raises:
        RecordUnreadableError: If it names others.
    """
    if {trial.trial_id for trial in plan.trials} != {trial.trial_id for trial in state.trials}:
        key = layout.plan_key(plan.restore_id)
        raise RecordUnreadableError(store.uri, key, f"its trials are not those of {plan.base.name}")


def _write(store: ObjectStore, experiment: Experiment, plan: RestorePlan) -> RestorePlan:
    """Write the seeds, then the plan: once the plan is there, all its seeds are.

    One run of all trials starts from the state itself.
    """
    state = experiment.state
    for trial in () if plan.is_whole_experiment else plan.to_run:
        seed = encode_state([state.rows[trial.trial_id]], state.runner, state.stats)
        store.put(layout.seed_key(plan.restore_id, trial.trial_id), seed)
    try:
        store.create(layout.plan_key(plan.restore_id), plan.to_json())
    except KeyExistsError:
        written = read_plan(store, plan.restore_id)
        if written.base != plan.base:
            raise StateChangedError(store.uri, written.base.name, plan.base.name) from None
        check_fits(store, written, state)
        return written
    return plan
