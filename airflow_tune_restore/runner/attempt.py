"""One attempt from its request to its outcome."""

import json
import logging
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import InvalidInputError, KeyNotFoundError, RunnerError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.attempts import list_attempts, wait_until_over
from airflow_tune_restore.restore.request import Result, RunnerRequest
from airflow_tune_restore.runner import ray_internals
from airflow_tune_restore.runner.heartbeat import Heartbeat
from airflow_tune_restore.runner.loading import load
from airflow_tune_restore.runner.outcome import build_outcome, error_of, now
from airflow_tune_restore.runner.ray_session import connect
from airflow_tune_restore.runner.signals import StopSignals, ToldToStopError
from airflow_tune_restore.storage.arrow import arrow_filesystem
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.runner.controller import Scope

logger = logging.getLogger(__name__)


class Attempt:
    """Runs one attempt and records how it ended."""

    def __init__(
        self,
        store: ObjectStore,
        request: RunnerRequest,
        stop: StopSignals,
        parent_pid: int | None = None,
    ) -> None:
        self._store = store
        self._request = request
        self._stop = stop
        self._heartbeat = Heartbeat(store, request, parent_pid)
        self._scope: Scope | None = None
        self._started_at = now()

    def run(self) -> Result:
        """Run it.

        Raises:
            FencedError: If a newer attempt runs the trial; nothing was written.
            LeaseLostError: If the restore no longer holds the lease; nothing was written.
        """
        self._heartbeat.start()
        try:
            result, error = self._run()
            self._stop.ignore()
        finally:
            self._heartbeat.stop()
            if self._scope is not None:
                shutil.rmtree(self._scope.staging, ignore_errors=True)
        self._record(result, error)
        # last: Ray gives SIGTERM back its default action, and a second one may come any time. Tune has
        # waited for the trial's actor to end (TuneController.cleanup, 2.60)
        _shut_down()
        return result

    def _run(self) -> tuple[Result, tuple[str, str]]:
        """Return the result, and type and message of an error."""
        try:
            self._wait_for_earlier()
            loaded = load(self._store, self._request)
            self._scope = _make_scope(self._store, self._request, self._heartbeat)
            self._fit(*loaded)
            return self._judge(self._scope)
        except InvalidInputError as error:
            logger.error("%s", error)  # noqa: TRY400  a user's mistake needs no traceback
            return Result.REFUSED, ("InvalidInputError", str(error))
        except ToldToStopError:
            return Result.INTERRUPTED, ("Interrupted", "told to stop before the trial ran")
        except Exception as error:
            if self._has_ended():
                logger.warning("Ray failed after the trial had ended", exc_info=True)
                return self._judge(self._scope)
            # neither the trial's fault nor the user's: it stays unfinished, a retry goes on from here
            logger.exception("The runner could not go on")
            return Result.INTERRUPTED, (type(error).__name__, str(error))

    def _wait_for_earlier(self) -> None:
        request = self._request
        for attempt in list_attempts(self._store, request.restore_id, request.trial_id):
            if attempt < request.attempt:
                wait_until_over(self._store, request.restore_id, request.trial_id, attempt)

    def _fit(self, trainable: Any, param_space: dict[str, Any] | None, has_tuner: bool) -> None:  # noqa: FBT001
        """Run `Tuner.restore(…).fit()` with the controller, the state and the staging directory ours."""
        scope = self._scope
        with ExitStack() as stack:
            stack.push(self._end_ray_early)
            connect(self._request)
            self._stop.install()
            for owner, name, value in _replacements(scope):
                stack.enter_context(ray_internals.replaced(owner, name, value))
            if has_tuner:
                _restore_tuner(scope, trainable, param_space)
            else:
                logger.warning(
                    "tuner.pkl cannot be used: restoring from the state, Ray's defaults."
                )
                _restore_state(scope, trainable, param_space)

    def _end_ray_early(self, error: type[BaseException] | None, *_details: object) -> None:
        """Leave no actor behind when the run broke off: what is recorded then must be true at once."""
        if error is not None:
            _shut_down()
            self._stop.install()

    def _has_ended(self) -> bool:
        trial = self._scope.trial if self._scope is not None else None
        return (
            self._scope is not None
            and trial is not None
            and self._scope.saved_status == trial.status
            and trial.is_finished()
        )

    def _judge(self, scope: "Scope | None") -> tuple[Result, tuple[str, str]]:
        """Say how it ended, by what was saved: the commit takes the snapshot, not our word."""
        trial = scope.trial if scope is not None else None
        if scope is None or trial is None or scope.saved_status != trial.status:
            raise RunnerError("The last snapshot of the trial could not be saved; see above.")
        if trial.status == "TERMINATED":
            return Result.FINISHED, ("", "")
        if trial.status == "ERROR":
            return Result.FAILED, error_of(trial)
        if self._stop.came:
            return Result.INTERRUPTED, ("Interrupted", "told to stop; a snapshot was saved")
        raise RunnerError(f"Ray ended the run with trial {trial.trial_id} {trial.status}.")

    def _record(self, result: Result, error: tuple[str, str]) -> None:
        request = self._request
        outcome = build_outcome(
            request,
            result,
            error,
            trial=self._scope.trial if self._scope is not None else None,
            started_at=self._started_at,
            ray_version=ray_internals.version(),
        )
        key = layout.outcome_key(request.restore_id, request.trial_id, request.attempt)
        self._store.put(key, outcome.to_json())


def _shut_down() -> None:
    """End a private Ray, or leave a cluster."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def _make_scope(store: ObjectStore, request: RunnerRequest, heartbeat: Heartbeat) -> "Scope":
    """Choose the row to start from: the newest whole snapshot of an earlier attempt, or the seed."""
    from airflow_tune_restore.runner.controller import Scope

    key, is_seed = layout.seed_key(request.restore_id, request.trial_id), True
    for attempt in reversed(list_attempts(store, request.restore_id, request.trial_id)):
        snapshot = layout.snapshot_key(request.restore_id, request.trial_id, attempt)
        if attempt < request.attempt and _is_whole(store, snapshot):
            key, is_seed = snapshot, False
            break
    return Scope(
        store=store,
        request=request,
        source_key=key,
        is_seed=is_seed,
        staging=Path(tempfile.mkdtemp(prefix="tune-restore-")),
        check_fence=heartbeat.check_or_end,
    )


def _is_whole(store: ObjectStore, key: str) -> bool:
    try:
        return (
            len(json.loads(store.get(key, max_bytes=layout.MAX_SNAPSHOT_BYTES))["trial_data"]) == 1
        )
    except (KeyNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _replacements(scope: Any) -> list[tuple[Any, str, Any]]:
    """Return which of Ray's names are replaced while it runs, and by what."""
    from ray.train._internal.storage import StorageContext
    from ray.tune import tune as tune_module
    from ray.tune.execution import tune_controller
    from ray.tune.impl import tuner_internal

    from airflow_tune_restore.runner.controller import scoped_controller

    staging = (scope.staging / "driver_artifacts").as_posix()
    return [
        *_without_credentials(scope.request),
        (tune_module, "TuneController", scoped_controller(scope)),
        (
            tune_controller,
            "_find_newest_experiment_checkpoint",
            lambda path, **_kwargs: f"{path}/{scope.source_key}",
        ),
        # before the run it would read every trial of the experiment, in every runner; after it, the
        # rows of this one for a ResultGrid that nobody looks at
        (tuner_internal, "ExperimentAnalysis", _no_analysis),
        (tune_module, "ExperimentAnalysis", _EmptyAnalysis),
        # restored trials carry the staging directory of their old driver; two runners on one node
        # would share it and upload each other's files. Their `_timestamp` must stay as it is: a later
        # Tuner.restore stages all trials where the first row says
        (StorageContext, "experiment_driver_staging_path", property(lambda _self: staging)),
    ]


def _without_credentials(request: RunnerRequest) -> list[tuple[Any, str, Any]]:
    """Keep Ray Tune from handing AWS keys to the trial in its runtime_env.

    Ray writes those into its logs and its workers' command lines (ray.tune.execution.class_cache, seen
    in 2.60). A private Ray inherits our environment; the nodes of a cluster may depend on it.
    """
    from ray.tune.execution import class_cache

    if request.address is not None:
        return []
    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    return [(class_cache, "ENV_VARS_TO_PROPAGATE", names)]


def _restore_tuner(scope: Any, trainable: Any, param_space: dict[str, Any] | None) -> None:
    from ray import tune

    filesystem, path = arrow_filesystem(scope.request.experiment)
    try:
        tuner = tune.Tuner.restore(
            path,
            trainable,
            param_space=param_space,
            storage_filesystem=filesystem,
            _resume_config=_resume_config(scope),
        )
    except (TypeError, ValueError) as error:  # what Ray finds wrong with trainable or param_space
        raise InvalidInputError(" ".join(str(error).split())) from error
    tuner._local_tuner.get_run_config().verbose = 0  # its tables tell of one trial only
    tuner.fit()


def _restore_state(scope: Any, trainable: Any, param_space: dict[str, Any] | None) -> None:
    """Restore without tuner.pkl, as `Tuner.restore` would with a default RunConfig."""
    from ray import tune

    filesystem, path = arrow_filesystem(scope.request.experiment)
    parent, _, name = path.rstrip("/").rpartition("/")
    is_trainer = not isinstance(trainable, type) and hasattr(trainable, "as_trainable")
    tune.run(
        trainable.as_trainable() if is_trainer else trainable,
        name=name,
        config=param_space,
        storage_path=parent,
        storage_filesystem=filesystem,
        resume_config=_resume_config(scope),
        raise_on_failed_trial=False,
        verbose=0,
    )


def _resume_config(scope: Any) -> Any:
    """Run the one row whatever its status is; but leave one that an earlier attempt finished."""
    from ray.tune.tune_config import ResumeConfig

    kind = ResumeConfig.ResumeType
    if scope.is_seed:
        chosen = kind.RESTART if scope.starts_over else kind.RESUME
        return ResumeConfig(finished=chosen, unfinished=chosen, errored=chosen)
    return ResumeConfig(finished=kind.SKIP, unfinished=kind.RESUME, errored=kind.RESUME)


def _no_analysis(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("not needed for one trial")  # Tuner.restore takes this for "none there"


class _EmptyAnalysis:
    """Stands for an ExperimentAnalysis without trials."""

    trials: tuple[Any, ...] = ()

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Read nothing."""
