"""Ray's TuneController, scoped to one trial of a restore.

Differences from Ray's own (ray.tune.execution.tune_controller, 2.60), and no others:
it restores the one row it is given instead of the experiment's newest state, draws no new samples,
saves its state under `.tune_restore/` (a second `experiment_state-*.json` in the root would hide every
other trial), and fails closed where Ray would log an error and start an empty experiment.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import (
    _download_from_fs_path,
    _list_at_fs_path,
    _upload_to_fs_path,
)
from ray.tune import Callback, Checkpoint
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator
from ray.tune.utils.serialization import TuneFunctionEncoder

from airflow_tune_restore.exceptions import RunnerError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import RunnerProgress, RunnerRequest
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
        trial: The trial, once restored.
    """

    store: ObjectStore
    request: RunnerRequest
    source_key: str
    is_seed: bool
    staging: Path
    trial: Trial | None = field(default=None)


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
        request = self.scope.request
        if [trial.trial_id for trial in trials] not in ([request.trial_id], [request.new_trial_id]):
            raise RunnerError(f"{self.scope.source_key} does not hold trial {request.trial_id}")
        trial = trials[0]
        if self.scope.is_seed and request.action == "resume":
            _start_from(trial, request)
            if request.fresh_budget:
                trial.run_metadata.num_failures = 0
        elif not self.scope.is_seed:
            _fall_back_if_gone(trial)
        if trial.relative_logdir and not (self.scope.is_seed and request.action == "restart"):
            prepare_results(self.scope.store, request, trial.relative_logdir, _iteration_of(trial))
        return trials

    def _requeue_restored_trials(self, trials: list[Trial], resume_config: Any) -> None:
        new_id = self.scope.request.new_trial_id
        if new_id is None:
            super()._requeue_restored_trials(trials, resume_config)
            return
        # Trial.reset() draws a random id; ours is the same every time, so that a re-run converges
        with replaced(Trial, "generate_id", classmethod(lambda _cls: new_id)):
            super()._requeue_restored_trials(trials, resume_config)

    def _adopt(self) -> None:
        """Take note of the trial, fix a new one's directory, and save before anything runs."""
        (trial,) = self._trials
        self.scope.trial = trial
        trial.init_local_path()
        self._mark_trial_to_checkpoint(trial)
        self._put_snapshot()

    def _create_checkpoint_manager(self) -> "_ScopedCheckpointManager":
        return _ScopedCheckpointManager(
            storage=self._storage,
            checkpoint_period=self._checkpoint_period,
            sync_every_n_trial_checkpoints=self._trial_checkpoint_config.num_to_keep,
            save=self._save,
        )

    def _save(self) -> None:
        """Upload the trial's own files, then the state that goes with them."""
        trial = self.scope.trial
        if trial is not None and Path(trial.local_path).is_dir():
            _upload_to_fs_path(
                local_path=trial.local_path,
                fs=trial.storage.storage_filesystem,
                fs_path=trial.storage.trial_fs_path,
            )
        self._put_snapshot()

    def _put_snapshot(self) -> None:
        request = self.scope.request
        state = {
            "trial_data": list(self._get_trial_checkpoints().values()),
            "runner_data": self.__getstate__(),
            "stats": {"start_time": self._start_time},
        }
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self.scope.store.put(key, json.dumps(state, cls=TuneFunctionEncoder).encode())

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_failure", None)
        return state


class _ScopedCheckpointManager(_ExperimentCheckpointManager):  # type: ignore[misc]
    """Ray's timing of snapshots, with another place to put them."""

    _should_force_sync_up: bool
    _last_save_time: float

    def __init__(self, *, save: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._save = save

    def sync_up_experiment_state(self, *_args: Any, force: bool = False, **_kwargs: Any) -> None:
        """Save if it is time to (ray.tune.execution.experiment_state, 2.60)."""
        now = time.monotonic()
        force = force or self._should_force_sync_up
        if not force and now - self._last_save_time < self._checkpoint_period:
            return
        self._save()
        self._trial_num_checkpoints_since_last_sync.clear()
        self._should_force_sync_up = False
        self._update_auto_checkpoint_time(time_taken=time.monotonic() - now)
        self._last_save_time = time.monotonic()

    def sync_down_experiment_state(self) -> None:
        """Fetch the saved state of callbacks only; Ray fetches every state file there is."""
        fs, root = self._storage.storage_filesystem, self._storage.experiment_fs_path
        saved = [name for name in _list_at_fs_path(fs, root) if name.startswith(CALLBACK_STATES)]
        if saved:
            target = Path(self._storage.experiment_driver_staging_path, max(saved))
            target.parent.mkdir(parents=True, exist_ok=True)
            _download_from_fs_path(
                fs=fs, fs_path=f"{root}/{max(saved)}", local_path=target.as_posix()
            )


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


_AUTOFILLED = frozenset(
    "training_iteration timestamp checkpoint_dir_name should_checkpoint done trial_id date "
    "time_this_iter_s time_total_s pid hostname node_ip time_since_restore iterations_since_restore "
    "experiment_tag timesteps_total episodes_total time_since_restore".split()
)


def scalar_metrics(result: dict[str, Any], metric: str | None) -> dict[str, Any]:
    """Return what the user reported, scalars only, the experiment's metric first."""
    scalars = {
        str(name): value.item() if hasattr(value, "item") else value
        for name, value in result.items()
        if name not in _AUTOFILLED and _is_scalar(value)
    }
    first = {metric: scalars[metric]} if metric in scalars else {}
    return {**first, **dict(list(scalars.items())[:20])}


def _is_scalar(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return True
    return getattr(value, "shape", None) == () and hasattr(value, "item")


def _start_from(trial: Trial, request: RunnerRequest) -> None:
    """Make the trial start from the checkpoint the plan chose, if that is not the recorded one."""
    recorded = trial.checkpoint
    name = Path(recorded.path).name if recorded else None
    if name == request.checkpoint:
        return
    if request.checkpoint is None:
        trial.run_metadata.checkpoint_manager._latest_checkpoint_result = None
        return
    _set_latest(trial, request.checkpoint)


def _fall_back_if_gone(trial: Trial) -> None:
    """Point a snapshot whose latest checkpoint is gone (num_to_keep) at the newest that is there."""
    recorded = trial.checkpoint
    storage = trial.storage
    present = {
        name
        for name in _list_at_fs_path(storage.storage_filesystem, storage.trial_fs_path)
        if name.startswith(layout.CHECKPOINT_PREFIX)
    }
    if recorded is None or Path(recorded.path).name in present or not present:
        return
    logger.warning("Checkpoint %s is gone; taking %s", recorded.path, max(present))
    _set_latest(trial, max(present))


def _set_latest(trial: Trial, name: str) -> None:
    storage = trial.storage
    path = f"{storage.trial_fs_path}/{name}"
    result = _TrainingResult(
        checkpoint=Checkpoint(path=path, filesystem=storage.storage_filesystem),
        metrics=_reported_with(trial, name),
    )
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = result
    digits = name.removeprefix(layout.CHECKPOINT_PREFIX)
    if digits.isdigit():  # the next one must not overwrite what we start from
        storage.current_checkpoint_index = max(storage.current_checkpoint_index, int(digits))


def _reported_with(trial: Trial, name: str) -> dict[str, Any]:
    """Return the result row that reported a checkpoint; the trainable continues its counters."""
    storage = trial.storage
    found: dict[str, Any] = {}
    path = f"{storage.trial_fs_path}/{layout.RESULT_FILE}"
    try:
        with storage.storage_filesystem.open_input_stream(path) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("checkpoint_dir_name") == name:
            found = row
    return found


def _iteration_of(trial: Trial) -> int:
    """Return the iteration the trial continues after; 0 from scratch."""
    result = trial.latest_checkpoint_result
    value = result.metrics.get("training_iteration", 0) if result else 0
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
