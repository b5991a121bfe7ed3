"""What is written down of a commit before it is made, and whether what it made still stands."""

import hashlib

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, UncommittableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.numbers import is_amount
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.restore.record_json import Count, decode
from airflow_tune_restore.storage.base import ObjectStore


class CommitRecord(msgspec.Struct, frozen=True):
    """Written before the state file, so that a commit that was cut off makes the same bytes again."""

    state_file: str  # "" once it is known that nothing has changed
    start_time: float
    attempts: dict[
        str, Count
    ]  # by trial id; WHOLE_EXPERIMENT for the one run of a whole experiment
    is_done: bool = False  # set at the end: with nothing changed there is no state file to tell
    sha256: str = ""  # of the state file, set at the end; "" if there is none, or by older versions
    undone_at: str = ""  # when somebody set out to take it back, ISO 8601 UTC
    schema: Count = 1


def read_commit_record(store: ObjectStore, restore_id: str) -> CommitRecord | None:
    """Return what was written down of a commit; None if there was none."""
    try:
        return read_record(
            store, layout.commit_key(restore_id), _decode_record, max_bytes=layout.MAX_PLAN_BYTES
        )
    except KeyNotFoundError:
        return None


def _decode_record(body: bytes) -> CommitRecord:
    record: CommitRecord = decode(body, CommitRecord)
    record = msgspec.structs.replace(record, undone_at=printable(record.undone_at))
    name = record.state_file
    if name and not (layout.is_committed_state(name) and is_safe_name(name)):
        raise ValueError(f"{name[:80]!r} is no state file that a commit makes")
    if not is_amount(record.start_time):
        raise ValueError("its start is no time")
    numbers = (layout.attempt_number(f"{number:06d}") for number in record.attempts.values())
    if None in numbers or 0 in record.attempts.values():
        raise ValueError("it holds what is no number of an attempt")
    return record


def name_commit(store: ObjectStore, *, continues_search: bool) -> str:
    """Return the name of the state file that a commit makes now. Writes nothing.

    It sorts after every other, for Ray takes the last name for the newest state; so a file of any name
    decides, and what its name leads to must be a name that readers of ours take, too.

    Args:
        store: Rooted at the experiment directory.
        continues_search: Whether the searcher's state goes with it, found by the session in the name.

    Raises:
        UncommittableError: If there is no such name.
    """
    names = [e.name for e in store.list_dir() if not e.is_dir and layout.is_state_file(e.name)]
    name = layout.committed_state_name(names, store.now())
    if why := _why_unfit(name, names, continues_search=continues_search):
        raise UncommittableError(store.uri, max(names), why)
    return name


def _why_unfit(name: str, existing: list[str], *, continues_search: bool) -> str:
    if not is_safe_name(name):
        return "no name that can be written and shown sorts after it"
    if not layout.is_committed_state(name) or name <= max(existing, default=""):
        return "it holds the last number that a commit can have"
    if continues_search and layout.session_of(name) is None:
        return "it names no driver session, under which the searcher's state would be found again"
    return ""


def stands(store: ObjectStore, record: CommitRecord) -> bool:
    """Whether the state file that this commit made is there; the name alone may be a later one's."""
    found = committed_sha256(store, record)
    return found != "" and record.sha256 in ("", found)


def committed_sha256(store: ObjectStore, record: CommitRecord) -> str:
    """Return the hash of the state file that is there under the name of this commit; "" if none is."""
    if not is_in_root(store, record.state_file):
        return ""
    return hashlib.sha256(
        store.get(record.state_file, max_bytes=layout.MAX_STATE_BYTES)
    ).hexdigest()


def is_in_root(store: ObjectStore, name: str) -> bool:
    """Whether there is an object of this name in the experiment's root."""
    return any(entry.name == name and not entry.is_dir for entry in store.list_dir())
