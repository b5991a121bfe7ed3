"""The restores of an experiment: who made them, when, and what became of each. One small answer.

Restores are found by their directories, and ordered by their leases. Of a plan, only the numbers are
decoded: a plan of 10,000 trials holds 4.4 MB, of which 10 ms are spent.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import msgspec

from airflow_tune_restore.exceptions import RecordUnreadableError, TuneRestoreError
from airflow_tune_restore.experiments.experiment import StateFile
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.lease_objects import AskHolder, LeaseStatus, was_restored
from airflow_tune_restore.protocol.names import is_sweep
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import RUN_ACTIONS, TrialAction
from airflow_tune_restore.restore.choices import PlanChoices, Strategy
from airflow_tune_restore.restore.commit_record import CommitRecord, read_commit_record
from airflow_tune_restore.restore.flags import ResumeType
from airflow_tune_restore.restore.record_json import decode
from airflow_tune_restore.restore.undo import foresee_undo, list_restores
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import for_each
from airflow_tune_restore.views.holders import (
    Held,
    dag_run_of,
    describe_left,
    find_holders,
    find_living,
)
from airflow_tune_restore.views.showable import as_iso, at_second, showable

MAX_RESTORES = 100
"""Restores of one answer: the newest."""

_PLAN, _RECORD = (key("").rpartition("/")[2] for key in (layout.plan_key, layout.commit_key))

_MOST = {_PLAN: 64 * 1024 * 1024, _RECORD: 64 * 1024 * 1024}
"""Bytes of all plans that one answer reads, and of all commit records: those of the newest restores."""

_NOTHING_CHANGED = "Nothing was changed."
_NO_COMMIT = "No commit can be undone: no restore of this experiment was committed."


class _Row(msgspec.Struct):
    """The part of a plan's entry that is counted."""

    action: TrialAction


class _Head(msgspec.Struct):
    """The part of a plan that its line shows."""

    restore_id: str
    base: StateFile
    choices: PlanChoices
    strategy: Strategy
    trials: list[_Row]


_HEAD = msgspec.json.Decoder(_Head)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A restore as its records show it.

    Args:
        has_plan: Whether it has a plan, read or not.
        head: None if the plan was not read.
        record: None without a commit.
        problem: Why a record cannot be used; "" if all can.
        recorded_at: When the commit record was written last.
    """

    restore_id: str
    held: Held | None
    has_plan: bool
    head: _Head | None
    record: CommitRecord | None
    problem: str
    recorded_at: datetime | None


def view_restores(store: ObjectStore, *, ask_holder: AskHolder | None = None) -> dict[str, Any]:
    """Return the newest restores, the newest first, and what an undo would do now. Writes nothing.

    A record that is unreadable costs its own restore alone. `ask_holder` returns whether a restore that
    looks alive is known to have ended.

    Raises:
        StorageError: If the store does not answer.
    """
    root = store.list_dir()
    if not was_restored(root):
        return {"restores": [], "undo": _undo(why_not=_NO_COMMIT)}
    ids = [each for each in list_restores(store) if not is_sweep(each)]
    entries = store.list_dir(layout.LEASE)
    holders = find_holders(store, entries, set(ids))
    living = find_living(store, entries, ask_holder)
    others = sorted((each for each in ids if each not in holders), reverse=True)
    newest = [*holders, *others][:MAX_RESTORES]
    written = {entry.name: entry.modified_at for entry in root if not entry.is_dir}
    found = _read_all(store, newest, holders)
    view = {
        "restores": [_describe(each, written, living) for each in found],
        "undo": _foresee(store, found),
    }
    shown: dict[str, Any] = showable(view)
    return shown


def _read_all(store: ObjectStore, ids: list[str], holders: Mapping[str, Held]) -> list[_Found]:
    """Read the records of restores, as far as their sizes allow."""
    listed = for_each(lambda each: _list_records(store, each), ids)
    steps = list(zip(ids, listed, _affordable(listed), strict=True))
    return for_each(lambda step: _read_one(store, *step, holders.get(step[0])), steps)


def _list_records(store: ObjectStore, restore_id: str) -> dict[str, Entry]:
    """Return the plan and the commit record of a restore by name, as they are listed."""
    entries = store.list_dir(layout.restore_dir(restore_id))
    return {entry.name: entry for entry in entries if entry.name in _MOST and not entry.is_dir}


def _affordable(listed: Iterable[Mapping[str, Entry]]) -> list[set[str]]:
    """Return which records of each restore are read: those for which the ones before it leave room."""
    left, reads = dict(_MOST), []
    for of_one in listed:
        names = {name for name, entry in of_one.items() if entry.size_bytes <= left[name]}
        left |= {name: left[name] - of_one[name].size_bytes for name in names}
        reads.append(names)
    return reads


def _read_one(
    store: ObjectStore,
    restore_id: str,
    listed: Mapping[str, Entry],
    reads: Collection[str],
    held: Held | None,
) -> _Found:
    head, record, problems = None, None, []
    try:
        if _RECORD in reads:
            record = read_commit_record(store, restore_id)
    except TuneRestoreError as error:
        problems.append(str(error))
    try:
        if _PLAN in reads:
            head = _read_head(store, restore_id)
    except TuneRestoreError as error:
        problems.append(str(error))
    if _RECORD in listed and _RECORD not in reads:
        problems.append(f"its {_RECORD} is too large to be read")
    return _Found(
        restore_id=restore_id,
        held=held,
        has_plan=_PLAN in listed,
        head=head,
        record=record,
        problem="; ".join(problems),
        recorded_at=listed[_RECORD].modified_at if _RECORD in listed else None,
    )


def _read_head(store: ObjectStore, restore_id: str) -> _Head:
    key = layout.plan_key(restore_id)
    head = read_record(
        store, key, lambda body: decode(body, _HEAD), max_bytes=layout.MAX_PLAN_BYTES
    )
    if head.restore_id != restore_id:
        raise RecordUnreadableError(store.uri, key, "it is the plan of another restore")
    return head


def _describe(
    found: _Found, written: Mapping[str, datetime | None], living: LeaseStatus | None
) -> dict[str, Any]:
    held, head, record = found.held, found.head, found.record
    is_living = living is not None and living.lease.restore_id == found.restore_id
    state, note = _state(found, written, living if is_living else None)
    committed = _committed_at(found, written) if state in ("committed", "undone") else None
    return {
        "restore_id": found.restore_id,
        "holder": held.lease.holder if held is not None else "?",
        "dag_run": dag_run_of(held.lease if held is not None else None),
        "began": as_iso(held.claimed_at if held is not None else None),
        "committed": as_iso(committed),
        "state": state,
        "state_file": record.state_file if record is not None else "",
        "base": head.base.name if head is not None else "",
        "strategy": head.strategy.value if head is not None else None,
        "flags": _flags(head.choices) if head is not None else {},
        "to_run": sum(row.action in RUN_ACTIONS for row in head.trials) if head else None,
        "total": len(head.trials) if head is not None else None,
        "note": note,
    }


def _state(
    found: _Found, written: Mapping[str, datetime | None], living: LeaseStatus | None
) -> tuple[str, str]:
    """Return the state of a restore in one word, and a note for people; "" if the word says all."""
    record = found.record
    if found.problem:
        return "unreadable", found.problem
    if record is not None and record.undone_at:
        return "undone", f"undone at {at_second(record.undone_at)}"
    if record is not None and record.is_done:
        return "committed", _committed_note(found, record, written)
    if living is not None and living.is_alive:
        return "running", "it commits now" if record is not None else ""
    if record is not None:
        return "left", "its commit was cut off; the next restore finishes it"
    if not found.has_plan:
        return "empty", "it ended before it had a plan"
    return "left", describe_left(living)


def _committed_note(
    found: _Found, record: CommitRecord, written: Mapping[str, datetime | None]
) -> str:
    if not record.state_file:
        return "no trial had changed"
    if record.state_file not in written:
        return f"its state file {record.state_file} is gone"
    is_unread = found.has_plan and found.head is None
    return "its trials are not counted here: the plans are too large" if is_unread else ""


def _committed_at(found: _Found, written: Mapping[str, datetime | None]) -> datetime | None:
    """Return when a commit was done.

    An undo writes the record again, and a later commit may use the name of the state again.
    """
    record = found.record
    if record is not None and not record.undone_at:
        return written.get(record.state_file) or found.recorded_at
    return found.held.released_at if found.held is not None else None


def _flags(choices: PlanChoices) -> dict[str, Any]:
    """Return the choices of the user: by kind of trial, and all that differ from their defaults."""
    flags, usual = choices.flags, PlanChoices()
    kinds = {each.name: getattr(flags, each.name) for each in fields(flags)}
    chosen: dict[str, Any] = {
        name: kind.value for name, kind in kinds.items() if kind is not ResumeType.SKIP
    }
    for each in fields(choices):
        value = getattr(choices, each.name)
        if each.name not in ("flags", "trials") and value != getattr(usual, each.name):
            chosen[each.name] = value
    if choices.trials:
        chosen["trials"] = len(choices.trials)
    return chosen


def _foresee(store: ObjectStore, found: list[_Found]) -> dict[str, Any]:
    """Return what an undo would do now, or why there can be none."""
    if not any(each.record is not None or each.problem for each in found):
        return _undo(why_not=_NO_COMMIT)
    try:
        foreseen = foresee_undo(store)
    except TuneRestoreError as error:
        return _undo(why_not=str(error).removesuffix(_NOTHING_CHANGED).strip())
    return _undo(foreseen.restore_id, foreseen.deleted, foreseen.newest)


def _undo(
    restore_id: str | None = None, deletes: Iterable[str] = (), newest: str = "", why_not: str = ""
) -> dict[str, Any]:
    return {
        "restore_id": restore_id,
        "deletes": list(deletes),
        "newest": newest,
        "why_not": why_not,
    }
