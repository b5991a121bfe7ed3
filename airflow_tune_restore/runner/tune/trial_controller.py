"""One trial: the seed holds its row alone, and no new samples are drawn."""

from dataclasses import dataclass, replace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.tune_config import ResumeConfig

from airflow_tune_restore.exceptions import NoRoomError, RunnerError
from airflow_tune_restore.protocol.request import Result, RunnerProgress
from airflow_tune_restore.runner.outcome import error_of
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.tune import checkpoints, memory, searcher
from airflow_tune_restore.runner.tune.controller import GuardedController, Scope
from airflow_tune_restore.runner.tune.private_api import replaced
from airflow_tune_restore.runner.tune.result_files import prepare_results


@dataclass(kw_only=True)
class TrialScope(Scope):
    """One trial.

    Args:
        restored: The trial, once there is one.
        reporter: Writes results to storage for a follower that does not read our stdout.

    """

    restored: Trial | None = None
    reporter: Reporter | None = None

    @property
    def trial(self) -> Trial | None:
        """The trial."""
        return self.restored

    @property
    def starts_over(self) -> bool:
        """Whether a new trial takes the row; once it has, it is resumed like any other."""
        return self.is_seed and self.request.action == "restart"

    @property
    def saved_status(self) -> str:
        """Its status in the newest snapshot; "" before the first."""
        return self.saved.get(self.restored.trial_id, "") if self.restored is not None else ""

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, and was saved so."""
        trial = self.restored
        return trial is not None and self.saved_status == trial.status and trial.is_finished()

    def sizes(self, row: str) -> bool:
        """There is no other."""
        del row
        return True

    def resume_config(self) -> ResumeConfig:
        """Run the one row whatever its status is; but leave one that an earlier attempt finished."""
        kind = ResumeConfig.ResumeType
        if self.is_seed:
            chosen = kind.RESTART if self.starts_over else kind.RESUME
            return ResumeConfig(finished=chosen, unfinished=chosen, errored=chosen)
        return ResumeConfig(finished=kind.SKIP, unfinished=kind.RESUME, errored=kind.RESUME)

    def close(self) -> None:
        """Write the last progress."""
        if self.reporter is not None:
            self.reporter.stop()

    def controller(self) -> type[GuardedController]:
        """Return the controller of one trial."""
        return TrialController

    def judge(self, *, told_to_stop: bool) -> tuple[Result, tuple[str, str]]:
        """Say how the trial ended."""
        trial, saved = self.restored, self.saved_status
        if told_to_stop and saved not in ("", "TERMINATED", "ERROR"):
            # Ray calls a trial TERMINATED whose actor it stops at the end (_cleanup_trials, 2.60)
            return Result.INTERRUPTED, ("Interrupted", "told to stop; a snapshot was saved")
        if trial is None or saved != trial.status:
            raise RunnerError("The last snapshot of the trial could not be saved; see above.")
        if trial.status == "TERMINATED":
            return Result.FINISHED, ("", "")
        if trial.status == "ERROR":
            return Result.FAILED, error_of(trial)
        raise RunnerError(f"Ray ended the run with trial {trial.trial_id} {trial.status}.")


class TrialController(GuardedController):
    """Ray's TuneController, scoped to one trial of a restore."""

    scope: TrialScope

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "search_alg": searcher.exhausted()})

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        trials: list[Trial] = super()._restore_trials(experiment_state)
        scope, request = self.scope, self.scope.request
        expected = request.trial_id if scope.is_seed else request.new_trial_id or request.trial_id
        if [trial.trial_id for trial in trials] != [expected]:
            raise RunnerError(f"{scope.source_key} does not hold trial {expected} alone")
        (trial,) = trials
        if not scope.is_seed:
            checkpoints.continue_from_snapshot(scope.store, trial)
        elif not scope.starts_over:
            checkpoints.start_as_planned(scope.store, trial, request)
            if request.fresh_budget:
                trial.run_metadata.num_failures = 0
        return trials

    def _requeue_restored_trials(self, trials: list[Trial], resume_config: Any) -> None:
        new_id = self.scope.request.new_trial_id
        if not self.scope.starts_over or new_id is None:
            super()._requeue_restored_trials(trials, resume_config)
            return
        # Trial.reset() draws a random id; ours is the same every time, so that a re-run converges
        with replaced(Trial, "generate_id", classmethod(lambda _cls: new_id)):
            super()._requeue_restored_trials(trials, resume_config)

    def add_trial(self, trial: Trial) -> None:
        """Add it with the memory that this attempt asks for."""
        with memory.more_memory(self.scope.request):
            super().add_trial(trial)

    def _get_trial_checkpoints(self) -> dict[str, str]:
        trial = self.scope.trial
        if trial is None:
            return dict(super()._get_trial_checkpoints())
        with memory.own_resources(trial, self.scope.request):
            return dict(super()._get_trial_checkpoints())

    def adopt(self) -> None:
        """Fix a new trial's directory, and drop rows that come again."""
        (trial,) = self._trials
        trial.init_local_path()
        if not trial.is_finished():
            prepare_results(
                self.scope.store,
                self.scope.request,
                trial.relative_logdir,
                checkpoints.start_of(trial),
            )
        self.scope.restored = trial

    def give_up(self, trial_id: str, why: str) -> None:
        """End the run, with a snapshot."""
        del trial_id
        self.checkpoint(force=True, wait=True)
        raise NoRoomError(why)

    def changed_trials(self) -> list[Trial]:
        """Return the trial."""
        return [self.scope.restored] if self.scope.restored is not None else []

    def rows(self) -> list[tuple[str, str]]:
        """Return its row as it is now."""
        for trial in self._trials:
            self._mark_trial_to_checkpoint(trial)
        return super().rows()

    def report(self, trial: Trial, progress: RunnerProgress) -> None:
        """Print it under the id the plan has."""
        progress = replace(progress, trial_id=self.scope.request.trial_id)
        super().report(trial, progress)
        if self.scope.reporter is not None:
            self.scope.reporter.add(progress.trial_id, progress)
