"""How an attempt ended, and the record of it."""

import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from airflow_tune_restore.exceptions import NoRoomError, TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol import request as contract
from airflow_tune_restore.protocol.failures import Cause, Failure, classify
from airflow_tune_restore.protocol.numbers import whole_iteration
from airflow_tune_restore.protocol.printable import shortened
from airflow_tune_restore.protocol.record_fields import ERROR_LENGTH
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.runner.tune import private_api
from airflow_tune_restore.storage.base import ObjectStore

EXIT_CODES = {
    Result.FINISHED: contract.EXIT_FINISHED,
    Result.FAILED: contract.EXIT_FAILED,
    Result.REFUSED: contract.EXIT_REFUSED,
    Result.FENCED: contract.EXIT_FENCED,
    Result.INTERRUPTED: contract.EXIT_INTERRUPTED,
    Result.PAUSED: contract.EXIT_PAUSED,
}

logger = logging.getLogger(__name__)

METRIC_LIMIT = 20
INTERRUPTED = "Interrupted"
"""The error type of an attempt that was asked to stop, in the place of the type of an exception."""
PAUSED = "Paused"
"""The same, of one that ended because the window of its restore had."""

_RUNNER, _SHIELD = Path(__file__).parents[1], Path(__file__).with_name("searcher.py")

_AUTOFILLED = frozenset(
    "training_iteration timestamp checkpoint_dir_name should_checkpoint done trial_id date "
    "time_this_iter_s time_total_s pid hostname node_ip time_since_restore iterations_since_restore "
    "experiment_tag timesteps_total episodes_total".split()
)


class Ending(NamedTuple):
    """How an attempt ended: its result, and type and message of its error ("" without an error)."""

    result: Result
    error_type: str = ""
    error: str = ""


def build_outcome(
    request: RunnerRequest,
    ending: Ending,
    *,
    trial: Any,
    started_at: str,
    resources: dict[str, float] | None = None,
    text: str = "",
) -> RunnerOutcome:
    """Build the record of an attempt that ends now.

    Args:
        request: The attempt.
        ending: How it ended.
        trial: Ray's trial; None if it was not restored, or if the attempt is a sweep's own script.
        started_at: ISO 8601 UTC.
        resources: What the trial requests, if its pod or job was too small for it.
        text: The full text of the error that ended the run; that of a TuneError holds its traceback.
    """
    # for a trial without results, `trial.last_result` would wait for a Ray that may have ended
    last = trial.run_metadata.last_result if trial is not None else {}
    failure = _failure(ending, trial, text)
    return RunnerOutcome(
        restore_id=request.restore_id,
        trial_id=request.trial_id,
        attempt=request.attempt,
        result=ending.result,
        status=trial.status if trial is not None else "",
        final_trial_id=trial.trial_id if trial is not None else request.trial_id,
        iteration=whole_iteration(last.get("training_iteration")),
        metrics=scalar_metrics(last, None),
        error_type=ending.error_type,
        error=shortened(ending.error, ERROR_LENGTH),
        cause=failure.cause.value if failure is not None else "",
        place=failure.place if failure is not None else "",
        resources=resources or {},
        started_at=started_at,
        ended_at=now(),
        ray_version=private_api.version(),
    )


def write_outcome(store: ObjectStore, outcome: RunnerOutcome) -> None:
    """Write the outcome of an attempt."""
    key = layout.outcome_key(outcome.restore_id, outcome.trial_id, outcome.attempt)
    store.put(key, outcome.to_json())


def find_raised(error: BaseException) -> BaseException:
    """Return the error that ended a run, without Ray's copies of it.

    Ray replaces an exception in a callback, searcher or scheduler by a TuneError whose text is the
    traceback (ray.tune.execution.tune_controller.TuneController._on_result, 2.60), and does so again at
    every level.
    """
    # by its name, because Ray may be missing
    while type(error).__name__ == "TuneError" and error.__context__ is not None:
        error = error.__context__
    return error


def error_of_run(error: BaseException) -> tuple[str, str]:
    """Return type and message of the error that ended a run.

    The message has the function that Ray Tune called and that raised, if any.
    """
    raised = find_raised(error)
    return type(raised).__name__, f"{raised}{_called_by_tune(raised)}"


def _called_by_tune(error: BaseException) -> str:
    """Return a hint if a callback, stopper, searcher or scheduler raised the error; "" otherwise."""
    ray = sys.modules.get("ray")
    if ray is None or isinstance(error, TuneRestoreError):
        return ""
    tune = Path(ray.__path__[0], "tune")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) != _SHIELD  # it is between Ray and the user's searcher
    ]
    of_tune = [n for n, frame in enumerate(frames) if Path(frame.filename).is_relative_to(tune)]
    called = frames[of_tune[-1] + 1 :] if of_tune else []
    if not called or Path(called[0].filename).is_relative_to(_RUNNER):
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


def _failure(ending: Ending, trial: Any, text: str) -> Failure | None:
    """Return why a trial failed (from Ray's text), or why the runner failed (from its exception)."""
    result, error_type, error = ending
    if result is Result.FAILED:
        text = _text_of_error(trial) if trial is not None else ""
        return classify(text or error, type_name=error_type)
    if error_type == NoRoomError.__name__:
        return Failure(cause=Cause.NO_ROOM)
    if result is Result.INTERRUPTED and error_type not in ("", INTERRUPTED):
        return classify(text or error, type_name=error_type)
    return None


def _text_of_error(trial: Any) -> str:
    try:
        return trial.get_error() or ""
    except (OSError, ValueError) as error:
        logger.warning("error.txt could not be read; its exception is used instead: %s", error)
        return ""


def scalar_metrics(result: dict[str, Any], metric: str | None) -> dict[str, Any]:
    """Return the scalars that the trainable reported, the experiment's metric first."""
    if not result:
        return {}  # nothing ran, perhaps because Ray is missing
    from ray._private.dict import flatten_dict

    reported = {str(name): v for name, v in result.items() if name not in _AUTOFILLED}
    scalars = {name: _plain(value) for name, value in reported.items() if _is_scalar(value)}
    nested = flatten_dict(result).get(metric) if metric and metric not in scalars else None
    if metric and nested is not None and _is_scalar(nested):
        scalars[metric] = _plain(nested)
    first = {metric: scalars[metric]} if metric in scalars else {}
    return {**first, **dict(list(scalars.items())[:METRIC_LIMIT])}


def _plain(scalar: Any) -> Any:
    """Return a number of numpy or torch as a Python number."""
    return scalar.item() if hasattr(scalar, "item") else scalar


def _is_scalar(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return True
    return getattr(value, "shape", None) == () and hasattr(value, "item")


def now() -> str:
    """Return the time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat()
