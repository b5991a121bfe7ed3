"""How a trial comes to a shared driver, and when it leaves it for a runner of its own.

1. A trial shares a driver in its first attempt of a restore; every further attempt is its own. So the
   trial that killed a driver is told apart at the next try, and so is one that a user stopped.
2. When a driver dies, the trials that it had not begun stay on the desk for the next driver. Those that
   it had begun run alone: one of them may have killed it.
3. The death of a driver does not count as a failure of a trial. That of an attempt that ran alone does.
"""

from collections.abc import Callable
from dataclasses import replace

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore


def hand_over(
    store: ObjectStore,
    plan: RestorePlan,
    trial_id: str,
    settings: RunnerSettings,
    *,
    log: Callable[..., None],
) -> RunnerRequest | None:
    """Claim the attempt of a trial that a shared driver runs, and lay it on the desk.

    Repeated by another try of the same task, it returns the same attempt. None: the trial runs alone.
    Raises as `claim_attempt`.
    """
    records = AttemptRecords(store, plan.restore_id, trial_id)
    if not plan.trial(trial_id).shares_driver or records.newest() > SHARED_ATTEMPT:
        return None
    try:
        request = claim_next_attempt(
            store,
            plan,
            trial_id,
            replace(settings, is_shared=True),
            log=log,
            attempt=SHARED_ATTEMPT,
        )
    except KeyExistsError:
        try:
            request = records.request(SHARED_ATTEMPT)
        except KeyNotFoundError:
            return None
        if not request.is_shared or is_left(records):
            return None
    Desk(store, plan.restore_id).hand_over(trial_id, SHARED_ATTEMPT)
    return request


def is_left(records: AttemptRecords) -> bool:
    """Whether no shared driver runs a trial any more: its attempt is over, or was lost."""
    return (
        records.outcome_or_interrupted(SHARED_ATTEMPT) is not None
        or records.exit(SHARED_ATTEMPT) is not None
    )


def record_lost(store: ObjectStore, restore_id: str, trial_id: str, message: str) -> bool:
    """Record that an attempt was lost with its driver. Return whether the driver had begun it."""
    records = AttemptRecords(store, restore_id, trial_id)
    has_begun = records.has_begun(SHARED_ATTEMPT)
    if has_begun and records.outcome_or_interrupted(SHARED_ATTEMPT) is None:
        records.record_exit(SHARED_ATTEMPT, None, message)
    return has_begun


def drivers(store: ObjectStore, restore_id: str) -> AttemptRecords:
    """Return the records of the shared drivers of a restore, which follow each other."""
    return AttemptRecords(store, restore_id, layout.SHARED_DRIVER)
