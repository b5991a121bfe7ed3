"""How a trial comes to a shared driver, and when it leaves it for a runner of its own.

1. A trial shares a driver in its first attempt of a restore; every further attempt is its own. So the
   trial that killed a driver is told apart at the next try, and so is one that a user stopped.
2. When a driver dies, the trials that it had not begun stay on the desk for the next driver. Those that
   it had begun run alone: one of them may have killed it.
<<<<<<< HEAD
3. The ledger counts the death of a runner that ran one trial alone, and not that of a shared driver.
=======
3. The death of a driver does not count as a failure of a trial. That of an attempt that ran alone does.
>>>>>>> driver
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

MOST_BROKEN = 3
"""After so many drivers of a restore that broke off, the trials that none of them had begun run alone."""

SHARED = (
    "Trial %s of %s: attempt %d of restore %s, in a driver that several trials share. "
    'strategy="per_trial" gives each trial a driver of its own.'
)
ELSEWHERE = (
    "Shared driver %d has it. The results of this trial are shown here; what the driver prints is in the "
    "log of the task that started it."
)
ALONE_AGAIN = "It had its attempt in a shared driver, so it has a driver of its own now."
ALONE_NOW = "Trial %s goes on in a driver of its own: %s."


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
    before = drivers(store, plan.restore_id).numbers()[:-1]  # the newest may live
    if not records.newest() and _count_broken(store, plan.restore_id, before) >= MOST_BROKEN:
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
        shared = find_shared(records)
        if shared is None:
            return None
        request = shared
    Desk(store, plan.restore_id).hand_over(trial_id, SHARED_ATTEMPT)
    return request


def find_shared(records: AttemptRecords) -> RunnerRequest | None:
    """Return the attempt of a trial that a shared driver runs, or will run; None if it runs alone."""
    if records.newest() != SHARED_ATTEMPT:
        return None
    try:
        request = records.request(SHARED_ATTEMPT)
    except KeyNotFoundError:
        return None
    return request if request.is_shared and not is_left(records) else None


def is_left(records: AttemptRecords) -> bool:
    """Whether no shared driver runs a trial any more: its attempt is over, or was lost."""
    return (
        records.outcome_or_interrupted(SHARED_ATTEMPT) is not None
        or records.exit(SHARED_ATTEMPT) is not None
    )


def find_why_alone(outcome: RunnerOutcome, *, on_cluster: bool) -> str:
    """Return why the trial of a shared attempt goes on alone; "" if the attempt ended by itself.

    It does if its driver was stopped or broke off, or if the private Ray of the driver had no room for
    it. Its own task, if it was killed, does not ask.
    """
    if outcome.result != Result.INTERRUPTED or (on_cluster and outcome.cause == Cause.NO_ROOM):
        return ""
    return outcome.describe_error() or "its shared driver was stopped"


def record_lost(store: ObjectStore, restore_id: str, trial_id: str, message: str) -> bool:
    """Record that an attempt was lost with its driver. Return whether the driver had begun it."""
    records = AttemptRecords(store, restore_id, trial_id)
    has_begun = records.has_begun(SHARED_ATTEMPT)
    if has_begun and records.outcome_or_interrupted(SHARED_ATTEMPT) is None:
        records.record_exit(SHARED_ATTEMPT, None, message)
    return has_begun


def leave_ended_driver(
    store: ObjectStore, restore_id: str, trial_id: str, ended: int | None
) -> str:
    """Decide what a trial does whose driver has ended without an outcome of it, and record it.

    `ended` is the number of the newest driver, which has ended; 0 if there was none. None: the trial was
    begun, and its own heartbeats ended.

    Returns:
        Why it runs alone from now on; "" if it waits on the desk for the next driver, or if that has it.
    """
    has_begun = AttemptRecords(store, restore_id, trial_id).has_begun(SHARED_ATTEMPT)
    numbers = drivers(
        store, restore_id
    ).numbers()  # after it: a later driver may just have begun it
    if ended is not None and max(numbers, default=0) > ended:
        return ""
    if has_begun:
        record_lost(store, restore_id, trial_id, "its shared driver died")
        return "its shared driver died while it ran"
    count = _count_broken(store, restore_id, numbers)
    if count < MOST_BROKEN:
        return ""
    why = f"{count} shared drivers broke off before they began it"
    AttemptRecords(store, restore_id, trial_id).record_exit(SHARED_ATTEMPT, None, why)
    Desk(store, restore_id).clear(trial_id, SHARED_ATTEMPT)
    return why


def _count_broken(store: ObjectStore, restore_id: str, numbers: Sequence[int]) -> int:
    """Return how many of these drivers, which have ended, did not end well."""
    records = drivers(store, restore_id)
    ends = for_each(records.outcome_or_interrupted, numbers)
    return sum(end is None or end.result != Result.FINISHED for end in ends)


def drivers(store: ObjectStore, restore_id: str) -> AttemptRecords:
    """Return the records of the shared drivers of a restore, which follow each other."""
    return AttemptRecords(store, restore_id, layout.SHARED_DRIVER)
