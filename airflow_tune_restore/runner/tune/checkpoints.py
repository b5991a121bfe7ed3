"""The checkpoint that a restored trial starts from, and the number of its next one.

The plan chooses it for the first attempt; a later attempt resumes from the snapshot of an earlier one.
"""

import logging
from pathlib import PurePosixPath
from typing import Any

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.checkpoints import (
    CheckpointDir,
    RecordedCheckpoint,
    choose_checkpoint,
    last_number,
)
from airflow_tune_restore.protocol.numbers import read_iteration, whole_iteration
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.protocol.result_rows import iter_rows
from airflow_tune_restore.runner.tune.result_files import Start
from airflow_tune_restore.storage.base import ObjectStore

logger = logging.getLogger(__name__)


def start_as_planned(store: ObjectStore, trial: Any, request: RunnerRequest) -> None:
    """Make a trial of the seed start from the planned checkpoint, with its budget back if requested."""
    if request.fresh_budget:
        trial.run_metadata.num_failures = 0
    present = _list_checkpoints(store, trial)
    if request.checkpoint is None:
        _set_latest(trial, None)
    elif request.checkpoint != _recorded_name(trial):
        metrics = _rows_by_checkpoint(store, trial).get(request.checkpoint)
        point_at(trial, request.checkpoint, metrics or {"training_iteration": request.iteration})
    forget_missing(trial, present)
    _number_after(trial, present, request.attempt)


def continue_from_snapshot(store: ObjectStore, trial: Any, attempt: int) -> None:
    """Make a trial of a snapshot start from its checkpoint, or from another one if this is deleted.

    With `num_to_keep`, the earlier attempt may have deleted it after its last snapshot.
    """
    present = _list_checkpoints(store, trial)
    recorded = start_of(trial)
    if recorded is not None:
        rows = _rows_by_checkpoint(store, trial)
        choice = choose_checkpoint(
            RecordedCheckpoint(
                name=recorded.checkpoint, iteration=whole_iteration(recorded.iteration)
            ),
            [_look_into(store, trial, name) for name in present],
            {name: whole_iteration(row.get("training_iteration")) for name, row in rows.items()},
        )
        if choice.name != recorded.checkpoint:
            logger.warning("%s: %s", trial.trial_id, choice.reason)
            if choice.name is None:
                _set_latest(trial, None)
            else:
                row = rows.get(choice.name) or {"training_iteration": choice.iteration}
                point_at(trial, choice.name, row)
    forget_missing(trial, present)
    _number_after(trial, present, attempt)


def start_of(trial: Any) -> Start | None:
    """Return the checkpoint that the trial starts from; None if it starts from scratch."""
    result = trial.latest_checkpoint_result
    if result is None:
        return None
    return Start(_name_of(result), read_iteration(result.metrics.get("training_iteration", 0)))


def point_at(trial: Any, name: str, metrics: dict[str, Any]) -> None:
    """Make a directory the latest checkpoint of a trial, as if the trial had just reported it."""
    from ray import train, tune
    from ray.train._internal.session import _TrainingResult

    kind = getattr(tune, "Checkpoint", train.Checkpoint)  # Ray Tune has its own since 2.43
    storage = trial.storage
    checkpoint = kind(path=f"{storage.trial_fs_path}/{name}", filesystem=storage.storage_filesystem)
    result = _TrainingResult(checkpoint=checkpoint, metrics=metrics)
    _set_latest(trial, result)
    known = trial.run_metadata.checkpoint_manager
    by_score = known.checkpoint_config.checkpoint_score_attribute is not None
    if not by_score and name not in map(_name_of, known._checkpoint_results):
        known._checkpoint_results.append(result)  # so that `num_to_keep` counts it


def forget_missing(trial: Any, present: list[str]) -> None:
    """Drop checkpoints that no longer exist from Ray's list of checkpoints to delete later.

    To delete a missing one raises FileNotFoundError and ends the run
    (ray.train._internal.storage._delete_fs_path, 2.60).
    """
    known = trial.run_metadata.checkpoint_manager
    results = known._checkpoint_results
    known._checkpoint_results = [result for result in results if _name_of(result) in present]


def _number_after(trial: Any, present: list[str], attempt: int) -> None:
    """Give the next checkpoint a new number: the state may be older than the directory."""
    storage = trial.storage
    storage.current_checkpoint_index = max(
        storage.current_checkpoint_index, last_number(present, attempt)
    )


def _set_latest(trial: Any, result: Any) -> None:
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = result


def _recorded_name(trial: Any) -> str | None:
    result = trial.latest_checkpoint_result
    return _name_of(result) if result is not None else None


def _name_of(result: Any) -> str:
    return PurePosixPath(result.checkpoint.path).name


def _list_checkpoints(store: ObjectStore, trial: Any) -> list[str]:
    if not trial.relative_logdir:
        return []  # it never started
    entries = store.list_dir(trial.relative_logdir)
    return [e.name for e in entries if e.is_dir and e.name.startswith(layout.CHECKPOINT_PREFIX)]


def _look_into(store: ObjectStore, trial: Any, name: str) -> CheckpointDir:
    entries = store.list_dir(f"{trial.relative_logdir}/{name}")
    files = {entry.name: entry.size_bytes or int(entry.is_dir) for entry in entries}
    return CheckpointDir(name=name, files=files)


def _rows_by_checkpoint(store: ObjectStore, trial: Any) -> dict[str, dict[str, Any]]:
    """Return the result row of each checkpoint; the trainable continues the counters in it."""
    try:
        key = f"{trial.relative_logdir}/{layout.RESULT_FILE}"
        rows = iter_rows(store.get(key, max_bytes=layout.MAX_RESULT_BYTES))
    except KeyNotFoundError:
        return {}
    named = (row for row in rows if isinstance(row.get("checkpoint_dir_name"), str))
    return {row["checkpoint_dir_name"]: row for row in named}
