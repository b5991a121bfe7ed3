"""Ray's TuneController for independent trials that share a driver.

Trials come while it runs, and each ends by itself: it is restored, saved, stopped and recorded as by a
runner of its own. No trial sees another one: no sample is drawn, no stopper compares, and the failure of
one stops no other.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import compress
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.impl.out_of_band_serialize_dataset import out_of_band_serialize_dataset
from ray.tune.tune_config import ResumeConfig

from airflow_tune_restore.exceptions import NoRoomError, RunnerError, TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.numbers import whole_iteration
from airflow_tune_restore.protocol.request import Result, RunnerProgress, TrialAction
from airflow_tune_restore.runner import needs
from airflow_tune_restore.runner.desk_reader import Work
from airflow_tune_restore.runner.outcome import INTERRUPTED, Ending
from airflow_tune_restore.runner.tune import checkpoints, memory, searcher
from airflow_tune_restore.runner.tune.controller import GuardedController, resumed_later
from airflow_tune_restore.runner.tune.own_stoppers import OwnStoppers
from airflow_tune_restore.runner.tune.shared_context import SharedContext
from airflow_tune_restore.storage.in_flight import for_each

IDLE_STEP_SECONDS = 0.1
"""A step without trials takes as long."""

_CHOICES = {
    TrialAction.RESUME: ResumeConfig.ResumeType.RESUME,
    TrialAction.RESTART: ResumeConfig.ResumeType.RESTART,
}

logger = logging.getLogger(__name__)


class SharedController(GuardedController):
    """Ray's TuneController for the trials that a shared driver takes from its desk."""

    context: SharedContext
    _fail_fast: bool | str
    _stopper: OwnStoppers

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "search_alg": searcher.exhausted(), "fail_fast": False})

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        """Restore the first trials, in Ray's own restore of the seed of one of them."""
        del experiment_state  # each is restored from its seed
        # Ray has just restored these: they were those of the experiment
        self.context.fail_fast, self._fail_fast = self._fail_fast, False
        self._stopper = OwnStoppers(self._stopper)
        self.update_max_pending_trials()
        works, self.context.first = self.context.first, []
        return self._restore(works)

    def _restore(self, works: Iterable[Work]) -> list[Trial]:
        def start(work: Work) -> None:
            if work.request.action == TrialAction.RESUME:
                checkpoints.start_as_planned(self.context.store, work.trial, work.request)

        restored = self._each(start, [work for work in works if self._restore_row(work)])
        return [work.trial for work in restored]

    def _restore_row(self, work: Work) -> bool:
        """Restore the row of one trial; return whether Ray can."""
        try:
            (trial,) = super()._restore_trials(work.seed)
            if trial.trial_id != work.trial_id:
                raise RunnerError(f"its seed holds trial {trial.trial_id}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  a damaged pickle in it may raise anything
            self.context.refuse(work, error)
            return False
        work.seed, work.trial = {}, trial
        return True

    def _requeue_restored_trials(self, trials: list[Trial], resume_config: Any) -> None:
        """Queue each trial with its planned action; one that cannot be queued ends alone."""
        del resume_config
        for work in map(self.context.work_of, trials):
            try:
                self._queue(work)
            except Exception as error:  # noqa: BLE001  the user's resource request may raise anything
                self.context.refuse(work, error)

    def _queue(self, work: Work) -> None:
        if self._placeholder_resolvers:
            work.trial.resolve_config_placeholders(self._placeholder_resolvers)
        needs.ask_alone(
            work.trial
        )  # before Ray asks: it refuses in words, and what would end the run
        with memory.more_memory(work.request):
            self.requeue(work.trial, work.request, _CHOICES[work.request.action])
        work.trial = self._trials[-1]  # a restarted one is new

    def prepare_restored_trials(self) -> None:
        """Set directories of new trials, and drop rows that will come again."""

        def prepare(work: Work) -> None:
            self.prepare_files(work.trial, work.request)

        new = self._new()
        for work in new:
            work.trial.init_local_path()
        self._each(prepare, new)

    def _each(self, step: Callable[[Work], None], works: list[Work]) -> list[Work]:
        """Do a step for many attempts at the same time; return those for which it did not fail."""

        def carry_out(work: Work) -> bool:
            try:
                step(work)
            except Exception as error:  # noqa: BLE001  what a damaged file of one trial may raise
                self.context.refuse(work, error)
                return False
            return True

        return list(compress(works, for_each(carry_out, works)))

    def _works(self) -> list[Work]:
        """Return the attempts whose trials are restored, and whose ends are not recorded yet."""
        works = self.context.reader.works()
        return [work for work in works if work.trial is not None and not work.is_leaving]

    def _new(self) -> list[Work]:
        """Return the attempts that wait for their first snapshot, and have not begun to train."""
        return [
            work
            for work in self._works()
            if not (work.saved_status or work.error) and work.trial.status == Trial.PENDING
        ]

    def is_finished(self) -> bool:
        """Whether nothing is in work and nothing more comes."""
        return self.context.has_ended

    def step(self) -> None:
        """Take trials, stop those that were asked to stop, go on as Ray does, and record ends."""
        self._take_up(self.context.take_new())
        for work in self._works():
            if self.context.reader.is_asked_to_stop(work) and not _has_ended(work):
                logger.info("Trial %s is being stopped; it can be resumed later.", work.trial_id)
                self._end(
                    work, Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; it can be resumed")
                )
        if all(trial.is_finished() for trial in self._trials):
            self._let_actors_go()
        else:
            super().step()
        self._record_ended()
        self.context.reader.set_running(len(self._running_trials))

    def _take_up(self, works: list[Work]) -> None:
        if works:
            self._requeue_restored_trials(self._restore(works), None)
            self.prepare_restored_trials()
            try:
                self._put_snapshot()
            except (TuneRestoreError, OSError) as error:
                logger.warning("The first snapshots follow later: %s", error)

    def _let_actors_go(self) -> None:
        """Let ended actors go, as in a step of Ray, which would warn that nothing runs."""
        if not self._actor_manager.next(timeout=IDLE_STEP_SECONDS):
            time.sleep(IDLE_STEP_SECONDS)
        self.on_step_end()

    def _stop_experiment_if_needed(self) -> None:
        """End the trials alone whose own stoppers end their experiment."""
        for trial in list(self._running_trials):
            if self._stopper.stops(trial.trial_id):
                self.stop_trial(trial)

    def give_up(self, trial_id: str, why: str) -> None:
        """Stop the trial; its next attempt runs alone, with a Ray of its size."""
        logger.error("%s", why)
        work = self.context.work_of(self.get_trial(trial_id))
        self._end(work, Ending(Result.INTERRUPTED, NoRoomError.__name__, why))

    def _end(self, work: Work, ending: Ending) -> None:
        """Stop a trial that has not ended; it is saved as unfinished."""
        work.ending = ending
        self.stop_alone(work.trial)

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:  # noqa: FBT001, FBT002
        """Save what has changed; in the last save of a run, for which Ray waits, all that is in work."""
        if wait:
            self._trials_to_cache.update(work.trial for work in self._works())
        super().checkpoint(force=force, wait=wait)

    def _save(self) -> None:
        """Save the trials that Ray has marked since their last snapshots."""
        self.context.check_fence()
        self._newly_ended()  # an end that came with the death of Ray is not saved
        self._save_trials(self._works(), with_files=True)

    def _put_snapshot(self) -> None:
        """Save the rows of new trials."""
        self._save_trials(self._new(), with_files=False)

    def _save_trials(self, works: list[Work], *, with_files: bool) -> None:
        """Save what has changed, several trials at the same time: their files, then their rows."""
        changed = [work for work in works if self._has_changed(work)]
        if not changed:
            return
        callbacks = None
        if with_files:
            for_each(self._upload, [work.trial for work in changed])
            callbacks = self.callbacks_body()
        saves = [self._save_row(work, callbacks) for work in changed]
        for_each(lambda save: save(), saves)
        self._trials_to_cache.difference_update(work.trial for work in changed)

    def _save_row(self, work: Work, callbacks: bytes | None) -> Callable[[], None]:
        """Return a function, for any thread, that saves the present row of a trial."""
        request, status, body = work.request, work.trial.status, self._snapshot_of(work)
        last = work.trial.run_metadata.last_result
        iteration = whole_iteration(last.get("training_iteration"))

        def save() -> None:
            self.put_callbacks(request, callbacks)
            key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
            self.context.store.put(key, body)
            work.saved_status, work.saved_iteration = status, iteration

        return save

    def _has_changed(self, work: Work) -> bool:
        # Ray does not mark the end of a trial that has no actor
        is_marked = work.trial in self._trials_to_cache or work.saved_status != work.trial.status
        return work.error is None and is_marked

    def _snapshot_of(self, work: Work) -> bytes:
        trial = work.trial
        state = {**self.__getstate__(), "_fail_fast": self.context.fail_fast}
        state["_stopper"] = self._stopper.of(trial.trial_id)
        with out_of_band_serialize_dataset(), memory.own_resources(trial, work.request):
            row = trial.get_json_state()
            is_stopped = work.ending is not None and work.ending.result is Result.INTERRUPTED
            return self.encode([resumed_later(row) if is_stopped else row], state)

    def _record_ended(self) -> None:
        """Record the trials that have ended, and drop those that are recorded: others may follow."""
        for work in self._newly_ended():
            self._begin_to_record(work)
        for work in [work for work in self.context.ended if work.is_over]:
            self.context.ended.remove(work)
            self._forget(work.trial)

    def _newly_ended(self) -> list[Work]:
        """Return the attempts that have ended by themselves since the last call of `_record_ended`.

        Raises:
            RunnerError: If the private Ray has died: its trials have not failed, and go on alone.
        """
        ended = [w for w in self.context.reader.works() if _has_ended(w) and not w.is_leaving]
        if ended:
            self.context.room.raise_if_ray_died()
        return ended

    def _begin_to_record(self, work: Work) -> None:
        if work.trial not in self._trials:  # it could not be restored
            self.context.record(work)
            return
        self.stop_alone(work.trial)  # it may have been refused after it was queued
        self.context.ended.append(work)
        if not self._has_changed(work):
            self.context.record(work)
            return
        save_row = self._save_row(work, self.callbacks_body())

        def save() -> None:
            self._upload(work.trial)
            save_row()

        self.context.record(work, save)

    def _forget(self, trial: Trial) -> None:
        """Drop what Ray keeps of a trial until the end of a run."""
        self._trials.remove(trial)
        for known in (
            self._live_trials, self._stopped_trials, self._failed_trials, self._trials_to_cache
        ):  # fmt: skip
            known.discard(trial)
        for by_id in (
            self._trial_metadata, self._cached_trial_decisions, self._queued_trial_decisions
        ):  # fmt: skip
            by_id.pop(trial.trial_id, None)
        self._stopper.forget(trial.trial_id)
        shutil.rmtree(trial.local_path, ignore_errors=True)  # its files are in storage

    def _actor_started(self, tracked_actor: Any, *args: Any, **kwargs: Any) -> None:
        """Ask the process of a trial for its id, before it trains."""
        trial = self._actor_to_trial[tracked_actor]
        self._schedule_trial_task(trial, "get_current_ip_pid", on_result=self._assign_lines)
        super()._actor_started(tracked_actor, *args, **kwargs)

    def _assign_lines(self, trial: Trial, ip_and_pid: tuple[str, int]) -> None:
        self.context.lines.assign(*ip_and_pid, self.context.work_of(trial).trial_id)

    def report(self, trial: Trial, progress: RunnerProgress) -> None:
        """Print a result under the planned trial id, and keep it for the task of the trial."""
        progress = replace(progress, trial_id=self.context.work_of(trial).trial_id)
        super().report(trial, progress)
        self.context.reporter.add(progress.trial_id, progress)


def _has_ended(work: Work) -> bool:
    return work.ending is not None or (work.trial is not None and work.trial.is_finished())
