"""Ray's TuneController under our guards, for one trial or for a whole experiment.

Differences from Ray's own (ray.tune.execution.tune_controller, 2.60) that both share:
it restores from the state it is given instead of the experiment's newest, saves its state under
`.tune_restore/` (a second `experiment_state-*.json` in the root would hide every other trial), and fails
closed where Ray would log an error and start an empty experiment.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train._internal.storage import _upload_to_fs_path
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.impl.out_of_band_serialize_dataset import out_of_band_serialize_dataset
from ray.tune.tune_config import ResumeConfig
from ray.tune.utils.serialization import TuneFunctionEncoder

from airflow_tune_restore.exceptions import RunnerError, TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.numbers import is_amount, whole_iteration
from airflow_tune_restore.protocol.request import Result, RunnerProgress, RunnerRequest
from airflow_tune_restore.runner.outcome import scalar_metrics
from airflow_tune_restore.runner.room import RoomWatch
from airflow_tune_restore.storage.base import ObjectStore

CALLBACK_STATES = "callback-states-"

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Scope:
    """What a guarded controller works on, and what it leaves behind.

    Args:
        store: Rooted at the experiment directory.
        request: The attempt.
        source_key: State it starts from: a seed, or the snapshot of an earlier attempt. None if there
            is no state at all, and the experiment is started for the first time.
        is_seed: Whether nothing of this restore was run before.
        staging: Private directory for files on their way to storage.
        check_fence: Ends this process if a newer attempt or restore is at work.
        room: Looks after trials that no node can hold.
        saved: Status of each trial in the newest snapshot; empty before the first.

    """

    store: ObjectStore
    request: RunnerRequest
    source_key: str | None
    is_seed: bool
    staging: Path
    check_fence: Callable[[], None]
    room: RoomWatch
    saved: dict[str, str] = field(default_factory=dict)

    @property
    def trial(self) -> Trial | None:
        """The trial the outcome is about, once restored; None for a whole experiment."""
        return None

    @property
    def has_ended(self) -> bool:
        """Whether everything there was to run has ended, and was saved so."""
        raise NotImplementedError

    def sizes(self, row: str) -> bool:
        """Whether what the run needs is made to fit this trial, too, given as Ray's JSON."""
        raise NotImplementedError

    def resume_config(self) -> ResumeConfig:
        """Return what `Tuner.restore` is told about trials of each status."""
        return ResumeConfig()

    def close(self) -> None:
        """End what runs beside the controller."""

    def controller(self) -> type["GuardedController"]:
        """Return the controller class that works on this scope."""
        raise NotImplementedError

    def judge(self, *, told_to_stop: bool) -> tuple[Result, tuple[str, str]]:
        """Say how it ended, by what was saved: the commit takes the snapshot, not our word.

        Raises:
            RunnerError: If the last snapshot does not tell.
        """
        raise NotImplementedError


def bound_controller(scope: Scope) -> type[TuneController]:
    """Make the controller class that `tune.run` uses in the place of Ray's."""
    return type("BoundTuneController", (scope.controller(),), {"scope": scope})


class GuardedController(TuneController):  # type: ignore[misc]  # Ray is untyped
    """What is the same for one trial and for all."""

    scope: Scope

    def __init__(self, **kwargs: Any) -> None:
        # last, because Ray finds the saved state of callbacks by their position
        kwargs["callbacks"] = [
            *(kwargs.get("callbacks") or []),
            _ProgressLines(self.report, kwargs.get("metric")),
        ]
        self._failure: Exception | None = None
        super().__init__(**kwargs)
        has_failed = self._failure is not None or not self._resumed
        if has_failed and self.scope.source_key is not None:
            request = self.scope.request
            what = (
                "It" if request.trial_id == layout.WHOLE_EXPERIMENT else f"Trial {request.trial_id}"
            )
            raise RunnerError(
                f"{what} could not be restored: {str(self._failure).rstrip('.')}. Nothing was run."
            ) from self._failure

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Restore; Ray swallows what goes wrong here, so it is kept for `__init__` to raise."""
        try:
            super().resume(*args, **kwargs)
            # a failed trial of long ago must not end the run at once (fail_fast, 2.60)
            self._has_errored = False
            self.scope.check_fence()
            self.adopt()
            self._put_snapshot()
        except Exception as error:
            self._failure = error
            # Ray logs what goes wrong with its traceback, which says nothing of a refusal of ours
            if self.scope.source_key is None or not isinstance(error, TuneRestoreError):
                raise

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        """Restore them, with Ray's defaults in the place of what it reads and then stumbles over."""
        trials: list[Trial] = super()._restore_trials(experiment_state)
        for trial in trials:
            if not isinstance(trial.config, dict):
                raise RunnerError(f"the config of trial {trial.trial_id} is not a mapping")
            metadata = trial.run_metadata
            if not isinstance(metadata.last_result, dict):
                metadata.last_result = {}
            if not is_amount(metadata.last_result_time):
                metadata.last_result_time = -math.inf
        return trials

    def step(self) -> None:
        """Look whether those that wait have room, then go on as Ray does."""
        for trial_id, why in self.scope.room.look(self._waiting).items():
            self.give_up(trial_id, why)
        if not self.is_finished():  # Ray raises if the last one was stopped here
            super().step()

    def _waiting(self) -> dict[str, PlacementGroupFactory]:
        pending = (trial for trial in self._trials if trial.status == Trial.PENDING)
        return {trial.trial_id: trial.placement_group_factory for trial in pending}

    def give_up(self, trial_id: str, why: str) -> None:
        """End the waiting of a trial that no node can hold; it stays unfinished."""
        raise NotImplementedError

    def adopt(self) -> None:
        """Prepare the restored trials, before the first snapshot and before anything runs."""
        raise NotImplementedError

    def changed_trials(self) -> Iterable[Trial]:
        """Return the trials whose files may differ from what was uploaded last."""
        raise NotImplementedError

    def fetch_states(self, target: Path) -> None:
        """Fetch the saved states of callbacks, and of what else there is, into a directory."""
        self._fetch_callbacks(target)

    def save_states(self) -> dict[str, Any]:
        """Save what belongs to the next snapshot; returned values go into its `stats`."""
        return {}

    def after_snapshot(self) -> None:
        """Do what must follow a snapshot."""

    def report(self, trial: Trial, progress: RunnerProgress) -> None:
        """Tell whoever started the runner of a result."""
        del trial
        print(progress.to_line(), flush=True)  # noqa: T201  stdout is the channel

    def _requeue_trial(self, trial: Trial) -> None:
        """Save before Ray retries a failed trial by itself.

        Its loggers then fetch result.json from storage again (LoggerCallback._restore_from_remote,
        2.60) and would lose the rows that were not uploaded yet.
        """
        super()._requeue_trial(trial)
        self.checkpoint(force=True)

    def _create_checkpoint_manager(self) -> "_GuardedCheckpointManager":
        return _GuardedCheckpointManager(
            storage=self._storage,
            checkpoint_period=self._checkpoint_period,
            sync_every_n_trial_checkpoints=self._trial_checkpoint_config.num_to_keep,
            save=self._save,
            fetch=self.fetch_states,
        )

    def _save(self) -> None:
        """Upload the trials' own files, then the state that goes with them."""
        self.scope.check_fence()
        for trial in self.changed_trials():
            if trial.local_path and any(Path(trial.local_path).glob("*")):
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
        for directory in ((self.scope.source_key or "").rpartition("/")[0], ""):
            saved = [
                e.name for e in store.list_dir(directory) if e.name.startswith(CALLBACK_STATES)
            ]
            if saved:
                key = f"{directory}/{max(saved)}".lstrip("/")
                (target / max(saved)).write_bytes(store.get(key, max_bytes=layout.MAX_RESULT_BYTES))
                return

    def _save_callbacks(self) -> None:
        """Keep the state of callbacks beside the snapshot; a later attempt goes on from it."""
        self._callbacks.save_to_dir(self.scope.staging.as_posix(), session_str=layout.KEPT)
        saved = self.scope.staging / f"{CALLBACK_STATES}{layout.KEPT}.pkl"
        if saved.is_file():
            request = self.scope.request
            directory = layout.attempt_dir(request.restore_id, request.trial_id, request.attempt)
            self.scope.store.put(f"{directory}/{saved.name}", saved.read_bytes())

    def _put_snapshot(self) -> None:
        request = self.scope.request
        stats = {"start_time": self._start_time, **self.save_states()}
        with out_of_band_serialize_dataset():  # as Ray does: for Datasets in a config
            state = {
                "trial_data": self.rows(),
                "runner_data": self.__getstate__(),
                "stats": stats,
            }
            body = json.dumps(state, cls=TuneFunctionEncoder).encode()
        statuses = {trial.trial_id: trial.status for trial in self._trials}
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self.scope.store.put(key, body)
        self.scope.saved = statuses
        self.after_snapshot()

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the snapshot."""
        return list(self._get_trial_checkpoints().values())

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_failure", None)
        return state


class _GuardedCheckpointManager(_ExperimentCheckpointManager):  # type: ignore[misc]
    """Ray's timing of snapshots, with another place to put them."""

    _should_force_sync_up: bool
    _last_save_time: float

    def __init__(
        self, *, save: Callable[[], None], fetch: Callable[[Path], None], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._save = save
        self._fetch = fetch

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
        """Fetch only the states that are needed; Ray fetches every state file there is."""
        target = Path(self._storage.experiment_driver_staging_path)
        target.mkdir(parents=True, exist_ok=True)
        self._fetch(target)


class _ProgressLines(Callback):  # type: ignore[misc]
    """Reports every result."""

    def __init__(self, report: Callable[[Trial, RunnerProgress], None], metric: str | None) -> None:
        self._report = report
        self._metric = metric

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Report it."""
        del iteration, trials, info
        self._report(
            trial,
            RunnerProgress(
                trial_id=trial.trial_id,
                iteration=whole_iteration(result.get("training_iteration")),
                metrics=scalar_metrics(result, self._metric),
            ),
        )

    def get_state(self) -> None:
        """Nothing to save."""
