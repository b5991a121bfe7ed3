"""How an attempt ended, as the record that outlives it."""

import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import airflow_tune_restore.protocol.request as contract
from airflow_tune_restore.exceptions import NoRoomError, TuneRestoreError
from airflow_tune_restore.protocol.failures import Cause, Failure, classify
from airflow_tune_restore.protocol.numbers import whole_iteration
from airflow_tune_restore.protocol.record_fields import ERROR_LENGTH
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest

EXIT_CODES = {
    Result.FINISHED: contract.EXIT_FINISHED,
    Result.FAILED: contract.EXIT_FAILED,
    Result.REFUSED: contract.EXIT_REFUSED,
    Result.FENCED: contract.EXIT_FENCED,
    Result.INTERRUPTED: contract.EXIT_INTERRUPTED,
}

logger = logging.getLogger(__name__)

METRIC_LIMIT = 20
INTERRUPTED = "Interrupted"
"""Stands in for the type of an exception where an attempt was told to stop."""

_OURS, _SHIELD = Path(__file__).parents[1], Path(__file__).with_name("searcher.py")

_AUTOFILLED = frozenset(
    "training_iteration timestamp checkpoint_dir_name should_checkpoint done trial_id date "
    "time_this_iter_s time_total_s pid hostname node_ip time_since_restore iterations_since_restore "
    "experiment_tag timesteps_total episodes_total".split()
)


def build_outcome(
    request: RunnerRequest,
    result: Result,
    error: tuple[str, str],
    *,
    trial: Any,
    started_at: str,
    ray_version: str,
    resources: dict[str, float] | None = None,
    text: str = "",
) -> RunnerOutcome:
    """Build the record; `trial` is Ray's, None if it never came to one.

    `resources` are what it needs, if they are the reason that it was not run. `text` is all that is told
    of the error that ended the run, of a TuneError with the traceback in it.
    """
    # `trial.last_result` would ask a Ray that may be gone for what a trial without results has: for ever
    last = trial.run_metadata.last_result if trial is not None else {}
    failure = _failure(result, error, trial, text)
    return RunnerOutcome(
        restore_id=request.restore_id,
        trial_id=request.trial_id,
        attempt=request.attempt,
        result=result.value,
        status=trial.status if trial is not None else "",
        final_trial_id=trial.trial_id if trial is not None else request.trial_id,
        iteration=whole_iteration(last.get("training_iteration")),
        metrics=scalar_metrics(last, None),
        error_type=error[0],
        error=error[1][:ERROR_LENGTH],
        cause=failure.cause.value if failure is not None else "",
        place=failure.place if failure is not None else "",
        resources=resources or {},
        started_at=started_at,
        ended_at=now(),
        ray_version=ray_version,
    )


def error_of_run(error: BaseException) -> tuple[str, str]:
    """Return type and message of what ended a run.

    Ray raises a TuneError that has the traceback for its text, in place of an exception in a callback,
    searcher or scheduler (ray.tune.execution.tune_controller.TuneController._on_result, 2.60), and does
    so again at every level. The message names the function that Ray Tune had called, if it raised.
    """
    # by its name: Ray may be what cannot be imported
    while type(error).__name__ == "TuneError" and error.__context__ is not None:
        error = error.__context__
    return type(error).__name__, f"{error}{_called_by_tune(error)}"


def _called_by_tune(error: BaseException) -> str:
    """Return where an error comes from that a callback, stopper, searcher or scheduler has raised."""
    ray = sys.modules.get("ray")
    if ray is None or isinstance(error, TuneRestoreError):
        return ""
    tune = Path(ray.__path__[0], "tune")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) != _SHIELD  # it stands between Ray and the user's searcher
    ]
    of_tune = [n for n, frame in enumerate(frames) if Path(frame.filename).is_relative_to(tune)]
    called = frames[of_tune[-1] + 1 :] if of_tune else []
    if not called or Path(called[0].filename).is_relative_to(_OURS):
        return ""
    frame = called[0]
    return (
        " (--ignore-tuner restores without the callbacks, stopper and searcher of tuner.pkl; raised in "
        f"{frame.name}, {frame.filename}:{frame.lineno})"
    )


def error_of(trial: Any) -> tuple[str, str]:
    """Return type and message of the error that ended a trial.

    Ray pickles the exception beside its text (ray.tune.experiment.trial.Trial.handle_error, 2.60); a
    failed task wraps what the trainable raised.
    """
    error = trial.get_pickled_error()
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, BaseException):
        lines = str(cause).strip().splitlines()
        return type(cause).__name__, lines[0] if lines else ""
    lines = (trial.get_error() or "").strip().splitlines()
    return "Error", lines[-1] if lines else "unknown"


def _failure(result: Result, error: tuple[str, str], trial: Any, text: str) -> Failure | None:
    """Tell why it failed: the trial by Ray's text of it, the runner itself by its exception."""
    if result is Result.FAILED:
        return classify(_text_of_error(trial) or error[1], type_name=error[0])
    if error[0] == NoRoomError.__name__:
        return Failure(cause=Cause.NO_ROOM)
    if result is Result.INTERRUPTED and error[0] not in ("", INTERRUPTED):
        return classify(text or error[1], type_name=error[0])
    return None


def _text_of_error(trial: Any) -> str:
    try:
        return trial.get_error() or ""
    except (OSError, ValueError) as error:
        logger.warning("error.txt could not be read, its exception must do: %s", error)
        return ""


def scalar_metrics(result: dict[str, Any], metric: str | None) -> dict[str, Any]:
    """Return what the user reported, scalars only, the experiment's metric first."""
    if not result:
        return {}  # nothing ran, perhaps for want of Ray
    from ray._private.dict import flatten_dict

    scalars = {
        str(name): _plain(value)
        for name, value in result.items()
        if name not in _AUTOFILLED and _is_scalar(value)
    }
    nested = flatten_dict(result).get(metric) if metric and metric not in scalars else None
    if metric and nested is not None and _is_scalar(nested):
        scalars[metric] = _plain(nested)
    first = {metric: scalars[metric]} if metric in scalars else {}
    return {**first, **dict(list(scalars.items())[:METRIC_LIMIT])}


def _plain(scalar: Any) -> Any:
    """Return a number of numpy or torch as Python's."""
    return scalar.item() if hasattr(scalar, "item") else scalar


def _is_scalar(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return True
    return getattr(value, "shape", None) == () and hasattr(value, "item")


def now() -> str:
    """Return the time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat()
