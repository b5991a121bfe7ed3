"""Claiming the next attempt of a trial: its number, and its request."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError, KeyExistsError, RecordUnreadableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import list_attempts, read_outcome_or_interrupted
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.protocol.resources import describe, most_of
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore


def claim_attempt(  # noqa: PLR0913  what a runner is told
    store: ObjectStore,
    plan: RestorePlan,
    trial_id: str,
    *,
    trainable: str,
    param_space: str | None = None,
    search_alg: str | None = None,
    imports: Sequence[str] = (),
    address: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    attempt: int | None = None,
    unstarted: RunnerRequest | None = None,
    memory: float | None = None,
    concurrent: int = 1,
    reports: bool = False,
    sized: bool = False,
) -> RunnerRequest:
    """Claim the next attempt of a trial and store its request at `layout.request_key`.

    With `layout.WHOLE_EXPERIMENT` for the trial it is the next attempt of the whole-experiment run, which
    asks for `concurrent` times as much as the largest of its trials. `memory`, in bytes, is asked for if
    it is more than what the trial asks for by itself. `reports` is for a follower that does not read the
    runner's stdout, `sized` for whoever makes a place of the size of the request. `unstarted`, the newest
    attempt, was claimed and never started: it is returned, if it is what would be claimed now.

    Raises:
        KeyExistsError: If `attempt`, the one number wanted, is taken.
        InvalidInputError: If the plan has no such trial.
        RecordUnreadableError: If somebody has placed an attempt with the highest number there is.
    """
    asked = read_resources(store, plan, trial_id)
    if trial_id == layout.WHOLE_EXPERIMENT:
        asked = {name: amount * concurrent for name, amount in asked.items()}
    if memory is not None:
        asked["memory"] = max(memory, asked.get("memory", 0.0))
    wanted = RunnerRequest(
        **_of_plan(plan, trial_id),
        resources=asked,
        experiment=plan.experiment,
        restore_id=plan.restore_id,
        trial_id=trial_id,
        attempt=0,
        trainable=trainable,
        trainable_name=plan.trainable_name,
        fresh_budget=plan.fresh_budget,
        trim_results=plan.trim_results,
        remember_scheduler=plan.remember_scheduler,
        ignore_tuner=plan.ignore_tuner,
        param_space=param_space,
        search_alg=search_alg if trial_id == layout.WHOLE_EXPERIMENT else None,
        imports=list(imports),
        address=address,
        runtime_env=runtime_env or {},
        reports=reports,
        sized=sized,
        nonce=secrets.token_hex(8),
    )
    if unstarted is not None and unstarted == replace(
        wanted, attempt=unstarted.attempt, nonce=unstarted.nonce
    ):
        return unstarted
    number = attempt or max(list_attempts(store, plan.restore_id, trial_id), default=0) + 1
    while True:
        key = layout.request_key(plan.restore_id, trial_id, number)
        if layout.attempt_number(f"{number:06d}") is None:
            raise RecordUnreadableError(store.uri, key, "no number is left after the last attempt")
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
        return {"action": "run"}
    trial = plan.trial(trial_id)
    return {
        "action": trial.action.value,
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
        read_outcome_or_interrupted(store, plan.restore_id, trial_id, attempt)
        for attempt in reversed(list_attempts(store, plan.restore_id, trial_id))
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
