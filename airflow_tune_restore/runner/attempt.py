"""One attempt from its request to its outcome."""

import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError, KeyNotFoundError, RunnerError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.attempts import list_attempts, wait_until_over
from airflow_tune_restore.restore.request import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    Result,
    RunnerOutcome,
    RunnerRequest,
)
from airflow_tune_restore.runner import ray_internals
from airflow_tune_restore.runner.heartbeat import Heartbeat
from airflow_tune_restore.runner.loading import (
    check_trainable_name,
    load_param_space,
    load_trainable,
)
from airflow_tune_restore.storage.arrow import arrow_filesystem
from airflow_tune_restore.storage.base import ObjectStore

EXIT_CODES = {
    Result.FINISHED: EXIT_FINISHED,
    Result.FAILED: EXIT_FAILED,
    Result.REFUSED: EXIT_REFUSED,
    Result.INTERRUPTED: EXIT_INTERRUPTED,
}

logger = logging.getLogger(__name__)


class _ToldToStopError(BaseException):
    """SIGTERM came before Ray could take it; a BaseException, so that nothing swallows it."""


def run_attempt(store: ObjectStore, request: RunnerRequest, parent_pid: int | None) -> Result:
    """Run one attempt and record how it ended.

    Raises:
        FencedError: If a newer attempt runs the trial; nothing was written.
        LeaseLostError: If the restore no longer holds the lease; nothing was written.
    """
    started_at = _now()
    stop = _StopSignals()
    heartbeat = Heartbeat(store, request, parent_pid)
    heartbeat.start()
    result, detail, scope = Result.INTERRUPTED, ("", ""), None
    try:
        _wait_for_earlier(store, request)
        trainable, param_space = load(request)
        scope = _make_scope(store, request)
        _fit(scope, trainable, param_space, stop)
        result, detail = _judge(scope, stop)
    except InvalidInputError as error:
        result, detail = Result.REFUSED, ("InvalidInputError", str(error))
        logger.error("%s", error)  # noqa: TRY400  a user's mistake needs no traceback
    except _ToldToStopError:
        detail = ("Interrupted", "told to stop before the trial ran")
    except Exception as error:
        # neither the trial's nor the user's: the trial stays unfinished, a retry goes on from here
        detail = (type(error).__name__, str(error))
        logger.exception("The runner could not go on")
    finally:
        stop.ignore()
        heartbeat.stop()
        if scope is not None:
            shutil.rmtree(scope.staging, ignore_errors=True)
    _record(store, request, result, detail, scope, started_at)
    return result


def load(request: RunnerRequest) -> tuple[Any, dict[str, Any] | None]:
    """Load what the user gave, and refuse what does not fit the experiment.

    Raises:
        InvalidInputError: Before anything was started.
        RunnerError: If this Ray is not supported.
    """
    ray_internals.check()
    trainable = load_trainable(request.trainable, request.imports)
    check_trainable_name(trainable, request.trainable_name, request.trainable)
    param_space = load_param_space(request.param_space) if request.param_space else None
    return trainable, param_space


def _wait_for_earlier(store: ObjectStore, request: RunnerRequest) -> None:
    for attempt in list_attempts(store, request.restore_id, request.trial_id):
        if attempt < request.attempt:
            wait_until_over(store, request.restore_id, request.trial_id, attempt)


def _make_scope(store: ObjectStore, request: RunnerRequest) -> Any:
    """Choose the row to start from: the newest whole snapshot of an earlier attempt, or the seed."""
    from airflow_tune_restore.runner.controller import Scope

    key = layout.seed_key(request.restore_id, request.trial_id)
    is_seed = True
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
    )


def _is_whole(store: ObjectStore, key: str) -> bool:
    try:
        return len(json.loads(store.get(key))["trial_data"]) == 1
    except (KeyNotFoundError, ValueError, KeyError, TypeError):
        return False


def _fit(
    scope: Any, trainable: Any, param_space: dict[str, Any] | None, stop: "_StopSignals"
) -> None:
    """Run `Tuner.restore(…).fit()` with the controller, the state and the staging directory ours."""
    import ray
    from ray.train._internal.storage import StorageContext
    from ray.tune import tune as tune_module
    from ray.tune.execution import tune_controller
    from ray.tune.impl import tuner_internal

    from airflow_tune_restore.runner.controller import scoped_controller

    staging = (scope.staging / "driver_artifacts").as_posix()
    with ExitStack() as stack:
        _connect(scope.request)
        stack.callback(ray.shutdown)
        stop.install()  # after ray.init, which installs a SIGTERM handler of its own
        for owner, name, value in (
            (tune_module, "TuneController", scoped_controller(scope)),
            (
                tune_controller,
                "_find_newest_experiment_checkpoint",
                lambda path, **_kwargs: f"{path}/{scope.source_key}",
            ),
            # it would read every trial of the experiment, in every runner
            (tuner_internal, "ExperimentAnalysis", _no_analysis),
            # restored trials carry the staging directory of their old driver; two runners on one
            # node would share it and upload each other's files
            (StorageContext, "experiment_driver_staging_path", property(lambda _self: staging)),
        ):
            stack.enter_context(ray_internals.replaced(owner, name, value))
        _restore(scope, trainable, param_space)


def _restore(scope: Any, trainable: Any, param_space: dict[str, Any] | None) -> None:
    from ray import tune

    request = scope.request
    filesystem, path = arrow_filesystem(request.experiment)
    resume_config = _resume_config(scope)
    if _has_tuner_file(scope.store):
        try:
            tuner = tune.Tuner.restore(
                path,
                trainable,
                param_space=param_space,
                storage_filesystem=filesystem,
                _resume_config=resume_config,
            )
        except ValueError as error:  # Ray's own validation of trainable and param_space
            raise InvalidInputError(" ".join(str(error).split())) from error
        tuner._local_tuner.get_run_config().verbose = 0  # its tables tell of one trial only
        tuner.fit()
        return
    logger.warning("tuner.pkl cannot be used: restoring from the state alone, with Ray's defaults.")
    parent, _, name = path.rstrip("/").rpartition("/")
    tune.run(
        trainable,
        name=name,
        config=param_space,
        storage_path=parent,
        storage_filesystem=filesystem,
        resume_config=resume_config,
        raise_on_failed_trial=False,
        verbose=0,
    )


def _has_tuner_file(store: ObjectStore) -> bool:
    """Whether tuner.pkl is there and is a pickle to its end; Ray would fail with EOFError."""
    import pickletools

    try:
        body = store.get(layout.TUNER_FILE)
        for _opcode in pickletools.genops(body):
            pass
    except (KeyNotFoundError, ValueError):
        return False
    return True


def _resume_config(scope: Any) -> Any:
    """Run the one row whatever its status is; but leave one that an earlier attempt finished."""
    from ray.tune.tune_config import ResumeConfig

    kind = ResumeConfig.ResumeType
    if scope.is_seed:
        chosen = kind.RESTART if scope.request.action == "restart" else kind.RESUME
        return ResumeConfig(finished=chosen, unfinished=chosen, errored=chosen)
    return ResumeConfig(finished=kind.SKIP, unfinished=kind.RESUME, errored=kind.RESUME)


def _connect(request: RunnerRequest) -> None:
    import ray

    if request.address is not None:
        ray.init(
            address=request.address,
            runtime_env=request.runtime_env or _own_path(),
            log_to_driver=True,
        )
        return
    amounts = dict(request.resources)
    cpus, gpus = amounts.pop("CPU", 1.0), amounts.pop("GPU", None)
    amounts.pop("memory", None)  # the machine's own memory decides
    ray.init(
        address="local",
        num_cpus=max(1, math.ceil(cpus)),
        num_gpus=math.ceil(gpus) if gpus else None,
        resources=amounts or None,
        runtime_env=request.runtime_env or None,
        include_dashboard=False,
        log_to_driver=True,
    )


def _own_path() -> dict[str, Any]:
    """Let workers on this machine import what we can import."""
    path = os.environ.get("PYTHONPATH", "")
    return {"env_vars": {"PYTHONPATH": path}} if path else {}


def _no_analysis(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("not needed for one trial")  # Tuner.restore takes this for "none there"


def _judge(scope: Any, stop: "_StopSignals") -> tuple[Result, tuple[str, str]]:
    trial = scope.trial
    if trial.status == "TERMINATED":
        return Result.FINISHED, ("", "")
    if trial.status == "ERROR":
        return Result.FAILED, _error_of(trial)
    if not stop.came:
        raise RunnerError(f"Ray ended trial {trial.trial_id} with status {trial.status}")
    return Result.INTERRUPTED, ("Interrupted", "told to stop; a snapshot was saved")


def _error_of(trial: Any) -> tuple[str, str]:
    """Return type and message of the trial's last error, from the text that Ray wrote."""
    text = trial.get_error() or ""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        match = re.match(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)?): (.*)$", line)
        if match:
            return match[1], match[2]
    return "Error", lines[-1] if lines else "unknown"


def _record(
    store: ObjectStore,
    request: RunnerRequest,
    result: Result,
    detail: tuple[str, str],
    scope: Any,
    started_at: str,
) -> None:
    import ray

    from airflow_tune_restore.runner.controller import scalar_metrics

    trial = scope.trial if scope is not None else None
    last = trial.last_result if trial is not None else {}
    outcome = RunnerOutcome(
        restore_id=request.restore_id,
        trial_id=request.trial_id,
        attempt=request.attempt,
        result=result.value,
        status=trial.status if trial is not None else "",
        final_trial_id=trial.trial_id if trial is not None else request.trial_id,
        iteration=int(last.get("training_iteration", 0)),
        metrics=scalar_metrics(last, None),
        error_type=detail[0],
        error=detail[1],
        started_at=started_at,
        ended_at=_now(),
        ray_version=ray.__version__,
    )
    key = layout.outcome_key(request.restore_id, request.trial_id, request.attempt)
    store.put(key, outcome.to_json())


def _now() -> str:
    return datetime.now(UTC).isoformat()


class _StopSignals:
    """SIGTERM ends the run as Ctrl-C does in Tune: one last snapshot, then the end."""

    def __init__(self) -> None:
        self.came = False
        self._ignored = False
        self.install()

    def install(self) -> None:
        """Take SIGTERM, and SIGINT until Tune takes it for itself."""
        signal.signal(signal.SIGTERM, self._handle)

    def ignore(self) -> None:
        """Let nothing come between the end of the run and its outcome."""
        self._ignored = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.came or self._ignored:
            return  # a second one must not spoil the snapshot
        self.came = True
        print("Told to stop: saving a snapshot.", file=sys.stderr, flush=True)  # noqa: T201
        if callable(signal.getsignal(signal.SIGUSR1)):
            # tune.run takes SIGUSR1 for "stop, and save one last time" (ray.tune.tune, 2.60)
            signal.raise_signal(signal.SIGUSR1)
        else:
            raise _ToldToStopError
