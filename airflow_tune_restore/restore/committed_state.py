"""The state file a commit makes: resumed trials as their runners left them, all others byte for byte."""

import json
import re
from typing import Any

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, StateUnreadableError
from airflow_tune_restore.experiments import bounded_json, layout
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
from airflow_tune_restore.restore.commit_record import CommitRecord
from airflow_tune_restore.restore.plan import RUN_ACTIONS, RestorePlan, TrialAction, TrialPlan
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
    if plan.draws_samples:
        rows += snapshots.drawn()
    if rows == list(base.state.rows.values()):
        return None
    stats = {**base.state.stats, "start_time": record.start_time}
    runner = base.state.runner or snapshots.runner()
    return encode_state(rows, {**runner, **snapshots.stopper()}, stats)


_STATUS = re.compile(r'(?<=\n  "status": )"[^"\\]*"')
"""As `Trial.get_json_state` writes it (2.60): only the outermost level is indented by two blanks."""

_AS_RAY_WRITES = '{\n  "'


class _Snapshots:
    """The rows that the committed attempts left: one object a trial, or one for all."""

    def __init__(self, store: ObjectStore, plan: RestorePlan, record: CommitRecord) -> None:
        self._store = store
        self._plan = plan
        self._record = record
        self._of_all = self._read(layout.EVERY_TRIAL) if plan.is_one_run else NO_STATE

    def row(self, trial: TrialPlan) -> RawRow | None:
        """Return what is known of a trial that was to run; None if nothing is."""
        if self._plan.is_one_run:
            return self._of_all.rows.get(trial.final_trial_id)
        return next(iter(self._read(trial.trial_id).rows.values()), None)

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
            what = "the run" if unit == layout.EVERY_TRIAL else f"trial {unit}"
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


def units(plan: RestorePlan) -> list[str]:
    """Return what has attempts of its own: each trial, or the one run of all."""
    if plan.is_one_run:
        return [layout.EVERY_TRIAL] if plan.has_work else []
    return [trial.trial_id for trial in plan.to_run]


def _terminated(row: RawRow) -> RawRow:
    """Return the row with the status Ray gives a skipped unfinished trial."""
    before = msgspec.json.decode(row.trial, type=str)
    text, found = _STATUS.subn(f'"{TrialStatus.TERMINATED}"', before)
    if found != 1 or not before.startswith(_AS_RAY_WRITES):
        # without indents, which may be a hundred times what is indented
        document = bounded_json.load(before)
        document["status"] = TrialStatus.TERMINATED.value
        text = json.dumps(document)
    return RawRow(msgspec.Raw(json.dumps(text).encode()), row.metadata)


def read_snapshot(store: ObjectStore, plan: RestorePlan, unit: str, attempt: int) -> State | None:
    """Read what a runner left, if it is whole and speaks of what it was started for."""
    key = layout.snapshot_key(plan.restore_id, unit, attempt)
    try:
        state = parse_state(store.get(key, max_bytes=layout.max_snapshot_bytes(unit)))
    except (KeyNotFoundError, MalformedStateError):
        return None
    if unit == layout.EVERY_TRIAL:
        return state if state.trials else None
    if [row.trial_id for row in state.trials] != [plan.trial(unit).final_trial_id]:
        return None
    return state
