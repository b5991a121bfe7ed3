"""Which attempts a commit takes, and the wait for their runners.

All runners of a restore are watched at once. One that lives stops the commit; one that was silent for
long enough counts as dead. It may live after all. So a commit creates its record, which ends each
runner that sees it, and then chooses the attempts.
"""

from collections.abc import Iterable

from airflow_tune_restore.exceptions import RunnerError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId, wait_until_all_over
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

PATIENCE_SECONDS = 120.0
"""How long a commit waits for a runner that is still alive."""

_SHOWN_IDS = 6


def wait_for_units(
    store: ObjectStore, records: RestoreRecords, units: Iterable[str]
) -> dict[str, int]:
    """Wait until no runner of these units is alive; raises as `wait_for_runners`.

    Returns the newest attempt that was started of each unit, if it has an outcome.
    """
    started = list_started(records, units)
    has_outcome = for_each(lambda attempt: _has_outcome(records, attempt), started)
    pairs = list(zip(started, has_outcome, strict=True))
    silent = set(
        wait_for_runners(store, [attempt for attempt, has_ended in pairs if not has_ended])
    )
    return {one.trial_id: one.attempt for one in started if one not in silent}


def settle_late_attempts(
    store: ObjectStore, records: RestoreRecords, units: Iterable[str], over: dict[str, int] | None
) -> None:
    """List the attempts that a commit chooses from, and wait for runners that have begun since.

    The commit record exists, so no runner of the restore begins now, and each that lives ends. `over`
    holds the newest attempt of each unit that had an outcome before. The runners of all others are
    watched first. None: another restore has taken the lease, so no runner writes any more.
    """
    records.list_again()
    if over is None:
        return
    newest = {unit: records.of(unit).newest() for unit in units}
    late = [unit for unit, number in newest.items() if number and over.get(unit) != number]
    if late:
        wait_for_units(store, records, late)
        records.list_again()


def list_started(records: RestoreRecords, units: Iterable[str]) -> list[AttemptId]:
    """Return the newest attempt of each unit whose runner wrote a heartbeat."""
    newest = ((unit, records.of(unit).newest_started()) for unit in units)
    return [AttemptId(records.restore_id, unit, number) for unit, number in newest if number]


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


def _has_outcome(records: RestoreRecords, attempt: AttemptId) -> bool:
    return records.of(attempt.trial_id).outcome_or_interrupted(attempt.attempt) is not None
