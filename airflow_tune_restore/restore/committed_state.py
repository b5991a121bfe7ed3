"""The files of a commit: the new state file, and the states of searcher and callbacks beside it."""

import json
import logging
from typing import Any

import msgspec

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LinkRefusedError,
    StateUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.raw_row import MalformedStateError, RawRow
from airflow_tune_restore.experiments.state import NO_STATE, State, encode_state, parse_state
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.request import RUN_ACTIONS, TrialAction
from airflow_tune_restore.restore.commit_record import CommitRecord
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.storage.base import ObjectStore

logger = logging.getLogger(__name__)


def build(
    store: ObjectStore, plan: RestorePlan, base: Experiment, record: CommitRecord
) -> bytes | None:
    """Return the new state file; None if no row changes.

    Restored trials are as their runners left them, all others byte for byte.
    """
    planned = {trial.trial_id: trial for trial in plan.trials}
    snapshots = _Snapshots(store, plan, record)
    rows = [
        snapshots.committed_row(planned[trial.trial_id], base.state.rows[trial.trial_id])
        for trial in base.trials
    ]
    if plan.continues_search:
        rows += snapshots.new_rows()
    if rows == list(base.state.rows.values()):
        return None
    stats = {**base.state.stats, "start_time": record.start_time}
    runner = base.state.runner or snapshots.whole.runner
    return encode_state(rows, {**runner, **snapshots.stopper()}, stats)


class _Snapshots:
    """The rows that the committed attempts left: one snapshot per trial, or one for all trials."""

    def __init__(self, store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
        self._store = store
        self._plan = plan
        self._record = record
        self.whole = self._read(layout.WHOLE_EXPERIMENT) if plan.is_whole_experiment else NO_STATE

    def committed_row(self, trial: TrialPlan, old: RawRow) -> RawRow:
        """Return the row of a trial: the old one if its runner left none."""
        if trial.action is TrialAction.TERMINATE:
            return _terminated(old)
        if trial.action not in RUN_ACTIONS:
            return old
        state = self.whole if self._plan.is_whole_experiment else self._read(trial.trial_id)
        row = state.rows.get(trial.final_trial_id, old)
        if row is not old and not row.is_readable:
            logger.warning(
                "%s: the new row of trial %s is too large to be read again, so it is not committed.",
                *(self._store.uri, trial.trial_id),
            )
            return old
        return row

    def new_rows(self) -> list[RawRow]:
        """Return the rows of trials that the search added."""
        known = {trial.final_trial_id for trial in self._plan.trials}
        return [row for trial_id, row in self.whole.rows.items() if trial_id not in known]

    def stopper(self) -> dict[str, Any]:
        """Return the stopper as the run left it; Ray stores it in the runner data.

        Trials that ran one by one each had their own stopper: then none is taken.
        """
        if len(self._record.attempts) != 1:
            return {}
        (unit,) = self._record.attempts
        runner = self._read(unit).runner
        return {name: runner[name] for name in ("_stopper",) if name in runner}

    def _read(self, unit: str) -> State:
        attempt = self._record.attempts.get(unit)
        if attempt is None:
            return NO_STATE
        state = read_snapshot(self._store, self._plan, unit, attempt)
        if state is None:
            is_whole = unit == layout.WHOLE_EXPERIMENT
            what = "the whole-experiment run" if is_whole else f"trial {unit}"
            raise StateUnreadableError(
                self._store.uri, f"the snapshot of attempt {attempt} of {what} is gone"
            )
        return state


def _terminated(row: RawRow) -> RawRow:
    """Return the row with the status Ray gives a skipped unfinished trial."""
    document = bounded_json.load(msgspec.json.decode(row.trial, type=str))
    document["status"] = TrialStatus.TERMINATED.value
    text = json.dumps(document)  # without indents, which may be a hundred times the size
    return RawRow(msgspec.Raw(json.dumps(text).encode()), row.metadata)


def read_snapshot(store: ObjectStore, plan: RestorePlan, unit: str, attempt: int) -> State | None:
    """Read the snapshot of a runner; None if it is unreadable, or does not belong to its unit."""
    key = layout.snapshot_key(plan.restore_id, unit, attempt)
    try:
        state = parse_state(store.get(key, max_bytes=layout.max_snapshot_bytes(unit)))
    except KeyNotFoundError:
        return None
    except (MalformedStateError, TooLargeError, LinkRefusedError) as error:
        logger.warning("%s: %s is not committed: %s", store.uri, key, error)
        return None
    if unit == layout.WHOLE_EXPERIMENT:
        return state if state.trials else None
    if [row.trial_id for row in state.trials] != [plan.trial(unit).final_trial_id]:
        return None
    return state


def put_searcher(store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
    """Put the searcher's state where Ray reads it, under the session of the state file."""
    attempt = record.attempts.get(layout.WHOLE_EXPERIMENT)
    session = layout.session_of(record.state_file)
    if attempt is None or session is None:
        return
    state = read_snapshot(store, plan, layout.WHOLE_EXPERIMENT, attempt)
    number = state.stats.get("searcher") if state is not None else None
    if not isinstance(number, int):
        return
    directory, prefix = layout.searcher_dir(plan.restore_id, attempt), layout.numbered(number)
    for entry in store.list_dir(directory):
        name = layout.in_session(entry.name.removeprefix(prefix), session)
        # only what a searcher saves: another file in the directory could replace a state
        if entry.name.startswith(prefix) and layout.is_searcher_state(name) and is_safe_name(name):
            body = store.get(f"{directory}/{entry.name}", max_bytes=layout.MAX_STATE_BYTES)
            store.put(name, body)


def put_callbacks(store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
    """Put the state of the callbacks where Ray reads it, if one run left it."""
    session = layout.session_of(record.state_file)
    if len(record.attempts) != 1 or session is None:
        return
    ((unit, attempt),) = record.attempts.items()
    saved = layout.callbacks_name(layout.KEPT)
    key = f"{layout.attempt_dir(plan.restore_id, unit, attempt)}/{saved}"
    try:
        body = store.get(key, max_bytes=layout.MAX_RESULT_BYTES)
    except KeyNotFoundError:
        return  # no callback has a state
    except (TooLargeError, LinkRefusedError) as error:
        logger.warning("The state of callbacks is not committed: %s", error)
        return
    store.put(layout.in_session(saved, session), body)
