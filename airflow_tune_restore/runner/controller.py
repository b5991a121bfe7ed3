"""Ray's TuneController, scoped to one trial of a restore.

Differences from Ray's own (ray.tune.execution.tune_controller, 2.60), and no others:
it restores the one row it is given instead of the experiment's newest state, draws no new samples,
saves its state under `.tune_restore/` (a second `experiment_state-*.json` in the root would hide every
other trial), and fails closed where Ray would log an error and start an empty experiment.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train._internal.storage import _upload_to_fs_path
from ray.tune import Callback
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.impl.out_of_band_serialize_dataset import out_of_band_serialize_dataset
from ray.tune.search import BasicVariantGenerator
from ray.tune.utils.serialization import TuneFunctionEncoder

from airflow_tune_restore.exceptions import RunnerError, TuneRestoreError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import RunnerProgress, RunnerRequest
from airflow_tune_restore.runner import checkpoint_choice, memory
from airflow_tune_restore.runner.outcome import scalar_metrics
from airflow_tune_restore.runner.ray_internals import replaced
from airflow_tune_restore.runner.results import prepare_results
from airflow_tune_restore.storage.base import ObjectStore

CALLBACK_STATES = "callback-states-"

logger = logging.getLogger(__name__)


@dataclass
class Scope:
    """What a scoped controller works on, and what it leaves behind.

    Args:
        store: Rooted at the experiment directory.
        request: The attempt.
        source_key: Seed or snapshot the row comes from.
        is_seed: Whether that is the seed, that is, nothing of this restore was run before.
        staging: Private directory for files on their way to storage.
        check_fence: Ends this process if a newer attempt or restore is at work.
        trial: The trial, once restored.
        saved_status: Its status in the newest snapshot; "" before the first.

    """

    store: ObjectStore
    request: RunnerRequest
    source_key: str
    is_seed: bool
    staging: Path
    check_fence: Callable[[], None]
    trial: Trial | None = field(default=None)
    saved_status: str = ""

    @property
    def starts_over(self) -> bool:
        """Whether a new trial takes the row; once it has, it is resumed like any other."""
        return self.is_seed and self.request.action == "restart"


def scoped_controller(scope: Scope) -> type[TuneController]:
    """Make the controller class that `tune.run` uses in the place of Ray's."""

    class ScopedTuneController(_ScopedTuneController):
        pass

    ScopedTuneController.scope = scope
    return ScopedTuneController


class _ScopedTuneController(TuneController):  # type: ignore[misc]  # Ray is untyped
    scope: Scope

    def __init__(self, **kwargs: Any) -> None:
        exhausted = BasicVariantGenerator()
        exhausted.set_finished()
        kwargs["search_alg"] = exhausted
        # last, because Ray finds the saved state of callbacks by their position
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), _ProgressLines(self.scope, kwargs)]
        self._failure: Exception | None = None
        super().__init__(**kwargs)
        if not self._resumed:
            raise RunnerError(
                f"Trial {self.scope.request.trial_id} could not be restored: {self._failure}. "
                "Nothing was run."
            ) from self._failure

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Restore the row; Ray swallows what goes wrong here, so it is kept for `__init__`."""
        try:
            super().resume(*args, **kwargs)
            self._adopt()
        except Exception as error:
            self._failure = error
            raise

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        trials: list[Trial] = super()._restore_trials(experiment_state)
        scope, request = self.scope, self.scope.request
        expected = request.trial_id if scope.is_seed else request.new_trial_id or request.trial_id
        if [trial.trial_id for trial in trials] != [expected]:
            raise RunnerError(f"{scope.source_key} does not hold trial {expected} alone")
        (trial,) = trials
        if not scope.is_seed:
            checkpoint_choice.continue_from_snapshot(scope.store, trial)
        elif not scope.starts_over:
            checkpoint_choice.start_as_planned(scope.store, trial, request)
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

    def _adopt(self) -> None:
        """Fix a new trial's directory, drop rows that come again, and save before anything runs."""
        self.scope.check_fence()
        (trial,) = self._trials
        trial.init_local_path()
        if not trial.is_finished():
            prepare_results(
                self.scope.store,
                self.scope.request,
                trial.relative_logdir,
                checkpoint_choice.iteration_of(trial),
            )
        self.scope.trial = trial
        self._put_snapshot()

    def _requeue_trial(self, trial: Trial) -> None:
        """Save before Ray retries a failed trial by itself.

        Its loggers then fetch result.json from storage again (LoggerCallback._restore_from_remote,
        2.60) and would lose the rows that were not uploaded yet.
        """
        super()._requeue_trial(trial)
        self.checkpoint(force=True)

    def _create_checkpoint_manager(self) -> "_ScopedCheckpointManager":
        return _ScopedCheckpointManager(
            storage=self._storage,
            checkpoint_period=self._checkpoint_period,
            sync_every_n_trial_checkpoints=self._trial_checkpoint_config.num_to_keep,
            save=self._save,
            fetch_callbacks=self._fetch_callbacks,
        )

    def _save(self) -> None:
        """Upload the trial's own files, then the state that goes with them."""
        self.scope.check_fence()
        trial = self.scope.trial
        if trial is not None and any(Path(trial.local_path).glob("*")):
            _upload_to_fs_path(
                local_path=trial.local_path,
                fs=trial.storage.storage_filesystem,
                fs_path=trial.storage.trial_fs_path,
            )
        self._save_callbacks()
        self._put_snapshot()

    def _fetch_callbacks(self, target: Path) -> None:
        """Fetch the newest saved state of callbacks: the source attempt's, or else the experiment's."""
        store = self.scope.store
        for directory in (self.scope.source_key.rpartition("/")[0], ""):
            saved = [
                e.name for e in store.list_dir(directory) if e.name.startswith(CALLBACK_STATES)
            ]
            if saved:
                key = f"{directory}/{max(saved)}".lstrip("/")
                (target / max(saved)).write_bytes(store.get(key))
                return

    def _save_callbacks(self) -> None:
        """Keep the state of callbacks beside the snapshot; a later attempt goes on from it."""
        self._callbacks.save_to_dir(self.scope.staging.as_posix(), session_str="kept")
        saved = self.scope.staging / f"{CALLBACK_STATES}kept.pkl"
        if saved.is_file():
            request = self.scope.request
            directory = layout.attempt_dir(request.restore_id, request.trial_id, request.attempt)
            self.scope.store.put(f"{directory}/{saved.name}", saved.read_bytes())

    def _put_snapshot(self) -> None:
        request, trial = self.scope.request, self.scope.trial
        if trial is not None:
            self._mark_trial_to_checkpoint(trial)
        with out_of_band_serialize_dataset():  # as Ray does: for Datasets in a config
            state = {
                "trial_data": list(self._get_trial_checkpoints().values()),
                "runner_data": self.__getstate__(),
                "stats": {"start_time": self._start_time},
            }
            body = json.dumps(state, cls=TuneFunctionEncoder).encode()
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self.scope.store.put(key, body)
        self.scope.saved_status = trial.status if trial is not None else ""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_failure", None)
        return state


class _ScopedCheckpointManager(_ExperimentCheckpointManager):  # type: ignore[misc]
    """Ray's timing of snapshots, with another place to put them."""

    _should_force_sync_up: bool
    _last_save_time: float

    def __init__(
        self, *, save: Callable[[], None], fetch_callbacks: Callable[[Path], None], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._save = save
        self._fetch_callbacks = fetch_callbacks

    def sync_up_experiment_state(
        self, *_args: Any, force: bool = False, wait: bool = False, **_kwargs: Any
    ) -> None:
        """Save if it is time to (ray.tune.execution.experiment_state, 2.60).

        As there, a store that fails for a while does not end the training; but the last snapshot of a
        run (the one Ray waits for) must be there.
        """
        now = time.monotonic()
        if (
            not (force or self._should_force_sync_up)
            and now - self._last_save_time < self._checkpoint_period
        ):
            return
        try:
            self._save()
        except (TuneRestoreError, OSError) as error:
            if wait:
                raise
            logger.warning("The snapshot could not be saved, the next one may: %s", error)
        else:
            self._trial_num_checkpoints_since_last_sync.clear()
            self._should_force_sync_up = False
        self._update_auto_checkpoint_time(time_taken=time.monotonic() - now)
        self._last_save_time = time.monotonic()

    def sync_down_experiment_state(self) -> None:
        """Fetch the saved state of callbacks only; Ray fetches every state file there is."""
        target = Path(self._storage.experiment_driver_staging_path)
        target.mkdir(parents=True, exist_ok=True)
        self._fetch_callbacks(target)


class _ProgressLines(Callback):  # type: ignore[misc]
    """Prints one line a result for whoever started the runner."""

    def __init__(self, scope: Scope, kwargs: dict[str, Any]) -> None:
        self._trial_id = scope.request.trial_id
        self._metric = kwargs.get("metric")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Print it."""
        del iteration, trials, trial, info
        print(  # noqa: T201  stdout is the channel
            RunnerProgress(
                trial_id=self._trial_id,
                iteration=int(result.get("training_iteration", 0)),
                metrics=scalar_metrics(result, self._metric),
            ).to_line(),
            flush=True,
        )

    def get_state(self) -> None:
        """Nothing to save."""
