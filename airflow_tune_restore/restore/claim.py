"""Claiming the next attempt of a trial: its number, and its request."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError, KeyExistsError, RecordUnreadableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import RunnerRequest, TrialAction
from airflow_tune_restore.protocol.resources import describe, most_of
from airflow_tune_restore.restore.ledger import memory_to_ask, read_history
from airflow_tune_restore.restore.plan import RestorePlan
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

    Args:
        store: Rooted at the experiment directory.
        plan: The plan.
        unit: Trial id in the plan, or `layout.WHOLE_EXPERIMENT`.
        settings: Of the runner.
        log: Shows a message with its arguments, as `Logger.info`.
        attempt: The one number to claim; by default the next free one.
        unstarted: The newest attempt, if it was claimed and never started. It is returned if a new claim
            would be the same.

    Raises:
        KeyExistsError: If `attempt` is taken.
        InvalidInputError: If the plan has no such trial.
    """
    history = read_history(store, plan.restore_id, unit)
    memory = memory_to_ask(plan, unit, history)
    if memory is not None and settings.can_grow:
        log("It ran out of memory: asking for %.1f GiB.", memory / 1024**3)
    elif memory is not None:
        log("It ran out of memory; a private Ray cannot get more of it.")
    elif unit != layout.WHOLE_EXPERIMENT and "memory" not in plan.trial(unit).resources:
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
    before = AttemptRecords(store, plan.restore_id, unit).outcome_or_interrupted(
        request.attempt - 1
    )
    if before is not None and before.resources:
        log(
            "Attempt %d ran nothing, because its pod was too small: a trial asks for %s now. The next "
            "pod is made for %s.",
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

    The whole-experiment run requests `settings.concurrent` times as much as its largest trial.

    Args:
        store: Rooted at the experiment directory.
        plan: The plan.
        unit: Trial id in the plan, or `layout.WHOLE_EXPERIMENT`.
        settings: Of the runner.
        attempt: The one number to claim; by default the next free one.
        unstarted: The newest attempt, if it was claimed and never started. It is returned if a new claim
            would be the same.
        memory: Bytes to request, if that is more than the trial requests by itself.

    Raises:
        KeyExistsError: If `attempt` is taken.
        InvalidInputError: If the plan has no such trial.
        RecordUnreadableError: If an attempt with the highest possible number exists.
    """
    is_whole = unit == layout.WHOLE_EXPERIMENT
    asked = read_resources(store, plan, unit)
    if is_whole:
        asked = {name: amount * settings.concurrent for name, amount in asked.items()}
    if memory is not None:
        asked["memory"] = max(memory, asked.get("memory", 0.0))
    wanted = RunnerRequest(
        **_of_plan(plan, unit),
        resources=asked,
        experiment=plan.experiment,
        restore_id=plan.restore_id,
        trial_id=unit,
        attempt=0,
        trainable=settings.trainable,
        trainable_name=plan.trainable_name,
        fresh_budget=plan.choices.fresh_budget,
        trim_results=plan.choices.trim_results,
        remember_scheduler=plan.choices.remember_scheduler,
        ignore_tuner=plan.ignore_tuner,
        param_space=settings.param_space,
        search_alg=settings.search_alg if is_whole else None,
        imports=list(settings.imports),
        address=settings.address,
        runtime_env=dict(settings.runtime_env),
        reports=settings.reports,
        sized=settings.sized,
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
            continue
        return request


def _of_plan(plan: RestorePlan, trial_id: str) -> dict[str, Any]:
    """Return what the plan holds for a trial, or for all of them."""
    if trial_id == layout.WHOLE_EXPERIMENT:
        return {"action": TrialAction.RUN}
    trial = plan.trial(trial_id)
    return {
        "action": trial.action,
        "checkpoint": trial.checkpoint,
        "iteration": trial.iteration,
        "new_trial_id": trial.new_trial_id,
    }


def read_resources(store: ObjectStore, plan: RestorePlan, trial_id: str) -> dict[str, float]:
    """Return what a trial asks for, as far as is known; of all of them, the most that one asks for.

    A runner whose place was too small has left what its trainable asks for now; else it is what was
    recorded, and that may be out of date.

    Raises:
        InvalidInputError: If the plan has no such trial, or if the trainable asked for more again than
            what it had just been given.
    """
    outcomes = (
        AttemptRecords(store, plan.restore_id, trial_id).outcome_or_interrupted(attempt)
        for attempt in reversed(AttemptRecords(store, plan.restore_id, trial_id).numbers())
    )
    needed = [outcome.resources if outcome is not None else {} for outcome in outcomes]
    if len(needed) > 1 and needed[0] and needed[1]:
        raise InvalidInputError(
            f"{_name(trial_id)} of {plan.experiment} asked for {describe(needed[1])}, was given it, and "
            f"then asked for {describe(needed[0])}. Let its trainable ask for the same each time; then "
            "clear the task that makes the plan."
        )
    if newest := next(filter(None, needed), None):
        return dict(newest)
    if trial_id == layout.WHOLE_EXPERIMENT:
        return most_of(trial.resources for trial in plan.to_run) or {"CPU": 1.0}  # Ray's default
    return dict(plan.trial(trial_id).resources)


def _name(trial_id: str) -> str:
    return "A trial" if trial_id == layout.WHOLE_EXPERIMENT else f"Trial {trial_id}"
