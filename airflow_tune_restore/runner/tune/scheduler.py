"""Earlier results for a restored scheduler. Ray forgets them, and judges resumed trials alone.

`Tuner.restore` starts with empty rungs of ASHA and empty running averages of MedianStopping (2.60): the
first trial to reach a rung passes, however bad. The results of all trials are in storage.
"""

import logging
from collections.abc import Iterable
from typing import Any

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.numbers import read_iteration
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.protocol.result_rows import iter_rows
from airflow_tune_restore.runner.tune import checkpoints
from airflow_tune_restore.storage.base import ObjectStore

logger = logging.getLogger(__name__)


def remember(store: ObjectStore, scheduler: Any, trials: Iterable[Any]) -> None:
    """Give a scheduler the earlier results of all trials; of running ones up to their checkpoint."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    if not isinstance(scheduler, AsyncHyperBandScheduler | MedianStoppingRule):
        logger.warning(
            "%s does not support remember_scheduler: it starts without earlier results.",
            type(scheduler).__name__,
        )
        return
    count = 0
    for trial in trials:
        rows = _results(store, trial)
        if isinstance(scheduler, MedianStoppingRule):
            _add_to_median(scheduler, trial, rows)
        else:
            _add_to_asha(scheduler, trial, rows)
        count += bool(rows)
    name = type(scheduler).__name__
    logger.info("%s got the earlier results of %s.", name, counted(count, "trial"))


def _add_to_asha(scheduler: Any, trial: Any, rows: list[dict[str, Any]]) -> None:
    """Add results to the rungs of a trial, without the decisions of ASHA: those were made long ago."""
    bracket = scheduler._trial_info.get(trial.trial_id, scheduler._brackets[0])
    for row in rows:
        if scheduler._time_attr in row and scheduler._metric in row:
            value = scheduler._metric_op * row[scheduler._metric]
            bracket.on_result(trial, row[scheduler._time_attr], value)


def _add_to_median(scheduler: Any, trial: Any, rows: list[dict[str, Any]]) -> None:
    complete = [row for row in rows if scheduler._time_attr in row and scheduler._metric in row]
    if complete:
        scheduler._results[trial].extend(complete)


def _results(store: ObjectStore, trial: Any) -> list[dict[str, Any]]:
    """Return the rows of a trial, for each iteration the newest."""
    last = None
    if not trial.is_finished():
        start = checkpoints.start_of(trial)
        if start is None:
            return []  # it starts from scratch, and reports everything again
        last = start.iteration
    key = f"{trial.relative_logdir}/{layout.RESULT_FILE}"
    try:
        body = store.get(key, max_bytes=layout.MAX_RESULT_BYTES)
    except KeyNotFoundError:
        return []
    rows: dict[float, dict[str, Any]] = {}
    for row in iter_rows(body):
        iteration = read_iteration(row.get("training_iteration"))
        # neither rungs nor averages can use a row without one
        if iteration is not None and (last is None or iteration <= last):
            rows[iteration] = row
    return [rows[iteration] for iteration in sorted(rows)]
