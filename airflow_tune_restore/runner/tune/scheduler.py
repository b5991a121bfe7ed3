"""What a restored scheduler is told of the past: Ray forgets it, and judges resumed trials alone.

`Tuner.restore` makes ASHA's rungs and MedianStopping's running averages anew and empty (2.60): the first
trial to reach a rung passes, however bad. The results of all trials lie in storage, so they can be told.
"""

import logging
from collections.abc import Iterable
from typing import Any

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.numbers import read_iteration
from airflow_tune_restore.protocol.result_rows import iter_rows
from airflow_tune_restore.runner.tune import checkpoints
from airflow_tune_restore.storage.base import ObjectStore

logger = logging.getLogger(__name__)


def remember(store: ObjectStore, scheduler: Any, trials: Iterable[Any]) -> None:
    """Tell a scheduler what all trials have reported, up to where those that run resume."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    if not isinstance(scheduler, AsyncHyperBandScheduler | MedianStoppingRule):
        logger.warning("%s has no memory that we could rebuild.", type(scheduler).__name__)
        return
    count = 0
    for trial in trials:
        rows = _results(store, trial)
        if isinstance(scheduler, MedianStoppingRule):
            _tell_median(scheduler, trial, rows)
        else:
            _tell_asha(scheduler, trial, rows)
        count += bool(rows)
    logger.info("%s remembers the results of %d trials.", type(scheduler).__name__, count)


def _tell_asha(scheduler: Any, trial: Any, rows: list[dict[str, Any]]) -> None:
    """Enter results into the trial's rungs; what ASHA would decide now was decided long ago."""
    bracket = scheduler._trial_info.get(trial.trial_id, scheduler._brackets[0])
    for row in rows:
        if scheduler._time_attr in row and scheduler._metric in row:
            value = scheduler._metric_op * row[scheduler._metric]
            bracket.on_result(trial, row[scheduler._time_attr], value)


def _tell_median(scheduler: Any, trial: Any, rows: list[dict[str, Any]]) -> None:
    told = [row for row in rows if scheduler._time_attr in row and scheduler._metric in row]
    if told:
        scheduler._results[trial].extend(told)


def _results(store: ObjectStore, trial: Any) -> list[dict[str, Any]]:
    """Return a trial's rows, each iteration once and as it was reported last."""
    last = None
    if not trial.is_finished():
        start = checkpoints.start_of(trial)
        if start is None:
            return []  # it starts from scratch, and tells everything itself
        last = start.iteration
    try:
        body = store.get(
            f"{trial.relative_logdir}/{layout.RESULT_FILE}", max_bytes=layout.MAX_RESULT_BYTES
        )
    except KeyNotFoundError:
        return []
    rows: dict[float, dict[str, Any]] = {}
    for row in iter_rows(body):
        iteration = read_iteration(row.get("training_iteration"))
        if iteration is None:
            continue  # no rung and no average has a place for it
        if last is None or iteration <= last:
            rows[iteration] = row
    return [rows[iteration] for iteration in sorted(rows)]
