"""The state file a commit makes: resumed trials as their runners left them, all others byte for byte."""

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
from airflow_tune_restore.experiments.state import (
    NO_STATE,
    MalformedStateError,
    RawRow,
    State,
    encode_state,
    parse_state,
)
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.request import RUN_ACTIONS, TrialAction
from airflow_tune_restore.restore.commit_record import CommitRecord
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.storage.base import ObjectStore


def build_committed_state(
    store: ObjectStore, plan: RestorePlan, base: Experiment, record: CommitRecord
) -> bytes | None:
    """Return the new state file, or None if every row stays as it was."""
    planned = {trial.trial_id: trial for trial in plan.trials}
    snapshots = _Snapshots(store, plan, record)
    rows = [
        _committed_row(snapshots, planned[trial.trial_id], base.state.rows[trial.trial_id])
        for trial in base.trials
    ]
    if plan.continues_search:
        rows += snapshots.drawn()
    if rows == list(base.state.rows.values()):
        return None
    stats = {**base.state.stats, "start_time": record.start_time}
    runner = base.state.runner or snapshots.runner()
    return encode_state(rows, {**runner, **snapshots.stopper()}, stats)


logger = logging.getLogger(__name__)


class _Snapshots:
    """The rows that the committed attempts left: one object a trial, or one for all."""

    def __init__(self, store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
        self._store = store
        self._plan = plan
        self._record = record
        self._of_all = self._read(layout.WHOLE_EXPERIMENT) if plan.is_whole_experiment else NO_STATE

    def row(self, trial: TrialPlan) -> RawRow | None:
        """Return what is known of a trial that was to run; None if nothing is."""
        rows = (
            self._of_all.rows if self._plan.is_whole_experiment else self._read(trial.trial_id).rows
        )
        row = rows.get(trial.final_trial_id)
        if row is not None and not row.is_readable:
            logger.warning(
                "%s: the new row of trial %s is too large to be read again, and is not committed.",
                *(self._store.uri, trial.trial_id),
            )
            return None
        return row

    def drawn(self) -> list[RawRow]:
        """Return the rows of samples that were drawn."""
        known = {trial.final_trial_id for trial in self._plan.trials}
        return [row for trial_id, row in self._of_all.rows.items() if trial_id not in known]

    def runner(self) -> dict[str, Any]:
        """Return the run's own data, for an experiment that had no state before."""
        return self._of_all.runner

    def stopper(self) -> dict[str, Any]:
        """Return the stopper as the run left it, for Ray keeps its memory in the runner's data.

        Of several trials that ran alone each has a stopper of its own, and none can be told to be it.
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
            what = "the run" if unit == layout.WHOLE_EXPERIMENT else f"trial {unit}"
            raise StateUnreadableError(
                self._store.uri, f"the snapshot of attempt {attempt} of {what} is gone"
            )
        return state


def _committed_row(snapshots: _Snapshots, trial: TrialPlan, row: RawRow) -> RawRow:
    if trial.action is TrialAction.TERMINATE:
        return _terminated(row)
    if trial.action not in RUN_ACTIONS:
        return row
    return snapshots.row(trial) or row


def _terminated(row: RawRow) -> RawRow:
    """Return the row with the status Ray gives a skipped unfinished trial."""
    document = bounded_json.load(msgspec.json.decode(row.trial, type=str))
    document["status"] = TrialStatus.TERMINATED.value
    text = json.dumps(document)  # without indents: they may be a hundred times what is indented
    return RawRow(msgspec.Raw(json.dumps(text).encode()), row.metadata)


def read_snapshot(store: ObjectStore, plan: RestorePlan, unit: str, attempt: int) -> State | None:
    """Read what a runner left, if it is whole and speaks of what it was started for."""
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
