"""The snapshots that a commit takes: of each unit, that of the newest attempt with a valid one."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LinkRefusedError,
    StateUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.experiments.raw_row import MalformedStateError
from airflow_tune_restore.experiments.state import NO_STATE, State, parse_state
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import ahead

logger = logging.getLogger(__name__)


class Snapshots:
    """Reads the snapshots of a restore, each once.

    Args:
        chosen: The attempts to take by unit, if an older version has chosen them; else empty.

    Attributes:
        attempts: The attempts whose snapshots were read, by unit.
        whole_stats: `stats` of the snapshot of the whole-experiment run.
    """

    def __init__(
        self, store: ObjectStore, records: RestoreRecords, chosen: Mapping[str, int]
    ) -> None:
        self.attempts: dict[str, int] = {}
        self.whole_stats: dict[str, Any] = {}
        self._store = store
        self._records = records
        self._chosen = chosen

    def whole(self) -> State:
        """Return the snapshot of the whole-experiment run; `NO_STATE` if it left none."""
        state = self._read(layout.WHOLE_EXPERIMENT, None)
        self.whole_stats = state.stats
        return state

    def of_trials(self, trials: Sequence[TrialPlan]) -> Iterator[State]:
        """Yield the snapshot of each trial that ran by itself; a few are read ahead."""
        return ahead(lambda trial: self._read(trial.trial_id, trial.final_trial_id), trials)

    def read_all(self, plan: RestorePlan) -> None:
        """Read all of them for their attempts, for a commit whose state exists already."""
        if plan.is_whole_experiment:
            self.whole()
        else:
            for _ in self.of_trials(plan.to_run):
                pass

    def _read(self, unit: str, final_trial_id: str | None) -> State:
        if self._chosen:
            numbers = [self._chosen[unit]] if unit in self._chosen else []
        else:
            numbers = self._records.of(unit).numbers()
        for number in reversed(numbers):
            state = self._read_attempt(unit, number, final_trial_id)
            if state is not None:
                self.attempts[unit] = number
                return state
        if self._chosen and numbers:
            is_whole = unit == layout.WHOLE_EXPERIMENT
            what = "the whole-experiment run" if is_whole else f"trial {unit}"
            raise StateUnreadableError(
                self._store.uri, f"the snapshot of attempt {numbers[0]} of {what} is gone"
            )
        return NO_STATE

    def _read_attempt(self, unit: str, attempt: int, final_trial_id: str | None) -> State | None:
        """Return a snapshot; None if it is unreadable, or does not belong to its unit."""
        if not self._records.of(unit).has_snapshot(attempt):
            return None
        key = layout.snapshot_key(self._records.restore_id, unit, attempt)
        try:
            state = parse_state(self._store.get(key, max_bytes=layout.max_snapshot_bytes(unit)))
        except KeyNotFoundError:
            return None
        except (MalformedStateError, TooLargeError, LinkRefusedError) as error:
            logger.warning("%s: %s is not committed: %s", self._store.uri, key, error)
            return None
        ids = [trial.trial_id for trial in state.trials]
        is_own = bool(ids) if final_trial_id is None else ids == [final_trial_id]
        return state if is_own else None
