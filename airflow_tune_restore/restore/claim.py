"""Claim the next attempt of a trial: its number and its request."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    RecordUnreadableError,
    RestoreEndedError,
    name_trial,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result, RunnerRequest, TrialAction
from airflow_tune_restore.protocol.resources import describe, most_of
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.ledger import memory_to_ask, read_history
from airflow_tune_restore.restore.paused import is_window_over, paused_error, saved_iteration
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Runner settings that are not part of the plan.

    Args:
        trainable: `package.module:attribute`, or a name registered with Tune.
        param_space: `package.module:attribute` of a re-specified param_space, or None.
        search_alg: `package.module:attribute` of a searcher, or None.
        imports: Modules to import first.
        address: Ray cluster to connect to; None starts a private Ray.
        runtime_env: Ray runtime_env for the connection.
        can_grow: Whether a trial can get more memory here: a private Ray is as large as its machine.
        concurrent: How many trials the whole-experiment run makes room for at the same time.
        memory: Memory limit (bytes) of the place where a trial runs that requests none; None if unknown.
        reports: Whether results are written to storage, too, because the runner's stdout is not read.
        sized: Whether the place is made as large as the attempt requests.
        entrypoint: Command line of the sweep's own script; only the run of a sweep gets it.
        checks: Whether that run checks the trainable first, because nobody could before.
        is_shared: Whether the attempt of a trial is handed to a shared driver.
        at_once: Most trials that a shared driver runs at the same time; 0 for as many as fit.
    """

    trainable: str
    param_space: str | None = None
    search_alg: str | None = None
    imports: Sequence[str] = ()
    address: str | None = None
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    can_grow: bool = False
    concurrent: int = 1
    memory: float | None = None
    reports: bool = False
    sized: bool = False
    entrypoint: str | None = None
    checks: bool = False
    is_shared: bool = False
    at_once: int = 0


def plan_of_unit(store: ObjectStore, plan: RestorePlan, unit: str) -> RestorePlan:
    """Return the plan that a unit needs: for a run of many trials, not the part of one."""
    is_of_many = unit in layout.RUNS_OF_MANY
    return read_plan(store, plan.restore_id) if is_of_many and plan.is_part else plan


def claim_next_attempt(
    store: ObjectStore,
    plan: RestorePlan,
    unit: str,
    settings: RunnerSettings,
    *,
    log: Callable[..., None],
    attempt: int | None = None,
    unstarted: RunnerRequest | None = None,
) -> RunnerRequest:
    """Claim the next attempt; a trial that ran out of memory requests more.

    Takes and raises the same as `claim_attempt`; `log` is like `Logger.info`.
    """
    plan = plan_of_unit(store, plan, unit)
    memory = None
    is_trial = unit not in layout.RUNS_OF_MANY
    if is_trial:
        memory = memory_to_ask(plan, unit, read_history(store, plan, unit))
    if memory is not None and settings.can_grow:
        log("An attempt ran out of memory: this one requests %.1f GiB.", memory / 1024**3)
    elif memory is not None:
        log("An attempt ran out of memory; a private Ray cannot get more of it.")
    elif is_trial and "memory" not in plan.trial(unit).resources:
        memory = settings.memory  # recorded, so that a retry can request twice as much
    request = claim_attempt(
        store,
        plan,
        unit,
        settings,
        attempt=attempt,
        unstarted=unstarted,
        memory=memory if settings.can_grow else None,
    )
    before = AttemptRecords.of(store, request).outcome_or_interrupted(request.attempt - 1)
    if before is not None and before.resources:
        log(
            "Attempt %d ran nothing, because its pod was too small: a trial requests %s now. The next "
            "pod gets %s.",
            *(before.attempt, describe(before.resources), describe(request.resources)),
        )
    return request


def claim_attempt(
    store: ObjectStore,
    plan: RestorePlan,
    unit: str,
    settings: RunnerSettings,
    *,
    attempt: int | None = None,
    unstarted: RunnerRequest | None = None,
    memory: float | None = None,
) -> RunnerRequest:
    """Claim the next attempt of a unit and store its request at `layout.request_key`.

    A unit is a trial id in the plan, `layout.SHARED_DRIVER`, or `layout.WHOLE_EXPERIMENT`: that run
    requests `settings.concurrent` times as much as its largest trial. `attempt` is the one number to
    claim, by default the next free one. `unstarted` is the newest attempt, if it was claimed and never
    started; it is returned if a new claim would be the same. `memory` is the bytes to request, if that
    is more than the trial requests by itself.

    Raises:
        KeyExistsError: If `attempt` is taken.
        InvalidInputError: If the plan has no such trial.
        RestoreEndedError: If the commit of the restore has begun.
        RestorePausedError: If the window of the restore has ended.
        RecordUnreadableError: If an attempt with the highest possible number exists.
    """
    _refuse_if_committed(store, plan, unit)
    _refuse_if_paused(store, plan, unit)
    is_whole = unit == layout.WHOLE_EXPERIMENT
    resources = read_resources(store, plan, unit)
    if is_whole:
        resources = {name: amount * settings.concurrent for name, amount in resources.items()}
    if memory is not None:
        resources["memory"] = max(memory, resources.get("memory", 0.0))
    wanted = RunnerRequest(
        **_read_action(plan, unit),
        resources=resources,
        experiment=plan.experiment,
        restore_id=plan.restore_id,
        trial_id=unit,
        attempt=0,
        trainable="" if plan.is_sweep and not settings.checks else settings.trainable,
        trainable_name=plan.trainable_name,
        fresh_budget=plan.choices.fresh_budget,
        trim_results=plan.choices.trim_results,
        remember_scheduler=plan.choices.remember_scheduler,
        ignore_tuner=plan.ignore_tuner,
        trust_name=plan.choices.trust_name,
        state=plan.base.name,
        pause_at=plan.pause_at,
        param_space=settings.param_space,
        search_alg=settings.search_alg if is_whole else None,
        imports=list(settings.imports),
        address=settings.address,
        runtime_env=dict(settings.runtime_env),
        reports=settings.reports,
        sized=settings.sized,
        entrypoint=settings.entrypoint if plan.is_sweep else None,
        is_shared=settings.is_shared and unit not in layout.RUNS_OF_MANY,
        concurrent=settings.at_once if unit == layout.SHARED_DRIVER else 0,
        nonce=secrets.token_hex(8),
    )
    if unstarted is not None and unstarted == replace(
        wanted, attempt=unstarted.attempt, nonce=unstarted.nonce
    ):
        return unstarted
    number = attempt or AttemptRecords(store, plan.restore_id, unit).newest() + 1
    while True:
        key = layout.request_key(plan.restore_id, unit, number)
        if layout.attempt_number(f"{number:06d}") is None:
            raise RecordUnreadableError(store.uri, key, "attempt numbers are exhausted")
        request = replace(wanted, attempt=number)
        try:
            store.create(key, request.to_json())
        except KeyExistsError:
            if attempt is not None:
                raise
            number += 1
        else:
            return request


def _refuse_if_committed(store: ObjectStore, plan: RestorePlan, unit: str) -> None:
    """Refuse an attempt that the commit would not have. If it was cut off, the lease is still held."""
    if read_commit_record(store, plan.restore_id) is not None:
        raise RestoreEndedError(
            plan.experiment,
            plan.restore_id,
            "its commit has begun",
            f"To run {name_trial(unit)} again, start a new restore: in a DAG, clear the task that makes "
            "the plan, with its downstream tasks.",
        )


def _refuse_if_paused(store: ObjectStore, plan: RestorePlan, unit: str) -> None:
    """Refuse an attempt after the end of the window, or after one that has paused: clocks may differ."""
    if not plan.pause_at:
        return
    newest = AttemptRecords(store, plan.restore_id, unit).outcome_or_interrupted()
    has_paused = newest is not None and newest.result == Result.PAUSED
    if has_paused or is_window_over(store, plan):
        raise paused_error(plan, unit, saved_iteration(newest))


def _read_action(plan: RestorePlan, unit: str) -> dict[str, Any]:
    """Return the fields of a request that the plan holds for one trial."""
    if unit in layout.RUNS_OF_MANY:
        return {"action": TrialAction.SWEEP if plan.is_sweep else TrialAction.RUN}
    trial = plan.trial(unit)
    names = ("action", "checkpoint", "iteration", "new_trial_id")
    return {name: getattr(trial, name) for name in names}


def read_resources(store: ObjectStore, plan: RestorePlan, unit: str) -> dict[str, float]:
    """Return the resources that a trial requests; for the whole-experiment run, the most per trial.

    If the pod of an attempt was too small, its runner recorded what the trainable requests now.
    Otherwise the state holds the resources, which may be out of date.

    Raises:
        InvalidInputError: If the plan has no such trial, or if the trainable got what it had requested,
            and then requested something else.
    """
    records = AttemptRecords(store, plan.restore_id, unit)
    outcomes = [records.outcome_or_interrupted(number) for number in reversed(records.numbers())]
    needed = [outcome.resources if outcome is not None else {} for outcome in outcomes]
    is_trial = unit not in layout.RUNS_OF_MANY
    if len(needed) > 1 and needed[0] and needed[1]:
        raise InvalidInputError(
            f"{f'Trial {unit}' if is_trial else 'A trial'} of {plan.experiment} requested "
            f"{describe(needed[1])} and got it, and then requested {describe(needed[0])}. Let its "
            "trainable request the same each time; then start a new restore (in a DAG, clear the task "
            "that makes the plan)."
        )
    if newest := next(filter(None, needed), None):
        return dict(newest)
    if not is_trial:
        return most_of(trial.resources for trial in plan.to_run) or {"CPU": 1.0}  # Ray's default
    return dict(plan.trial(unit).resources)
