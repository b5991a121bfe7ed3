"""The base of both controllers: Ray's TuneController with guards (ray.tune.execution, 2.60).

It differs from Ray's own in three ways. It restores from the given state, not from the newest one of
the experiment. It saves its state under `.tune_restore/`: a second `experiment_state-*.json` in the root
would hide all other trials. It raises an error where Ray logs one and starts an empty experiment.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train._internal.storage import _create_directory, _pyarrow_fs_copy_files
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
from airflow_tune_restore.protocol.request import RunnerProgress, RunnerRequest
from airflow_tune_restore.runner import needs
from airflow_tune_restore.runner.loading import Loaded
from airflow_tune_restore.runner.outcome import Ending, scalar_metrics
from airflow_tune_restore.runner.room import RoomWatch
from airflow_tune_restore.runner.tune import checkpoints
from airflow_tune_restore.runner.tune.private_api import replaced
from airflow_tune_restore.runner.tune.result_files import prepare_results
from airflow_tune_restore.storage.base import ObjectStore

RESUMED_LATER = Trial.PAUSED
"""Ray's status of a trial that can go on later: one that was stopped alone, or with its window."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AttemptContext:
    """The input of a guarded controller, and the results that it leaves.

    Args:
        store: Rooted at the experiment directory.
        source_key: The state to start from: a seed, or the snapshot of an earlier attempt. None if the
            experiment has no state and starts for the first time.
        is_seed: Whether no earlier attempt of this restore saved a snapshot.
        staging: Private directory for files before their upload.
        check_fence: Ends this process if a newer attempt or restore has started.
        check_fence_lately: The same, unless it was checked in the last seconds.
        is_paused: Whether the attempt stops because the window of its restore has ended.
        saved: Status of each trial in the newest snapshot; empty before the first.
        saved_iteration: The iteration of the trial of the outcome in that snapshot; None if unknown.
    """

    store: ObjectStore
    request: RunnerRequest
    source_key: str | None
    is_seed: bool
    staging: Path
    check_fence: Callable[[], None]
    check_fence_lately: Callable[[], None]
    room: RoomWatch
    is_paused: Callable[[], bool] = lambda: False
    saved: dict[str, str] = field(default_factory=dict)
    saved_iteration: int | None = None

    @property
    def trial(self) -> Trial | None:
        """The trial of the outcome, once restored; None for a whole experiment."""
        return None

    @property
    def has_ended(self) -> bool:
        """Whether all trials to run have ended, and were saved so."""
        raise NotImplementedError

    def wait_for_work(self) -> bool:
        """Wait until there is something to run; return whether there is."""
        return True

    def counts_for_size(self, row: str) -> bool:
        """Whether a private Ray must be large enough for this trial (a row of Ray's JSON)."""
        raise NotImplementedError

    def ask(self, loaded: Loaded) -> needs.Asked:
        """Return the present resource requests of the trials that set the size of a private Ray."""
        return needs.ask(loaded.trainable, needs.read_rows(self), loaded.param_space)

    def resume_config(self) -> ResumeConfig:
        """Return the resume config for `Tuner.restore`."""
        return ResumeConfig()

    def close(self) -> None:
        """Stop the threads that run beside the controller."""

    def record_rest(self, ending: Ending) -> None:
        """Record the ends of trials that have attempts of their own and end with this one."""

    def judge(self, *, was_stopped: bool) -> Ending:
        """Return how the attempt ended, as of its newest snapshot, which is what the commit takes.

        Raises:
            RunnerError: If the newest snapshot does not show an end.
        """
        raise NotImplementedError


class GuardedController(TuneController):  # type: ignore[misc]  # Ray is untyped
    """The part that is the same for one trial and for a whole experiment."""

    context: AttemptContext

    def __init__(self, **kwargs: Any) -> None:
        # last, because Ray finds the saved states of callbacks by their positions
        kwargs["callbacks"] = [
            *(kwargs.get("callbacks") or []),
            _ProgressLines(self.report, kwargs.get("metric")),
        ]
        self._failure: Exception | None = None
        super().__init__(**kwargs)
        has_failed = self._failure is not None or not self._resumed
        if has_failed and self.context.source_key is not None:
            request = self.context.request
            is_of_many = request.trial_id in layout.RUNS_OF_MANY
            what = "The experiment" if is_of_many else f"Trial {request.trial_id}"
            raise RunnerError(
                f"{what} could not be restored: {str(self._failure).rstrip('.')}. Nothing was run."
            ) from self._failure

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Restore; Ray only logs an exception of this method, so it is kept for `__init__` to raise."""
        try:
            super().resume(*args, **kwargs)
            # a trial that failed in an earlier run must not end this one at once (fail_fast, 2.60)
            self._has_errored = False
            self.context.check_fence()
            self.prepare_restored_trials()
            self._put_snapshot()
        except Exception as error:
            self._failure = error
            # Ray would log it with a traceback, which does not help for an error of this package
            if self.context.source_key is None or not isinstance(error, TuneRestoreError):
                raise

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        """Restore trials; values that Ray reads, but cannot use later, become Ray's defaults."""
        trials: list[Trial] = super()._restore_trials(experiment_state)
        for trial in trials:
            if trial.is_finished():  # Ray keeps the decision to stop a trial in a save (2.60)
                self._cached_trial_decisions.pop(trial.trial_id, None)
            if not isinstance(trial.config, dict):
                raise RunnerError(f"the config of trial {trial.trial_id} is not a mapping")
            metadata = trial.run_metadata
            if not isinstance(metadata.last_result, dict):
                metadata.last_result = {}
            if not is_amount(metadata.last_result_time):
                metadata.last_result_time = -math.inf
        return trials

    def step(self) -> None:
        """Give up trials that no node can hold, then go on as Ray does."""
        for trial_id, why in self.context.room.look(self._waiting).items():
            self.give_up(trial_id, why)
        if not self.is_finished():  # Ray raises if the last one was stopped here
            super().step()

    def _waiting(self) -> dict[str, PlacementGroupFactory]:
        pending = (trial for trial in self._trials if trial.status == Trial.PENDING)
        return {trial.trial_id: trial.placement_group_factory for trial in pending}

    def give_up(self, trial_id: str, why: str) -> None:
        """Stop a waiting trial that no node can hold; it stays unfinished."""
        raise NotImplementedError

    def prepare_restored_trials(self) -> None:
        """Prepare the restored trials, before the first snapshot and before anything runs."""
        raise NotImplementedError

    def stop_alone(self, trial: Trial) -> None:
        """Stop one trial; the others go on."""
        self.request_stop_trial(trial)
        self._process_stop_requests()
        # in a save, Ray keeps the decision in the snapshot (2.60): the next attempt would end early
        self._cached_trial_decisions.pop(trial.trial_id, None)

    def requeue(self, trial: Trial, request: RunnerRequest, choice: str) -> None:
        """Queue a restored trial as Ray does with this choice; a restarted one gets its planned id."""
        config = ResumeConfig(finished=choice, unfinished=choice, errored=choice)
        # Trial.reset() makes a random id; the planned one is the same in every attempt
        new_id = classmethod(lambda _cls: request.new_trial_id)
        with replaced(Trial, "generate_id", new_id):
            TuneController._requeue_restored_trials(self, [trial], config)

    def prepare_files(self, trial: Trial, request: RunnerRequest) -> None:
        """Drop the result rows that a trial will report again."""
        start = checkpoints.start_of(trial)
        prepare_results(self.context.store, request, trial.relative_logdir, start)

    def changed_trials(self) -> Iterable[Trial]:
        """Return the trials whose files may differ from what was uploaded last."""
        raise NotImplementedError

    def fetch_states(self, target: Path) -> None:
        """Fetch the newest states of callbacks: of the source attempt, or else of the experiment."""
        store = self.context.store
        for directory in ((self.context.source_key or "").rpartition("/")[0], ""):
            names = (entry.name for entry in store.list_dir(directory))
            saved = [name for name in names if name.startswith(layout.CALLBACKS_PREFIX)]
            if saved:
                key = f"{directory}/{max(saved)}".lstrip("/")
                (target / max(saved)).write_bytes(store.get(key, max_bytes=layout.MAX_RESULT_BYTES))
                return

    def save_states(self) -> dict[str, Any]:
        """Save states that belong to the next snapshot; returned values go into its `stats`."""
        return {}

    def after_snapshot(self) -> None:
        """Run after each snapshot."""

    def report(self, trial: Trial, progress: RunnerProgress) -> None:
        """Print a result for the process that started the runner."""
        del trial
        print(progress.to_line(), flush=True)  # noqa: T201  the launcher reads stdout

    def _requeue_trial(self, trial: Trial) -> None:
        """Save before Ray itself retries a failed trial.

        Its loggers then fetch result.json from storage again (LoggerCallback._restore_from_remote,
        2.60) and would lose rows that are not uploaded yet.
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
        """Upload the files of the trials, then the state that belongs to them."""
        self.context.check_fence()
        for trial in self.changed_trials():
            self._upload(trial)
        self._save_callbacks()
        self._put_snapshot()

    def _upload(self, trial: Trial) -> None:
        """Upload the files of a trial, as Ray does (ray.train._internal.storage, 2.60).

        One by one: a process that thaws in an upload must not go on with files of long ago.
        """
        fs, target = trial.storage.storage_filesystem, trial.storage.trial_fs_path
        source = Path(trial.local_path)
        files = {
            path: f"{target}/{path.relative_to(source).as_posix()}"
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }
        for directory in dict.fromkeys(key.rpartition("/")[0] for key in files.values()):
            _create_directory(fs, directory)
        for path, key in files.items():
            self.context.check_fence_lately()
            _pyarrow_fs_copy_files(str(path), key, destination_filesystem=fs)

    def _save_callbacks(self) -> None:
        self.put_callbacks(self.context.request, self.callbacks_body())

    def callbacks_body(self) -> bytes | None:
        """Return the present states of callbacks; None if none has a state."""
        self._callbacks.save_to_dir(self.context.staging.as_posix(), session_str=layout.KEPT)
        saved = self.context.staging / layout.callbacks_name(layout.KEPT)
        return saved.read_bytes() if saved.is_file() else None

    def put_callbacks(self, request: RunnerRequest, body: bytes | None) -> None:
        """Save states of callbacks with an attempt."""
        if body is not None:
            directory = layout.attempt_dir(request.restore_id, request.trial_id, request.attempt)
            name = layout.callbacks_name(layout.KEPT)
            self.context.store.put(f"{directory}/{name}", body)

    def _put_snapshot(self) -> None:
        request = self.context.request
        stats = self.save_states()
        with out_of_band_serialize_dataset():  # as Ray does, for Datasets in a config
            body = self.encode(self.rows(), self.__getstate__(), stats)
        statuses = {trial.trial_id: trial.status for trial in self._trials}
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self.context.store.put(key, body)
        self.context.saved = statuses
        self.after_snapshot()

    def encode(
        self,
        rows: list[tuple[str, str]],
        runner_data: dict[str, Any],
        stats: dict[str, Any] | None = None,
    ) -> bytes:
        """Return a snapshot of these rows, as Ray writes a state."""
        if self.context.is_paused():
            rows = [resumed_later(row) if _is_running(row) else row for row in rows]
        stats = {"start_time": self._start_time, **(stats or {})}
        state = {"trial_data": rows, "runner_data": runner_data, "stats": stats}
        return json.dumps(state, cls=TuneFunctionEncoder).encode()

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the snapshot, each with the metadata of its trial."""
        return list(self._get_trial_checkpoints().values())

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_failure", None)
        return state


def resumed_later(row: tuple[str, str]) -> tuple[str, str]:
    """Return the row of a trial that goes on later."""
    document = json.loads(row[0])
    document["status"] = RESUMED_LATER
    return json.dumps(document, indent=2), row[1]  # as Trial.get_json_state writes it


def _is_running(row: tuple[str, str]) -> bool:
    return bool(json.loads(row[0])["status"] == Trial.RUNNING)


class _GuardedCheckpointManager(_ExperimentCheckpointManager):  # type: ignore[misc]
    """Keeps Ray's timing of snapshots, and saves them elsewhere."""

    _should_force_sync_up: bool
    _last_save_time: float

    def __init__(
        self, *, save: Callable[[], None], fetch: Callable[[Path], None], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._save, self._fetch = save, fetch

    def sync_up_experiment_state(
        self, *_args: Any, force: bool = False, wait: bool = False, **_kwargs: Any
    ) -> None:
        """Save if it is time (ray.tune.execution.experiment_state, 2.60).

        As in Ray, a failed save does not end the training. Only the last snapshot of a run, for which
        Ray waits, must succeed.
        """
        now = time.monotonic()
        is_due = now - self._last_save_time >= self._checkpoint_period
        if not (force or self._should_force_sync_up or is_due):
            return
        try:
            self._save()
        except (TuneRestoreError, OSError) as error:
            if wait:
                raise
            logger.warning("The snapshot could not be saved; the next one follows: %s", error)
        else:
            self._trial_num_checkpoints_since_last_sync.clear()
            self._should_force_sync_up = False
        self._update_auto_checkpoint_time(time_taken=time.monotonic() - now)
        self._last_save_time = time.monotonic()

    def sync_down_experiment_state(self) -> None:
        """Fetch only the needed states; Ray fetches every state file."""
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
        """Report the result."""
        del trials, info
        iteration = whole_iteration(result.get("training_iteration"))
        metrics = scalar_metrics(result, self._metric)
        self._report(
            trial, RunnerProgress(trial_id=trial.trial_id, iteration=iteration, metrics=metrics)
        )

    def get_state(self) -> None:
        """Return None: this callback has no state."""
