"""Which attempts a commit takes, and the wait for their runners.

All runners of a restore are watched at once. One that lives stops the commit; one that was silent for
long enough counts as dead. It may live after all. So a commit creates its record, which ends each
runner that sees it, and then chooses the attempts.
"""

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from airflow_tune_restore.exceptions import KeyNotFoundError, RunnerError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords, wait_until_all_over
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.committed_state import read_snapshot
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.storage.base import ObjectStore

PATIENCE_SECONDS = 120.0
"""How long a commit waits for a runner that is still alive."""

_CONCURRENCY = 16
_SHOWN_IDS = 6

_Found = TypeVar("_Found")


def choose_attempts(
    store: ObjectStore, plan: RestorePlan, over: dict[str, int] | None
) -> dict[str, int]:
    """Return which attempt of each unit is committed: the newest one with a snapshot.

    The commit record exists, so no runner of the restore begins now, and each that lives ends. `over`
    holds the newest attempt of each unit that had an outcome before. The runners of all others are
    watched first. None: another restore has taken the lease, so no runner writes any more.
    """

    def choose(unit: str) -> tuple[int, int] | None:
        """Return the newest attempt, and the newest one with a snapshot (0 without)."""
        numbers = AttemptRecords(store, plan.restore_id, unit).numbers()
        for number in reversed(numbers):
            if read_snapshot(store, plan, unit, number) is not None:
                return numbers[-1], number
        return (numbers[-1], 0) if numbers else None

    found = find_each(plan.units, choose)
    if over is not None:
        late = [unit for unit, (newest, _) in found.items() if over.get(unit) != newest]
        wait_for_runners(store, list_started(store, plan.restore_id, late))
        found |= find_each(late, choose)
    return {unit: chosen for unit, (_, chosen) in found.items() if chosen}


def list_started(store: ObjectStore, restore_id: str, units: list[str]) -> list[AttemptId]:
    """Return the newest attempt of each unit whose runner wrote a heartbeat."""
    newest = find_each(units, lambda unit: AttemptRecords(store, restore_id, unit).newest_started())
    return [AttemptId(restore_id, unit, attempt) for unit, attempt in newest.items()]


def list_started_by_all(store: ObjectStore, restore_ids: Iterable[str]) -> list[AttemptId]:
    """Return those of several restores that died and are not committed yet."""
    started = []
    for restore_id in restore_ids:
        if read_commit_record(store, restore_id) is None:
            with contextlib.suppress(KeyNotFoundError):  # it died before it had a plan
                started += list_started(store, restore_id, read_plan(store, restore_id).units)
    return started


def wait_for_runners(store: ObjectStore, started: list[AttemptId]) -> list[AttemptId]:
    """Wait until no runner is alive, watching all of them at once (RunnerError if one goes on).

    Returns those without an outcome: they were silent for so long that they count as dead.
    """
    alive, silent = wait_until_all_over(store, started, patience_seconds=PATIENCE_SECONDS)
    if alive:
        first = alive[0]
        is_whole = first.trial_id == layout.WHOLE_EXPERIMENT
        what = "The whole-experiment run" if is_whole else f"Trial {first.trial_id}"
        others = ", ".join(attempt.trial_id for attempt in alive[1:_SHOWN_IDS])
        raise RunnerError(
            f"{what} of {store.uri} still has a living runner (attempt {first.attempt})"
            f"{f', and so have {others}' if others else ''}. Nothing was committed. Wait for it to end, "
            "or stop it; then clear the commit task, or start the same restore in the shell again."
        )
    return silent


def find_each(units: list[str], find: Callable[[str], _Found | None]) -> dict[str, _Found]:
    """Return the result of `find` for each unit, without those that are None."""
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        found = zip(units, pool.map(find, units), strict=True)
        return {unit: value for unit, value in found if value is not None}
