"""The files of a commit: the new state file, and the states of searcher and callbacks beside it."""

import json
import logging
from typing import Any

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, LinkRefusedError, TooLargeError
from airflow_tune_restore.experiments.parameters import shown_of
from airflow_tune_restore.experiments.parse_row import parse_row
from airflow_tune_restore.experiments.raw_row import RawRow
from airflow_tune_restore.experiments.state import NO_STATE, State, StateWriter
from airflow_tune_restore.experiments.trial import Trial, TrialStatus
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.commit_record import CommitRecord
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.snapshots import Snapshots
from airflow_tune_restore.storage.base import ObjectStore

logger = logging.getLogger(__name__)


def build(
    store: ObjectStore, plan: RestorePlan, base: State, start_time: float, snapshots: Snapshots
) -> tuple[bytes | None, State]:
    """Return the new state file (None if no row changes), and its trials, without rows.

    Restored trials are as their runners left them, all others byte for byte. The rows of `base` are
    packed (`Keep`), and used up.
    """
    planned = {trial.trial_id: trial for trial in plan.trials}
    is_whole = plan.is_whole_experiment
    shared = snapshots.whole() if is_whole and plan.has_work else NO_STATE
    alone = [] if is_whole else [planned[key] for key in base.packed if planned[key].runs]
    own = snapshots.of_trials(alone)
    in_shared = {trial.trial_id: trial for trial in shared.trials}
    writer, last, is_changed = StateWriter(), shared, False
    trials: list[Trial] = []
    for before in base.trials:
        trial, old = planned[before.trial_id], base.packed.pop(before.trial_id).unpack()
        row, after = old, before
        if trial.action is TrialAction.TERMINATE:
            row = _terminated(old)
            after = parse_row(row.trial, row.metadata, ())
        elif trial.runs:
            found = in_shared
            if not is_whole:
                state = next(own)
                last = state if state.trials else last
                found = {trial.trial_id: trial for trial in state.trials}
            after = _restored(store, trial, found.get(trial.final_trial_id)) or before
            row = after.row or old
        if row is not old:
            is_changed = is_changed or row != old
            after = shown_of(after, row, plan.metric)
        writer.add(row)
        trials.append(after)
    if plan.continues_search:
        known = {trial.final_trial_id for trial in plan.trials}
        for added in shared.trials:
            if added.row is not None and added.trial_id not in known:
                is_changed = True
                writer.add(added.row)
                trials.append(shown_of(added, added.row, plan.metric))
    runner = {**(base.runner or shared.runner), **_stopper(snapshots, last)}
    stats = {**base.stats, "start_time": start_time}
    made = State(tuple(trials), {}, runner, stats)
    return (writer.end(runner, stats) if is_changed else None), made


def _restored(store: ObjectStore, planned: TrialPlan, left: Trial | None) -> Trial | None:
    """Return a trial as its runner left it; None if it left none that can be used."""
    if left is None or left.row is None or left.row.is_readable:
        return left
    logger.warning(
        "%s: the new row of trial %s is too large to be read again, so it is not committed.",
        *(store.uri, planned.trial_id),
    )
    return None


def _stopper(snapshots: Snapshots, last: State) -> dict[str, Any]:
    """Return the stopper as the run left it; Ray stores it in the runner data.

    Trials that ran one by one each had their own stopper: then none is taken.
    """
    is_only_one = len(snapshots.attempts) == 1
    return {
        name: last.runner[name] for name in ("_stopper",) if is_only_one and name in last.runner
    }


def _terminated(row: RawRow) -> RawRow:
    """Return the row with the status Ray gives a skipped unfinished trial."""
    document = bounded_json.load(msgspec.json.decode(row.trial, type=str))
    document["status"] = TrialStatus.TERMINATED.value
    text = json.dumps(document)  # without indents, which may be a hundred times the size
    return RawRow(msgspec.Raw(json.dumps(text).encode()), row.metadata)


def put_searcher(
    store: ObjectStore, plan: RestorePlan, record: CommitRecord, snapshots: Snapshots
) -> None:
    """Put the searcher's state where Ray reads it, under the session of the state file."""
    attempt = record.attempts.get(layout.WHOLE_EXPERIMENT)
    session = layout.session_of(record.state_file)
    if attempt is None or session is None:
        return
    number = snapshots.whole_stats.get("searcher")
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
