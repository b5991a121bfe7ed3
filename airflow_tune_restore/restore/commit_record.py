"""The record of a commit, and whether the state file of the commit still exists."""

import hashlib

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, UncommittableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.numbers import is_amount
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.restore.record_json import Count, decode
from airflow_tune_restore.storage.base import Entry, ObjectStore


class CommitRecord(msgspec.Struct, frozen=True):
    """Written before the state file, so that a commit that was cut off makes the same bytes again.

    Runners of the restore that see it end.

    Args:
        state_file: Name of the state file; "" if no row changed.
        start_time: `stats.start_time` of the state, in seconds since the epoch.
        attempts: The attempts that are committed, by trial id or `layout.WHOLE_EXPERIMENT`; set at the
            end, by older versions at the begin.
        is_done: Set at the end. Without a changed row no state file shows it.
        sha256: Of the state file, set at the end; "" if there is none, or by older versions.
        undone_at: When an undo began, ISO 8601 UTC.
    """

    state_file: str
    start_time: float
    attempts: dict[str, Count]
    is_done: bool = False
    sha256: str = ""
    undone_at: str = ""
    schema: Count = 1


_RECORD = msgspec.json.Decoder(CommitRecord)


def read_commit_record(store: ObjectStore, restore_id: str) -> CommitRecord | None:
    """Return the record of a commit; None if it has not begun."""
    try:
        return read_record(
            store, layout.commit_key(restore_id), _decode_record, max_bytes=layout.MAX_PLAN_BYTES
        )
    except KeyNotFoundError:
        return None


def _decode_record(body: bytes) -> CommitRecord:
    record = decode(body, _RECORD)
    record = msgspec.structs.replace(record, undone_at=printable(record.undone_at))
    name = record.state_file
    if name and not (layout.is_committed_state(name) and is_safe_name(name)):
        raise ValueError(f"{name[:80]!r} is not the name of a committed state")
    if not is_amount(record.start_time):
        raise ValueError("its start_time is not valid")
    numbers = (layout.attempt_number(f"{number:06d}") for number in record.attempts.values())
    if None in numbers or 0 in record.attempts.values():
        raise ValueError("one of its attempt numbers is not valid")
    return record


def name_commit(store: ObjectStore, entries: list[Entry], *, continues_search: bool) -> str:
    """Return the name of the state file that a commit makes now, by a listing of the root.

    It sorts after every other name, because Ray reads the last one as the newest. With
    `continues_search` the searcher's state is put beside it, under the session in its name.

    Raises:
        UncommittableError: If no name can be used: any file name in the experiment may decide it, so
            it may be one that this package refuses to read.
    """
    names = [e.name for e in entries if not e.is_dir and layout.is_state_file(e.name)]
    name = layout.committed_state_name(names, store.now)
    if why := _why_unfit(name, names, continues_search=continues_search):
        raise UncommittableError(store.uri, max(names), why)
    return name


def _why_unfit(name: str, existing: list[str], *, continues_search: bool) -> str:
    if not is_safe_name(name):
        return "no valid name sorts after it"
    if not layout.is_committed_state(name) or name <= max(existing, default=""):
        return "it has the last number that a commit can have"
    if continues_search and layout.session_of(name) is None:
        return "its name has no driver session, which the name of the searcher's state needs"
    return ""


def state_exists(store: ObjectStore, record: CommitRecord) -> bool:
    """Whether the state file of this commit exists. A later commit may have a file of the same name."""
    found = committed_sha256(store, record)
    return found != "" and record.sha256 in ("", found)


def committed_sha256(store: ObjectStore, record: CommitRecord) -> str:
    """Return the hash of the file with the name of this commit's state; "" if it does not exist."""
    if not is_in_root(store, record.state_file):
        return ""
    body = store.get(record.state_file, max_bytes=layout.MAX_STATE_BYTES)
    return hashlib.sha256(body).hexdigest()


def is_in_root(store: ObjectStore, name: str) -> bool:
    """Whether an object of this name exists in the experiment's root."""
    return any(entry.name == name and not entry.is_dir for entry in store.list_dir())
