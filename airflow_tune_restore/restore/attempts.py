"""Attempts: one run of one trial in a restore, numbered from 1.

Creating an attempt's request claims its number; a runner that sees a higher one stops. The runner alone
writes heartbeat, snapshot and outcome of its attempt. Standard library only.
"""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import RunnerOutcome, RunnerRequest
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.restore.plan import RestorePlan  # needs msgspec; runners have none

QUIET_SECONDS = 20.0
"""A runner beats every 5 s; one that is silent this long by our own clock is dead."""


def claim_attempt(
    store: ObjectStore,
    plan: "RestorePlan",
    trial_id: str,
    *,
    trainable: str,
    param_space: str | None = None,
    imports: Sequence[str] = (),
    address: str | None = None,
    runtime_env: dict[str, Any] | None = None,
) -> RunnerRequest:
    """Claim the next attempt of a trial and store its request at `layout.request_key`."""
    trial = plan.trial(trial_id)
    attempt = max(list_attempts(store, plan.restore_id, trial_id), default=0)
    while True:
        attempt += 1
        request = RunnerRequest(
            experiment=plan.experiment,
            restore_id=plan.restore_id,
            trial_id=trial_id,
            attempt=attempt,
            trainable=trainable,
            trainable_name=plan.trainable_name,
            action=trial.action.value,
            checkpoint=trial.checkpoint,
            iteration=trial.iteration,
            new_trial_id=trial.new_trial_id,
            fresh_budget=plan.fresh_budget,
            trim_results=plan.trim_results,
            param_space=param_space,
            imports=list(imports),
            address=address,
            resources=trial.resources,
            runtime_env=runtime_env or {},
            nonce=secrets.token_hex(8),
        )
        try:
            store.create(layout.request_key(plan.restore_id, trial_id, attempt), request.to_json())
        except KeyExistsError:
            continue
        return request


def list_attempts(store: ObjectStore, restore_id: str, trial_id: str) -> list[int]:
    """Return the numbers of all attempts, ascending."""
    entries = store.list_dir(layout.attempts_dir(restore_id, trial_id))
    return sorted(int(entry.name) for entry in entries if entry.is_dir and entry.name.isdigit())


def newest_started(store: ObjectStore, restore_id: str, trial_id: str) -> int | None:
    """Return the newest attempt whose runner has shown itself; later ones never got to run."""
    for attempt in reversed(list_attempts(store, restore_id, trial_id)):
        if _get(store, layout.heartbeat_key(restore_id, trial_id, attempt)) is not None:
            return attempt
    return None


def read_outcome(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int | None = None
) -> RunnerOutcome | None:
    """Return how an attempt ended (the newest, unless one is named); None if it has not said."""
    if attempt is None:
        attempt = max(list_attempts(store, restore_id, trial_id), default=0)
    try:
        body = store.get(layout.outcome_key(restore_id, trial_id, attempt))
    except KeyNotFoundError:
        return None
    return RunnerOutcome.from_json(body)


def wait_until_over(
    store: ObjectStore,
    restore_id: str,
    trial_id: str,
    attempt: int,
    *,
    patience_seconds: float = math.inf,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Block until an attempt has an outcome, or its runner was silent for `QUIET_SECONDS`.

    An attempt without any heartbeat never got to run. Claim the next attempt (or release the lease)
    before calling this: a runner writes its first heartbeat before it looks for newer attempts, so one
    of the two sees the other.

    Returns:
        False if its runner still lived after `patience_seconds`.
    """
    beat_key = layout.heartbeat_key(restore_id, trial_id, attempt)
    started = monotonic()
    last, since = _get(store, beat_key), started
    while last is not None and monotonic() - since < QUIET_SECONDS:
        if read_outcome(store, restore_id, trial_id, attempt) is not None:
            return True
        if monotonic() - started > patience_seconds:
            return False
        sleep(1.0)
        beat = _get(store, beat_key)
        if beat != last:
            last, since = beat, monotonic()
    return True


def _get(store: ObjectStore, key: str) -> bytes | None:
    try:
        return store.get(key)
    except KeyNotFoundError:
        return None
