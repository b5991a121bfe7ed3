"""The saved state of a searcher: fetched, and told what it has missed."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import RunnerRequest
from airflow_tune_restore.storage.base import ObjectStore

_FINISHED = ("TERMINATED", "ERROR")

logger = logging.getLogger(__name__)


def fetch_newest(store: ObjectStore, target: Path) -> None:
    """Fetch the newest searcher state of the experiment itself, into a directory."""
    session = newest_session(store)
    for entry in store.list_dir() if session else []:
        if _is_saved_in(entry.name, session):
            (target / entry.name).write_bytes(
                store.get(entry.name, max_bytes=layout.MAX_STATE_BYTES)
            )


def fetch_saved(store: ObjectStore, directory: str, number: int, target: Path) -> None:
    """Fetch what an earlier attempt saved with the snapshot of this number, into a directory."""
    for entry in store.list_dir(directory):
        if entry.name.startswith(layout.numbered(number)):
            name = entry.name.removeprefix(layout.numbered(number))
            key = f"{directory}/{entry.name}"
            (target / name).write_bytes(store.get(key, max_bytes=layout.MAX_STATE_BYTES))


def newest_session(store: ObjectStore) -> str | None:
    """Return the driver session of the newest searcher state; Ray takes the largest name, too."""
    sessions = [
        layout.session_of(entry.name) or ""
        for entry in store.list_dir()
        if not entry.is_dir and layout.is_searcher_state(entry.name)
    ]
    return max(sessions, default=None)


def catch_up(
    store: ObjectStore,
    search_alg: Any,
    trials: list[Any],
    part: Callable[[Any], RunnerRequest],
) -> None:
    """Tell a restored searcher what became of trials since its state was saved.

    Ray saves it with the experiment state of the same session, whose statuses it therefore knows. Trials
    that run now report to it themselves; the others were restored one by one, without it.
    """
    session = newest_session(store)
    known = _statuses(store, session) if session else None
    if known is None:
        return
    told = 0
    here = set()
    for trial in trials:
        action = part(trial).action
        if action == "restart":
            continue  # not here any more: another id takes its row
        here.add(trial.trial_id)
        if action == "resume":
            continue
        told += _tell(search_alg, trial, known.get(trial.trial_id))
    for trial_id, status in known.items():
        if trial_id not in here and status not in _FINISHED:
            # restarted under another id: a limiter must not wait for it
            search_alg.on_trial_complete(trial_id, result=None, error=True)
    if told:
        logger.info("The searcher was told the results of %d trials it had missed.", told)


def _tell(search_alg: Any, trial: Any, known_status: str | None) -> int:
    """Tell of one trial; return 1 if the searcher has learned something."""
    from ray._private.dict import flatten_dict

    is_well = trial.status == "TERMINATED"
    if known_status is not None and known_status not in _FINISHED:
        result = flatten_dict(trial.last_result) if is_well else None
        search_alg.on_trial_complete(trial.trial_id, result=result, error=not is_well)
        return int(is_well)
    if known_status != "TERMINATED" and is_well:
        return _add_point(search_alg, trial)
    return 0


def _add_point(search_alg: Any, trial: Any) -> int:
    """Give the searcher a result of a trial that it takes for failed, or never knew: a restarted one."""
    base = getattr(search_alg, "searcher", None)
    metric = getattr(search_alg, "metric", None)
    value = trial.last_result.get(metric) if isinstance(metric, str) else None
    if base is None or not isinstance(value, int | float):
        return 0  # a grid or random search, that learns from nothing
    try:
        base.add_evaluated_point(dict(trial.evaluated_params), value)
    except NotImplementedError:
        logger.warning(
            "%s cannot be told the result of trial %s, which it takes for failed.",
            *(type(base).__name__, trial.trial_id),
        )
        return 0
    return 1


def _statuses(store: ObjectStore, session: str) -> Mapping[str, str] | None:
    """Return the statuses in the experiment state of a session; None if there is no such state."""
    name = f"{layout.STATE_PREFIX}{session}{layout.STATE_SUFFIX}"
    try:
        state = json.loads(store.get(name, max_bytes=layout.MAX_STATE_BYTES))
        trials = [json.loads(row[0]) for row in state["trial_data"]]
        return {trial["trial_id"]: trial["status"] for trial in trials}
    except (KeyNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        logger.warning("The state of session %s is gone: the searcher is told nothing.", session)
        return None


def _is_saved_in(name: str, session: str | None) -> bool:
    return layout.is_searcher_state(name) and layout.session_of(name) == session
