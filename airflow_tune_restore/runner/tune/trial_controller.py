"""Ray's TuneController for one trial: the seed holds only its row, and no new samples are suggested."""

from dataclasses import dataclass, replace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.tune_config import ResumeConfig

from airflow_tune_restore.exceptions import NoRoomError, RunnerError
from airflow_tune_restore.protocol.numbers import whole_iteration
from airflow_tune_restore.protocol.request import Result, RunnerProgress, TrialAction
from airflow_tune_restore.runner.outcome import INTERRUPTED, Ending, error_of
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.tune import checkpoints, memory, searcher
from airflow_tune_restore.runner.tune.controller import AttemptContext, GuardedController


@dataclass(kw_only=True)
class TrialContext(AttemptContext):
    """The context of an attempt at one trial.

    Args:
        restored: The trial, once it is restored.
        reporter: Writes results to storage for a follower that cannot read stdout; None if it can.
    """

    restored: Trial | None = None
    reporter: Reporter | None = None

    @property
    def trial(self) -> Trial | None:
        """The trial."""
        return self.restored

    @property
    def starts_over(self) -> bool:
        """Whether a new trial replaces the restored one; later attempts resume this new trial."""
        return self.is_seed and self.request.action == TrialAction.RESTART

    @property
    def saved_status(self) -> str:
        """Its status in the newest snapshot; "" before the first."""
        return self.saved.get(self.restored.trial_id, "") if self.restored is not None else ""

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, and was saved so."""
        trial = self.restored
        return trial is not None and self.saved_status == trial.status and trial.is_finished()

    def counts_for_size(self, row: str) -> bool:
        """Return True: the seed holds no other trial."""
        del row
        return True

    def resume_config(self) -> ResumeConfig:
        """Run the trial whatever its status is, unless an earlier attempt has finished it."""
        kind = ResumeConfig.ResumeType
        if self.is_seed:
            chosen = kind.RESTART if self.starts_over else kind.RESUME
            return ResumeConfig(finished=chosen, unfinished=chosen, errored=chosen)
        return ResumeConfig(finished=kind.SKIP, unfinished=kind.RESUME, errored=kind.RESUME)

    def close(self) -> None:
        """Write the last progress."""
        if self.reporter is not None:
            self.reporter.stop()

    def judge(self, *, was_stopped: bool) -> Ending:
        """Return how the trial ended."""
        trial, saved = self.restored, self.saved_status
        if was_stopped and saved not in ("", "TERMINATED", "ERROR"):
            # in memory Ray sets a trial whose actor it stops to TERMINATED (_cleanup_trials, 2.60)
            return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; a snapshot was saved")
        if trial is None or saved != trial.status:
            raise RunnerError(
                "The last snapshot of the trial could not be saved; see the log above."
            )
        if trial.status == "TERMINATED":
            return Ending(Result.FINISHED)
        if trial.status == "ERROR":
            return Ending(Result.FAILED, *error_of(trial))
        raise RunnerError(f"Ray ended the run with trial {trial.trial_id} {trial.status}.")


class TrialController(GuardedController):
    """Ray's TuneController for one trial of a restore."""

    context: TrialContext

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "search_alg": searcher.exhausted()})

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        trials: list[Trial] = super()._restore_trials(experiment_state)
        context, request = self.context, self.context.request
        expected = request.trial_id if context.is_seed else request.new_trial_id or request.trial_id
        if [trial.trial_id for trial in trials] != [expected]:
            raise RunnerError(f"{context.source_key} does not hold trial {expected} alone")
        (trial,) = trials
        if not context.is_seed:
            checkpoints.continue_from_snapshot(context.store, trial, request.attempt)
        elif not context.starts_over:
            checkpoints.start_as_planned(context.store, trial, request)
        return trials

    def _requeue_restored_trials(self, trials: list[Trial], resume_config: Any) -> None:
        request = self.context.request
        if not self.context.starts_over or request.new_trial_id is None:
            super()._requeue_restored_trials(trials, resume_config)
            return
        (trial,) = trials
        self.requeue(trial, request, ResumeConfig.ResumeType.RESTART)

    def add_trial(self, trial: Trial) -> None:
        """Add the trial with the memory that this attempt requests."""
        with memory.more_memory(self.context.request):
            super().add_trial(trial)

    def _get_trial_checkpoints(self) -> dict[str, str]:
        trial = self.context.trial
        if trial is None:
            return dict(super()._get_trial_checkpoints())
        with memory.own_resources(trial, self.context.request):
            return dict(super()._get_trial_checkpoints())

    def prepare_restored_trials(self) -> None:
        """Set the directory of a new trial, and drop rows that will come again."""
        (trial,) = self._trials
        trial.init_local_path()
        if not trial.is_finished():
            self.prepare_files(trial, self.context.request)
        self.context.restored = trial

    def give_up(self, trial_id: str, why: str) -> None:
        """End the run after a snapshot."""
        del trial_id
        self.checkpoint(force=True, wait=True)
        raise NoRoomError(why)

    def changed_trials(self) -> list[Trial]:
        """Return the trial."""
        return [self.context.restored] if self.context.restored is not None else []

    def rows(self) -> list[tuple[str, str]]:
        """Return the present row of the trial."""
        for trial in self._trials:
            self._mark_trial_to_checkpoint(trial)
        return super().rows()

    def after_snapshot(self) -> None:
        """Remember the iteration that is saved."""
        trial = self.context.restored
        last = trial.run_metadata.last_result if trial is not None else {}
        self.context.saved_iteration = whole_iteration(last.get("training_iteration"))

    def report(self, trial: Trial, progress: RunnerProgress) -> None:
        """Print a result under the planned trial id, and keep it for the follower."""
        progress = replace(progress, trial_id=self.context.request.trial_id)
        super().report(trial, progress)
        if self.context.reporter is not None:
            self.context.reporter.add(progress.trial_id, progress)
