"""Attempts: one run of one trial in a restore, numbered from 1.

Creating an attempt's request claims its number; a runner that sees a higher one stops. The runner alone
writes heartbeat, snapshot and outcome of its attempt. Standard library only.
"""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    RecordUnreadableError,
)
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.records import read_record, read_sign
from airflow_tune_restore.restore.request import Result, RunnerEnd, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.resources import describe, most_of
from airflow_tune_restore.restore.typed import LAST_WORDS_LENGTH
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.restore.plan import RestorePlan  # needs msgspec; runners have none

_CONCURRENCY = 16
QUIET_SECONDS = 20.0
"""A runner beats every 5 s; one that is silent this long by our own clock is dead."""


class AttemptId(NamedTuple):
    """What names an attempt.

    Args:
        restore_id: The restore.
        trial_id: Trial id in the plan; `layout.EVERY_TRIAL` for the one run of all.
        attempt: Its number, from 1.
    """

    restore_id: str
    trial_id: str
    attempt: int


def claim_attempt(  # noqa: PLR0913  what a runner is told
    store: ObjectStore,
    plan: "RestorePlan",
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

    With `layout.EVERY_TRIAL` for the trial it is the next attempt of the one run of all, which asks for
    `concurrent` times as much as the largest of its trials. `memory`, in bytes, is asked for if it is
    more than what the trial asks for by itself. `reports` is for a follower that does not read the
    runner's stdout, `sized` for whoever makes a place of the size of the request. `unstarted`, the newest
    attempt, was claimed and never started: it is returned, if it is what would be claimed now.

    Raises:
        KeyExistsError: If `attempt`, the one number wanted, is taken.
        InvalidInputError: If the plan has no such trial.
        RecordUnreadableError: If somebody has placed an attempt with the highest number there is.
    """
    asked = read_resources(store, plan, trial_id)
    if trial_id == layout.EVERY_TRIAL:
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
        search_alg=search_alg if trial_id == layout.EVERY_TRIAL else None,
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


def read_request(store: ObjectStore, restore_id: str, trial_id: str, attempt: int) -> RunnerRequest:
    """Read what was claimed.

    Raises:
        KeyNotFoundError: If nobody claimed it.
        RecordUnreadableError: If what is there is no request, or that of another attempt.
    """
    key = layout.request_key(restore_id, trial_id, attempt)
    request = read_record(store, key, RunnerRequest.from_json)
    if (request.restore_id, request.trial_id, request.attempt) != (restore_id, trial_id, attempt):
        raise RecordUnreadableError(store.uri, key, "it is the request of another attempt")
    # as for a plan: whoever can write it may name an experiment that is not his
    return replace(request, experiment=store.uri)


def _of_plan(plan: "RestorePlan", trial_id: str) -> dict[str, Any]:
    """Return what the plan holds for a trial, or for all of them."""
    if trial_id == layout.EVERY_TRIAL:
        return {"action": "run"}
    trial = plan.trial(trial_id)
    return {
        "action": trial.action.value,
        "checkpoint": trial.checkpoint,
        "iteration": trial.iteration,
        "new_trial_id": trial.new_trial_id,
    }


def read_resources(store: ObjectStore, plan: "RestorePlan", trial_id: str) -> dict[str, float]:
    """Return what a trial asks for, as far as is known; of all of them, the most that one asks for.

    A runner whose place was too small has left what its trainable asks for now; else it is what was
    recorded, and that may be out of date.

    Raises:
        InvalidInputError: If the plan has no such trial, or if the trainable asked for more again than
            what it had just been given.
    """
    outcomes = (
        read_whatever_outcome(store, plan.restore_id, trial_id, attempt)
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
    if trial_id == layout.EVERY_TRIAL:
        return most_of(trial.resources for trial in plan.to_run) or {"CPU": 1.0}  # Ray's default
    return dict(plan.trial(trial_id).resources)


def list_attempts(store: ObjectStore, restore_id: str, trial_id: str) -> list[int]:
    """Return the numbers of all attempts, ascending."""
    entries = store.list_dir(layout.attempts_dir(restore_id, trial_id))
    numbers = (layout.attempt_number(entry.name) for entry in entries if entry.is_dir)
    return sorted(number for number in numbers if number is not None)


def has_begun(store: ObjectStore, request: RunnerRequest) -> bool:
    """Whether the runner of an attempt has ever shown itself."""
    return _beat(store, request.restore_id, request.trial_id, request.attempt) is not None


def newest_started(store: ObjectStore, restore_id: str, trial_id: str) -> int | None:
    """Return the newest attempt whose runner has shown itself; later ones never got to run."""
    for attempt in reversed(list_attempts(store, restore_id, trial_id)):
        if _beat(store, restore_id, trial_id, attempt) is not None:
            return attempt
    return None


def read_outcome(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int | None = None
) -> RunnerOutcome | None:
    """Return how an attempt ended (the newest, unless one is named); None if it has not said."""
    if attempt is None:
        attempt = max(list_attempts(store, restore_id, trial_id), default=0)
    key = layout.outcome_key(restore_id, trial_id, attempt)
    try:
        outcome = read_record(store, key, RunnerOutcome.from_json)
    except KeyNotFoundError:
        return None
    if (outcome.restore_id, outcome.trial_id, outcome.attempt) != (restore_id, trial_id, attempt):
        raise RecordUnreadableError(store.uri, key, "it is the outcome of another attempt")
    return outcome


def read_whatever_outcome(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int | None = None
) -> RunnerOutcome | None:
    """As `read_outcome`, for what is only told: garbage counts as interrupted and holds up nothing."""
    try:
        return read_outcome(store, restore_id, trial_id, attempt)
    except RecordUnreadableError as error:
        return RunnerOutcome(
            restore_id=restore_id,
            trial_id=trial_id,
            attempt=attempt or 0,
            result=Result.INTERRUPTED,
            status="",
            final_trial_id=trial_id,
            error=str(error),
        )


def record_end(
    store: ObjectStore, request: RunnerRequest, exit_code: int | None, message: str
) -> RunnerEnd:
    """Keep what was seen of a runner that left no outcome, or was taken away: the ledger counts it."""
    end = RunnerEnd(
        exit_code=exit_code, message=message[-LAST_WORDS_LENGTH:], ended_at=store.now().isoformat()
    )
    key = layout.end_key(request.restore_id, request.trial_id, request.attempt)
    store.put(key, end.to_json())
    return end


def read_end(store: ObjectStore, restore_id: str, trial_id: str, attempt: int) -> RunnerEnd | None:
    """Return what was seen of the end of an attempt without outcome; None if nobody saw it.

    An attempt that was never heard of (no heartbeat, no end) did not run: None, too.
    """
    seen = read_recorded_end(store, restore_id, trial_id, attempt)
    if seen is not None:
        return seen
    beat = _beat(store, restore_id, trial_id, attempt)
    return RunnerEnd() if beat is not None else None


def read_recorded_end(
    store: ObjectStore, restore_id: str, trial_id: str, attempt: int
) -> RunnerEnd | None:
    """Return what somebody has written down of an attempt's end, whether or not it has an outcome."""
    key = layout.end_key(restore_id, trial_id, attempt)
    try:
        return read_record(store, key, RunnerEnd.from_json)
    except KeyNotFoundError:
        return None
    except RecordUnreadableError as error:  # that it ended is known, if not how
        return RunnerEnd(message=str(error))


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
    alive = wait_until_all_over(
        store,
        [AttemptId(restore_id, trial_id, attempt)],
        patience_seconds=patience_seconds,
        monotonic=monotonic,
        sleep=sleep,
    )
    return not alive


def wait_until_all_over(
    store: ObjectStore,
    attempts: Sequence[AttemptId],
    *,
    patience_seconds: float = math.inf,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[AttemptId]:
    """Do as `wait_until_over` for many attempts, in the time that one takes.

    Args:
        store: Rooted at the experiment directory.
        attempts: One of each trial.
        patience_seconds: How long living runners are waited for.
        monotonic: The clock.
        sleep: Waits some seconds.

    Returns:
        Those whose runners still lived after `patience_seconds`.
    """

    def look(attempt: AttemptId) -> tuple[bytes | None, bool, float]:
        beat = _beat(store, *attempt)
        has_outcome = beat is not None and read_whatever_outcome(store, *attempt) is not None
        return beat, has_outcome, monotonic()

    started = monotonic()
    beats: dict[AttemptId, bytes] = {}
    changed_at: dict[AttemptId, float] = {}
    watched = list(attempts)
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        while True:
            alive = []
            for attempt, (beat, has_outcome, at) in zip(
                watched, pool.map(look, watched), strict=True
            ):
                if beat is None or has_outcome:
                    continue
                if beats.get(attempt) != beat:
                    beats[attempt], changed_at[attempt] = beat, at
                if at - changed_at[attempt] < QUIET_SECONDS:
                    alive.append(attempt)
            if not alive or monotonic() - started > patience_seconds:
                return alive
            watched = alive
            sleep(1.0)


def _name(trial_id: str) -> str:
    return "A trial" if trial_id == layout.EVERY_TRIAL else f"Trial {trial_id}"


def _beat(store: ObjectStore, restore_id: str, trial_id: str, attempt: int) -> bytes | None:
    return read_sign(store, layout.heartbeat_key(restore_id, trial_id, attempt))
