"""One look at a restore's storage for all triggers that wait for its trials.

What trials report is read from storage, where their runners write it. All triggers of a restore share a
budget of looks: a few trials are looked at every few seconds, a thousand every few minutes, and the
triggerer has the same work with either.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from airflow_tune_restore.exceptions import RecordUnreadableError, TuneRestoreError
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.launch.ray.attempt_job import RENEW_SECONDS
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress

if TYPE_CHECKING:
    from airflow_tune_restore.storage.base import ObjectStore

ROUND_SECONDS = 3.0
LOOKS_A_ROUND = 15
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class TrialWatch:
    """What one trigger waits for.

    Args:
        trial_id: Trial id in the plan.
        attempt: The attempt that runs it; of the run of all, where there is one.
        has_outcome_alone: Whether its outcome tells of its end, and not the end of a job.
        seen: How many results were shown.
        reports: Results that are new.
        has_ended: Whether it has left its outcome.
        is_behind: Whether results were missed; the rest is shown at the end.
        broken: What ended the looking at it, if it was no error of ours.
    """

    trial_id: str
    attempt: int
    has_outcome_alone: bool
    seen: int = 0
    reports: list[RunnerProgress] = field(default_factory=list)
    has_ended: bool = False
    is_behind: bool = False
    broken: Exception | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    looked_at: float = 0.0

    def take_reports(self) -> list[RunnerProgress]:
        """Return what is new, once."""
        reports, self.reports = self.reports, []
        return reports


class TrialPoller:
    """Looks at one restore for all triggers of this process; lives as long as there is one."""

    _all: ClassVar[dict[tuple[int, str, str], "TrialPoller"]] = {}

    def __init__(self, experiment: str, restore_id: str) -> None:
        self._experiment = experiment
        self._restore_id = restore_id
        self._store: ObjectStore | None = None
        self._trials: set[TrialWatch] = set()
        self._renewed = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=f"restore {restore_id}")

    @classmethod
    @asynccontextmanager
    async def watch(
        cls, experiment: str, restore_id: str, trial: TrialWatch
    ) -> AsyncIterator[TrialWatch]:
        """Have a trial looked at until the block ends.

        Args:
            experiment: Its address, with its connection id.
            restore_id: The restore.
            trial: The trial.
        """
        key = (id(asyncio.get_running_loop()), experiment, restore_id)
        watch = cls._all.get(key)
        if watch is None or watch._task.done():
            watch = cls._all[key] = cls(experiment, restore_id)
        watch._trials.add(trial)
        try:
            yield trial
        finally:
            watch._trials.discard(trial)
            if not watch._trials and cls._all.get(key) is watch:
                del cls._all[key]
                watch._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                await asyncio.sleep(ROUND_SECONDS)
                await self._round()
        except Exception as error:
            for trial in list(self._trials):  # or they would wait for ever
                trial.broken = error
                trial.changed.set()
            raise

    async def _round(self) -> None:
        waiting = [trial for trial in self._trials if not (trial.has_ended or trial.broken)]
        waiting.sort(key=lambda trial: trial.looked_at)
        chosen = waiting[:LOOKS_A_ROUND]
        try:
            await asyncio.to_thread(self._look, chosen)
        except TuneRestoreError as error:
            self._say(error)
        for trial in chosen:
            trial.looked_at = time.monotonic()
            if trial.reports or trial.has_ended or trial.broken:
                trial.changed.set()

    def _look(self, trials: list[TrialWatch]) -> None:
        if self._store is None:
            self._store = ExperimentStorageHook().open(self._experiment)
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            self._renewed = time.monotonic()
            lease.keep_alive(self._store, self._restore_id)
        for trial in trials:
            try:
                self._look_at(self._store, trial)
            except TuneRestoreError as error:
                self._say(error)
            except Exception as error:  # noqa: BLE001  it ends the trigger of this trial alone
                trial.broken = error

    def _look_at(self, store: "ObjectStore", trial: TrialWatch) -> None:
        # in this order: a trial's last words come before its end
        ended = trial.has_outcome_alone and self._has_outcome(store, trial)
        tail = None if trial.is_behind else self._read_progress(store, trial)
        if tail is not None and tail.first > trial.seen:
            trial.is_behind = True  # what follows is shown in order at the end
        elif tail is not None:
            trial.reports += tail.after(trial.seen)
            trial.seen = max(trial.seen, tail.count)
        trial.has_ended = ended

    def _has_outcome(self, store: "ObjectStore", trial: TrialWatch) -> bool:
        try:
            return (
                AttemptRecords(store, self._restore_id, trial.trial_id).outcome(trial.attempt)
                is not None
            )
        except RecordUnreadableError:
            return True  # its task reads it, and says so

    def _read_progress(self, store: "ObjectStore", trial: TrialWatch) -> ProgressTail | None:
        try:
            return AttemptRecords(store, self._restore_id, trial.trial_id).progress(trial.attempt)
        except RecordUnreadableError as error:
            trial.is_behind = True
            self._say(error)
            return None

    def _say(self, error: TuneRestoreError) -> None:
        logger.warning(
            "Restore %s cannot be looked at just now: %s", self._restore_id, printable(str(error))
        )
