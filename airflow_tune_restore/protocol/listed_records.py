"""The records of all attempts of a restore, found by one walk: for steps that are about all its trials.

A walk costs one request per thousand objects. It is as old as its begin: what is not in it may have been
written since. Standard library only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.records import read_heartbeat
from airflow_tune_restore.protocol.request import RunnerExit, RunnerOutcome
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

_HEARTBEAT, _OUTCOME, _EXIT, _SNAPSHOT, _PROGRESS = (
    key("", "", 1).rpartition("/")[2]
    for key in (
        layout.heartbeat_key,
        layout.outcome_key,
        layout.exit_key,
        layout.snapshot_key,
        layout.progress_key,
    )
)

_Found = dict[int, dict[str, datetime | None]]
"""The records of one unit: by attempt and name, when each was written by the store's clock."""


@dataclass(frozen=True, slots=True)
class ListedRecords(AttemptRecords):
    """The records of one unit. Nothing is requested that the walk did not find, and no outcome twice."""

    found: _Found = field(default_factory=dict)
    outcomes: dict[int, RunnerOutcome] = field(default_factory=dict)

    def numbers(self) -> list[int]:
        """Return the numbers of all attempts, ascending."""
        return sorted(self.found)

    def has_begun(self, attempt: int) -> bool:
        """Whether the runner of an attempt ever wrote a heartbeat."""
        return _HEARTBEAT in self.found.get(attempt, ())

    def heard_at(self, attempt: int) -> datetime | None:
        """Return when the runner of an attempt wrote its last heartbeat, by the store's clock."""
        return self.found.get(attempt, {}).get(_HEARTBEAT)

    def has_outcome(self, attempt: int) -> bool:
        """Whether the runner of an attempt left an outcome, readable or not."""
        return _OUTCOME in self.found.get(attempt, ())

    def has_exit(self, attempt: int) -> bool:
        """Whether an attempt has an exit record."""
        return _EXIT in self.found.get(attempt, ())

    def has_progress(self, attempt: int) -> bool:
        """Whether an attempt has reports of its trial."""
        return _PROGRESS in self.found.get(attempt, ())

    def has_snapshot(self, attempt: int) -> bool:
        """Whether the runner of an attempt saved a snapshot."""
        return _SNAPSHOT in self.found.get(attempt, ())

    def outcome(self, attempt: int | None = None) -> RunnerOutcome | None:
        """Return how an attempt ended, as `AttemptRecords.outcome`."""
        attempt = self.newest() if attempt is None else attempt
        if attempt not in self.outcomes and self.has_outcome(attempt):
            outcome = AttemptRecords.outcome(self, attempt)
            if outcome is not None:
                self.outcomes[attempt] = outcome
        return self.outcomes.get(attempt)

    def exit(self, attempt: int, *, infer_from_heartbeat: bool = False) -> RunnerExit | None:
        """Return the exit record of an attempt, as `AttemptRecords.exit`."""
        if self.has_exit(attempt):
            return AttemptRecords.exit(self, attempt, infer_from_heartbeat=infer_from_heartbeat)
        return RunnerExit() if infer_from_heartbeat and self.has_begun(attempt) else None


class RestoreRecords:
    """The records of all units of a restore."""

    def __init__(self, store: ObjectStore, restore_id: str) -> None:
        self._store = store
        self.restore_id = restore_id
        self._units: dict[str, ListedRecords] = {}
        self.list_again()

    def list_again(self) -> None:
        """Walk again. Outcomes that were read stay: a runner writes its outcome once."""
        found: dict[str, _Found] = {}
        for (unit, attempt, name), written_at in self._walk():
            found.setdefault(unit, {}).setdefault(attempt, {})[name] = written_at
        before, self._units = self._units, {}
        for unit, attempts in found.items():
            known = before[unit].outcomes if unit in before else {}
            self._units[unit] = self._records(unit, attempts, known)

    @property
    def units(self) -> list[str]:
        """The units with attempts: ids of trials, and `layout.RUNS_OF_MANY`."""
        return list(self._units)

    def of(self, unit: str) -> ListedRecords:
        """Return the records of a trial, or of the whole-experiment run; of no attempt if it has none."""
        return self._units.get(unit) or self._records(unit, {}, {})

    def started(self) -> list[AttemptId]:
        """Return the newest attempt of each unit whose runner wrote a heartbeat."""
        newest = ((unit, records.newest_started()) for unit, records in self._units.items())
        return [AttemptId(self.restore_id, unit, number) for unit, number in newest if number]

    def _records(
        self, unit: str, found: _Found, outcomes: dict[int, RunnerOutcome]
    ) -> ListedRecords:
        return ListedRecords(self._store, self.restore_id, unit, found, outcomes)

    def _walk(self) -> Iterator[tuple[tuple[str, int, str], datetime | None]]:
        """Yield unit, attempt and name of each record, and when it was written."""
        for entry in self._store.walk(layout.restore_dir(self.restore_id)):
            place = None if entry.is_dir else layout.attempt_of(entry.name)
            if place is not None and (is_safe_name(place[0]) or place[0] in layout.RUNS_OF_MANY):
                yield place, entry.modified_at


def read_heartbeats(store: ObjectStore, restore_id: str) -> dict[AttemptId, bytes]:
    """Return the heartbeats of the newest started attempts of a restore, one per unit.

    They change as long as its runners live. The plan is not read: it may not exist.
    """
    started = RestoreRecords(store, restore_id).started()
    beats = for_each(lambda of: read_heartbeat(store, layout.heartbeat_key(*of)), started)
    return {attempt: beat or b"" for attempt, beat in zip(started, beats, strict=True)}
