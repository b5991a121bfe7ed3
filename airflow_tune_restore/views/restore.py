"""One restore before and after: what its commit did to each trial, from the two states."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LinkRefusedError,
    StorageError,
    TooLargeError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.budget import IN_WORK
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.restore.commit import Committed, summarise_commit
from airflow_tune_restore.restore.commit_record import CommitRecord, read_commit_record
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.restore.undo import list_restores
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.views.plan import MAX_TRIALS
from airflow_tune_restore.views.showable import at_second, finite, showable


def view_restore(store: ObjectStore, restore_id: str) -> dict[str, Any]:
    """Return the table before and after of one restore, as far as it is known.

    `problem` says why there is none, in one sentence: it is not committed, it was undone, or a state that
    it needs is gone. With more than `MAX_TRIALS` trials, only those that ran are in it; `hidden` counts
    the others.

    Raises:
        KeyNotFoundError: If the experiment has no such restore.
        StorageError: If the store does not answer.
    """
    metric, summary, problem = None, None, ""
    try:
        plan = read_plan(store, restore_id)
        metric = plan.metric
        summary, problem = _summarise(store, plan)
    except (LinkRefusedError, TooLargeError) as error:
        problem = str(error)
    except StorageError:
        raise
    except KeyNotFoundError as error:
        if restore_id not in list_restores(store):
            raise
        problem = str(error)
    except TuneRestoreError as error:
        problem = str(error)
    changes = summary.describe_changes(MAX_TRIALS) if summary is not None else []
    view = {
        "restore_id": restore_id,
        "headline": summary.headline() if summary is not None else "",
        "metric": metric,
        "changes": [_with_numbers(change) for change in changes],
        "hidden": len(summary.changes) - len(changes) if summary is not None else 0,
        "problem": problem,
    }
    shown: dict[str, Any] = showable(view)
    return shown


def _with_numbers(change: dict[str, Any]) -> dict[str, Any]:
    """Return a change whose metrics are numbers or None; elsewhere, NaN is a word."""
    return change | {name: finite(change[name]) for name in ("metric_before", "metric_after")}


def _summarise(store: ObjectStore, plan: RestorePlan) -> tuple[CommitSummary | None, str]:
    """Return the summary of a commit, or why there is none."""
    record = read_commit_record(store, plan.restore_id)
    states = {e.name: e for e in store.list_dir() if not e.is_dir and layout.is_state_file(e.name)}
    if record is None:
        return None, "It was not committed: nothing has changed."
    if problem := _problem(plan, record, states):
        return None, problem
    sizes = [states[name].size_bytes for name in (plan.base.name, record.state_file) if name]
    with IN_WORK.hold(sum(sizes)):
        records = RestoreRecords(store, plan.restore_id)
        summary = summarise_commit(
            store, plan, records, Committed(record=record), reads_finished=False
        )
    if plan.continues_search and record.state_file != max(states, default=""):
        summary = replace(summary, samples_left=None)  # restores since then have drawn some
    return summary, ""


def _problem(plan: RestorePlan, record: CommitRecord, states: Mapping[str, Entry]) -> str:
    """Return why a commit cannot be shown; "" if it can."""
    if record.undone_at:
        at = at_second(record.undone_at)
        return f"It was undone at {at}: what it had changed is not there any more."
    if not record.is_done:
        return "Its commit was cut off. The next restore finishes it."
    for name in filter(None, (plan.base.name, record.state_file)):
        if name not in states:
            return f"{name} is gone, so it is not known what this restore changed."
    return ""
