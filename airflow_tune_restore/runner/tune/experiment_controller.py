"""Ray's TuneController for a whole-experiment run, with the scheduler and searcher of the experiment.

It differs from `Tuner.restore(…).fit()` in four ways. The plan decides the action of each trial. The
searcher first gets the results that it missed. A single trial can be stopped, and stays unfinished. The
state of the searcher is saved together with the snapshot it belongs to.
"""

import copy
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.tune_config import ResumeConfig

from airflow_tune_restore.exceptions import NoRoomError, RunnerError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import find_ended
from airflow_tune_restore.protocol.request import (
    RUN_ACTIONS,
    Result,
    RunnerProgress,
    RunnerRequest,
    TrialAction,
)
from airflow_tune_restore.runner.outcome import (
    INTERRUPTED,
    Ending,
    build_outcome,
    error_of,
    write_outcome,
)
from airflow_tune_restore.runner.tune import checkpoints, scheduler, searcher
from airflow_tune_restore.runner.tune.controller import GuardedController, resumed_later
from airflow_tune_restore.runner.tune.experiment_context import ExperimentContext, read_trial_id
from airflow_tune_restore.runner.tune.private_api import replaced

_SUGGESTED_TOO_LATE = (
    "The searcher suggested it after the private Ray of this run had started. If the machine has enough, "
    "restore the experiment again: the next private Ray will be large enough for this trial, too."
)

logger = logging.getLogger(__name__)


class ExperimentController(GuardedController):
    """Ray's TuneController for all trials of a restore."""

    context: ExperimentContext

    def __init__(self, **kwargs: Any) -> None:
        self._searcher_number = 0
        if self.context.source_key is None:
            kwargs["resume_config"] = None  # nothing to resume: a new run in the old directory
        # tuner.pkl may hold a lost searcher, whose state cannot be restored
        is_lost = bool(self.context.planned.searcher_lost)
        search_alg = searcher.exhausted() if is_lost else kwargs.get("search_alg")
        kwargs["search_alg"] = searcher.shield(search_alg)
        super().__init__(**kwargs)
        self.context.reporter.start()

    def step(self) -> None:
        """Stop the trials that were asked to stop, then go on as Ray does."""
        for trial_id in self.context.reporter.new_stop_requests():
            self._stop_followed_by(trial_id)
        super().step()

    def _stop_followed_by(self, follower: str) -> None:
        """Stop trials without ending them: they are saved as unfinished, and a later run resumes them."""
        if follower == layout.WHOLE_EXPERIMENT:  # the samples of this run: suggest no more of them
            self._search_alg.set_finished()
        for trial in self._trials:
            if self.context.follower_of(trial) == follower and not trial.is_finished():
                logger.info("Trial %s is being stopped; it can be resumed later.", trial.trial_id)
                self._stop_unfinished(trial)

    def give_up(self, trial_id: str, why: str) -> None:
        """Stop the trial alone; the others go on."""
        trial = self.get_trial(trial_id)
        is_sample = self.context.request_for(trial).action == TrialAction.DRAW
        if is_sample and self.context.request.address is None:
            why = f"{why} {_SUGGESTED_TOO_LATE}"
        logger.error("%s", why)
        self.context.given_up[trial_id] = why
        self._stop_unfinished(trial)

    def _stop_unfinished(self, trial: Trial) -> None:
        self.context.stopped_trials.add(trial.trial_id)
        self.stop_alone(trial)

    def add_trial(self, trial: Trial) -> None:
        """Give a new sample the present storage of the experiment.

        A restored searcher has the storage of the first run: its place and its credentials
        (ray.tune.search.search_generator, 2.60).
        """
        if trial.storage is not None and self._storage is not None:
            storage = copy.copy(trial.storage)
            for name in ("storage_filesystem", "storage_fs_path", "experiment_dir_name"):
                setattr(storage, name, getattr(self._storage, name))
            trial.set_storage(storage)
        super().add_trial(trial)

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        self._searcher_number = int(experiment_state.get("stats", {}).get("searcher", 0))
        trials = self._restore_readable(experiment_state)
        for trial in trials:
            request = self.context.request_for(trial)
            if not self.context.is_seed:
                if not trial.is_finished():
                    checkpoints.continue_from_snapshot(self.context.store, trial, request.attempt)
            elif request.action == TrialAction.RESUME:
                checkpoints.start_as_planned(self.context.store, trial, request)
        return trials

    def _restore_readable(self, experiment_state: dict[str, Any]) -> list[Trial]:
        """Restore each trial by itself, so that the others run if Ray cannot read one."""
        trials: list[Trial] = []
        with replaced(
            Trial, "from_json_state", _any_trainable(self.context.request.trainable_name)
        ):
            for row in experiment_state["trial_data"]:
                try:
                    trials += super()._restore_trials({**experiment_state, "trial_data": [row]})
                except Exception as error:  # noqa: BLE001  a damaged pickle in it may raise anything
                    self._leave_out(read_trial_id(row), error)
        if not trials:
            raise RunnerError("Ray cannot read the row of any trial")
        self._storage._timestamp = trials[0].storage._timestamp  # as in Ray: the first trial's
        return trials

    def _leave_out(self, trial_id: str, error: Exception) -> None:
        logger.warning(
            "Trial %s is left out and its row stays as it is, because Ray cannot restore it: %s: %s",
            *(trial_id, type(error).__name__, error),
        )
        self.context.left_out[trial_id] = error

    def _requeue_restored_trials(self, trials: list[Trial], resume_config: Any) -> None:
        """Add each trial with its planned action, in Ray's order; trials that have ended stay ended."""
        del resume_config
        if self.context.is_seed:
            searcher.report_missed_results(
                self.context.store, self._search_alg, trials, self.context.request_for
            )
        for trial in sorted(trials, key=lambda t: t.run_metadata.last_result_time, reverse=True):
            count = len(self._trials)
            try:
                self._requeue(trial, self.context.request_for(trial))
            except Exception as error:
                if len(self._trials) > count:
                    raise
                self._leave_out(trial.trial_id, error)

    def _requeue(self, trial: Trial, request: RunnerRequest) -> None:
        kind = ResumeConfig.ResumeType
        if self.context.is_seed:
            of_action = {TrialAction.RESUME: kind.RESUME, TrialAction.RESTART: kind.RESTART}
            choice = of_action.get(request.action, kind.SKIP)
        else:
            choice = kind.SKIP if trial.is_finished() else kind.RESUME
        self.requeue(trial, request, choice)

    def prepare_restored_trials(self) -> None:
        """Set directories of new trials, drop rows that will come again, refuse trials left out."""
        self._refuse_left_out()
        if not self.context.is_seed:
            self._find_recorded()
        for trial in self._trials:
            if trial.is_finished():
                continue
            trial.init_local_path()
            self.prepare_files(trial, self.context.request_for(trial))
        if self.context.request.remember_scheduler:
            scheduler.remember(self.context.store, self._scheduler_alg, self._trials)

    def _find_recorded(self) -> None:
        """Find the trials that ended in an earlier attempt: a failure must not be recorded twice."""
        request = self.context.request
        units = {
            self.context.request_for(trial).trial_id: trial.trial_id
            for trial in self._trials
            if trial.is_finished() and self._is_recorded(trial)
        }
        ended = find_ended(self.context.store, request.restore_id, units)
        self.context.recorded_trials.update(units[unit] for unit in ended)

    def changed_trials(self) -> Iterable[Trial]:
        """Return the trials that Ray has marked since the last snapshot."""
        return list(self._trials_to_cache)

    def fetch_states(self, target: Path) -> None:
        """Fetch the saved states of callbacks and searcher."""
        super().fetch_states(target)
        if self.context.is_seed:
            searcher.fetch_newest(self.context.store, target)
        elif self.context.source_key is not None:
            directory = f"{self.context.source_key.rpartition('/')[0]}/searcher"
            searcher.fetch_saved(self.context.store, directory, self._searcher_number, target)

    def save_states(self) -> dict[str, Any]:
        """Save the searcher under a new number; the snapshot that names the number makes it count."""
        directory = self.context.staging / "searcher"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self._search_alg.save_to_dir(directory.as_posix(), session_str=layout.KEPT)
        self._searcher_number += 1
        for path in directory.iterdir():
            name = layout.numbered(self._searcher_number, path.name)
            self.context.store.put(f"{self._searcher_dir()}/{name}", path.read_bytes())
        return {"searcher": self._searcher_number}

    def _searcher_dir(self) -> str:
        return layout.searcher_dir(self.context.request.restore_id, self.context.request.attempt)

    def rows(self) -> list[tuple[str, str]]:
        """Return all rows; trials that were stopped alone get an unfinished status."""
        for trial in self._trials:
            if self.context.saved.get(trial.trial_id) != trial.status:
                self._mark_trial_to_checkpoint(trial)  # Ray forgets some that have no actor
        self._get_trial_checkpoints()
        saved: dict[str, tuple[str, str]] = self._trial_metadata
        return [
            resumed_later(row) if trial_id in self.context.stopped_trials else row
            for trial_id, row in saved.items()
        ]

    def after_snapshot(self) -> None:
        """Delete the searcher state of the previous snapshot, and record the trials that have ended."""
        context = self.context
        context.search_has_ended = bool(self._search_alg.is_finished())
        context.missing_samples = self._missing_samples() if context.search_has_ended else 0
        for entry in context.store.list_dir(self._searcher_dir()):
            if not entry.name.startswith(layout.numbered(self._searcher_number)):
                context.store.delete(f"{self._searcher_dir()}/{entry.name}")
        for trial in self._trials:
            if trial.is_finished() and trial.trial_id not in context.recorded_trials:
                self._record(trial)
                context.recorded_trials.add(trial.trial_id)

    def _missing_samples(self) -> int:
        """Return how many samples a finished searcher should have suggested and did not.

        A search that a stopper or the searcher itself ended early is marked as finished (2.60). So is
        one that has no samples at all, because its state was not restored.
        """
        planned, search_alg = self.context.planned, self._search_alg
        was_ended = search_alg._finished and search_alg.total_samples > 0
        if was_ended or not planned.continues_search:
            return 0
        requests = map(self.context.request_for, self._trials)
        new = sum(request.action == TrialAction.DRAW for request in requests)
        return max(0, (planned.samples_left or 0) - new)

    def _record(self, trial: Trial) -> None:
        """Write the outcome of one trial under the key that its own runner would use."""
        if self._is_recorded(trial):
            self.context.reporter.flush()
            self._write(self.context.request_for(trial), self._ending_of(trial), trial)

    def _is_recorded(self, trial: Trial) -> bool:
        """Whether a trial has an outcome: the plan runs it, or the searcher has suggested it."""
        return self.context.request_for(trial).action in (*RUN_ACTIONS, TrialAction.DRAW)

    def _ending_of(self, trial: Trial) -> Ending:
        if why := self.context.given_up.get(trial.trial_id):
            # a private Ray does not grow: a retry would end in the same way
            on_cluster = self.context.request.address is not None
            result = Result.INTERRUPTED if on_cluster else Result.REFUSED
            return Ending(result, NoRoomError.__name__, why)
        if trial.trial_id in self.context.stopped_trials:
            return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; it can be resumed")
        if trial.status == Trial.ERROR:
            return Ending(Result.FAILED, *error_of(trial))
        return Ending(Result.FINISHED)

    def _write(self, request: RunnerRequest, ending: Ending, trial: Trial | None) -> None:
        outcome = build_outcome(request, ending, trial=trial, started_at=self.context.started_at)
        write_outcome(self.context.store, outcome)

    def _refuse_left_out(self) -> None:
        """Write the outcome of each trial that was to run and was not restored."""
        context = self.context
        restored = {context.request_for(trial).trial_id for trial in self._trials}
        for trial_id in sorted(context.to_run() - restored):
            error = context.left_out.get(trial_id)
            why = f"{type(error).__name__}: {error}" if error else "an earlier attempt left it out"
            ending = Ending(Result.REFUSED, RunnerError.__name__, f"Ray cannot restore it ({why})")
            self._write(replace(context.request, trial_id=trial_id), ending, None)

    def report(self, trial: Trial, progress: RunnerProgress) -> None:
        """Print a result, and keep it for the task that follows the trial."""
        progress = replace(progress, trial_id=self.context.request_for(trial).trial_id)
        super().report(trial, progress)
        self.context.reporter.add(self.context.follower_of(trial), progress)


def _any_trainable(name: str) -> Any:
    """Return a `Trial.from_json_state` that also reads trials of other trainables, as stubs.

    Other trainables are not registered here, and one such row would make Ray start the whole experiment
    over (`validate_trainable`, ray.tune.experiment.trial, 2.60). The plan keeps these trials as they are.
    """
    original = Trial.from_json_state

    def read(_cls: type[Trial], json_state: str) -> Trial:
        of = json.loads(json_state)["trainable_name"]
        return original(json_state, stub=bool(name) and of != name)

    return classmethod(read)
