"""Undo the last commit: delete what it added to the experiment's root, and nothing else.

The commit record is marked first, the state file is deleted second, under a lease whose restore id names
the commit. So if an undo is cut off anywhere, the next undo or restore finishes it, and never undoes the
commit before it, too.
"""

import contextlib
import logging
from dataclasses import dataclass

import msgspec

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    RecordUnreadableError,
    StateUnreadableError,
)
from airflow_tune_restore.experiments.experiment import StateFile
from airflow_tune_restore.experiments.read import NotStartedError, StateReader
from airflow_tune_restore.experiments.state import KEEP_UNTERMINATED
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.kept_lease import keep_lease, let_rest
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.protocol.lease_watch import OnWait, log_wait
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.restore.commit_record import (
    CommitRecord,
    read_commit_record,
    state_exists,
)
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.record_json import encode
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

logger = logging.getLogger(__name__)

TTL_SECONDS = 30.0
_UNDO = "undo-"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneCommit:
    """A commit that was undone, or would be.

    Args:
        state_file: The state file that the commit added.
        deleted: Names of all files that are deleted: the state file, and the states beside it.
        newest: The newest state file afterwards; "" if there is none.
    """

    experiment: str
    restore_id: str
    state_file: str
    deleted: list[str]
    newest: str

    def describe(self, experiment: str) -> str:
        """Return what was undone, in one sentence; `experiment` is its address for the reader."""
        newest = f"{self.newest} is the newest state of {experiment} again"
        return (
            f"The commit of restore {self.restore_id} is undone: {self.state_file} is deleted, "
            f"{newest if self.newest else f'{experiment} has no state'}. Files that its trials wrote "
            "into their own directories stay."
        )


class StateFiles:
    """Finds the newest state file of an experiment. It reads each file once, while it stays as listed."""

    def __init__(self) -> None:
        self._known: dict[tuple[Entry, ...], StateFile] = {}

    def newest(self, store: ObjectStore, entries: list[Entry]) -> StateFile:
        """Return the newest state file by a listing of the root; raises as `read_experiment`."""
        states = tuple(entry for entry in entries if layout.is_state_file(entry.name))
        known = self._known.get(states)
        if known is None:
            known = StateReader(KEEP_UNTERMINATED)(store, entries).file
            if all(entry.etag for entry in states):  # else a file may change, and look the same
                self._known[states] = known
        return known

    def exists(self, store: ObjectStore, entries: list[Entry], record: CommitRecord) -> bool:
        """Whether the state file of a commit is the newest one, or else as `state_exists`."""
        if not any(entry.name == record.state_file for entry in entries):
            return False
        newest = self.newest(store, entries)
        if newest.name != record.state_file:
            return state_exists(store, record)
        return record.sha256 in ("", newest.sha256)


def foresee_undo(store: ObjectStore, files: StateFiles | None = None) -> UndoneCommit:
    """Return what `undo_commit` would do now. Writes nothing. `files` is for the undo that follows.

    Raises:
        InvalidInputError: As `undo_commit`.
        LeaseHeldError: If the lease of a restore is alive, as far as one look shows.
    """
    files = files or StateFiles()
    restore_id = _cut_off(store) or _last_commit(store, files)
    lease.refuse_if_alive(store, f"{_UNDO}{restore_id}")
    record = read_commit_record(store, restore_id)
    if record is None:
        raise _changed_meanwhile(store)
    entries = store.list_dir()
    added = _added_by(entries, record)
    kept = [entry for entry in entries if entry.name not in added]
    return _undone(store, files, restore_id, record, added, kept)


def undo_commit(
    store: ObjectStore,
    *,
    holder: str,
    on_wait: OnWait = log_wait,
    ask_holder: AskHolder | None = None,
    restore_id: str | None = None,
    files: StateFiles | None = None,
) -> UndoneCommit:
    """Undo the last commit. Files that its trials wrote into their own directories stay.

    `holder` is who takes the lease, for people. `on_wait` shows the watch of a restore that looks dead.
    `ask_holder` returns whether a restore that holds the lease is known to have ended.
    `restore_id` is the restore that `foresee_undo` named, if the user was asked; another commit is then
    not undone. `files` is what it has read.

    Raises:
        InvalidInputError: If no commit made the newest state, or something newer was written.
        LeaseHeldError: If a restore is running.
    """
    files = files or StateFiles()
    last = _cut_off(store) or _last_commit(store, files)
    if restore_id not in (None, last):
        raise _changed_meanwhile(store)
    restore_id = last
    undo_id = f"{_UNDO}{restore_id}"
    held = lease.acquire(
        store,
        restore_id=undo_id,
        holder=holder,
        ttl_seconds=TTL_SECONDS,
        watch=lease.refuse_if_alive(store, undo_id, ask_holder=ask_holder),
        on_wait=on_wait,
    )
    with keep_lease(store, undo_id) as held_store:
        let_rest(store)
        try:
            record = _check(store, files, restore_id)
        except InvalidInputError:  # not after other errors: a second undo of it may share the lease
            lease.release(store, held)
            raise
        # from here on the lease is kept if anything goes wrong, so that the next undo finishes this one
        record = _mark(held_store, files, restore_id, record)
        added = _delete_added(held_store, files, record)
    undone = _undone(store, files, restore_id, record, added, store.list_dir())
    lease.release(store, held)
    return undone


def is_undo(restore_id: str) -> bool:
    """Whether a lease was taken for an undo."""
    return restore_id.startswith(_UNDO)


def finish(store: ObjectStore, undo_id: str) -> None:
    """Delete what an undo that died has left, if nothing newer was written. Needs the lease."""
    files = StateFiles()
    if not is_cut_off(store, undo_id, files):
        return
    restore_id = undo_id.removeprefix(_UNDO)
    record = read_commit_record(store, restore_id)
    assert record is not None  # noqa: S101  it was cut off
    deleted = _delete_added(store, files, record)
    done = _undone(store, files, restore_id, record, deleted, store.list_dir())
    logger.warning("An undo that died was finished. %s", done.describe(store.uri))


def is_cut_off(store: ObjectStore, undo_id: str, files: StateFiles | None = None) -> bool:
    """Whether an undo has marked its commit and not deleted it, and could be started now, too."""
    restore_id = undo_id.removeprefix(_UNDO)
    try:
        record = read_commit_record(store, restore_id)
        is_marked = record is not None and record.undone_at and record.sha256
        return bool(is_marked) and restore_id in _makers(store, files or StateFiles())
    except (InvalidInputError, RecordUnreadableError, StateUnreadableError, NotStartedError):
        return False  # something newer was written, or a person is needed


def _delete_added(store: ObjectStore, files: StateFiles, record: CommitRecord) -> list[str]:
    """Delete the files that a commit added, and return their names; none if its state is gone."""
    entries = store.list_dir()
    added = _added_by(entries, record) if files.exists(store, entries, record) else []
    for name in added:
        store.delete(name)
    return added


def _undone(
    store: ObjectStore,
    files: StateFiles,
    restore_id: str,
    record: CommitRecord,
    deleted: list[str],
    kept: list[Entry],
) -> UndoneCommit:
    newest = ""
    with contextlib.suppress(NotStartedError):
        newest = files.newest(store, kept).name
    return UndoneCommit(
        experiment=store.uri,
        restore_id=restore_id,
        state_file=record.state_file,
        deleted=deleted,
        newest=newest,
    )


def _added_by(entries: list[Entry], record: CommitRecord) -> list[str]:
    """Return the files that a commit added, in the order in which they are deleted.

    The searcher's state goes first: alone, it would skip samples.
    """
    session = layout.session_of(record.state_file)
    names = [entry.name for entry in entries]
    beside = [
        name
        for name in names
        if layout.is_state_beside(name) and layout.session_of(name) == session
    ]
    return [*beside, *(name for name in names if name == record.state_file)]


def _cut_off(store: ObjectStore) -> str | None:
    """Return the restore whose undo has begun and was cut off."""
    entries = store.list_dir(layout.LEASE)
    current = lease_objects.newest_claim(store, entries)
    if current is None or lease_objects.is_released(entries, current.epoch):
        return None
    if not is_undo(current.restore_id):
        return None
    return current.restore_id.removeprefix(_UNDO)


def _last_commit(store: ObjectStore, files: StateFiles) -> str:
    """Return the restore that made the newest state. Refuse if something newer was written."""
    return _makers(store, files)[-1]


def _makers(store: ObjectStore, files: StateFiles) -> list[str]:
    """Return the restores that may have made the newest state, the likeliest last; at least one."""
    entries = store.list_dir()
    names = [
        entry.name for entry in entries if not entry.is_dir and layout.is_state_file(entry.name)
    ]
    newest = files.newest(store, entries)
    if not layout.is_committed_state(newest.name):
        raise InvalidInputError(
            f"No commit can be undone: the driver of {store.uri} wrote its newest state, "
            f"{newest.name}. Nothing was changed."
        )
    if max(names) != newest.name:
        raise InvalidInputError(
            f"{newest.name} cannot be undone: {max(names)} was written later. Nothing was changed."
        )
    begun = _records(store)
    records = {restore_id: record for restore_id, record in begun.items() if record.is_done}
    made = [
        restore_id
        for restore_id, record in records.items()
        if record.state_file == newest.name and record.sha256 in ("", newest.sha256)
    ]
    made.sort(key=lambda restore_id: _likelihood(records[restore_id]))
    if not made or records[made[-1]].undone_at:
        _refuse_if_unfinished(store, newest, begun)
    if not made:
        raise InvalidInputError(
            f"{newest.name} cannot be undone: no recorded commit wrote this content. Nothing was changed."
        )
    _refuse_if_used(store, newest, records)
    return made


def _refuse_if_unfinished(
    store: ObjectStore, newest: StateFile, begun: dict[str, CommitRecord]
) -> None:
    """Refuse if the commit that made the state has not ended."""
    for restore_id, record in begun.items():
        if not record.is_done and record.state_file == newest.name:
            raise InvalidInputError(
                f"{newest.name} cannot be undone: restore {restore_id} has not finished its commit. The "
                f"next restore of {store.uri} finishes it; then undo it. Nothing was changed."
            )


def _likelihood(record: CommitRecord) -> tuple[bool, bool, str]:
    """Return a sort key: of several commits that may have made a state, the likeliest is the last.

    Records of older versions have no hash. A commit may make the same bytes as one that was undone
    before it, if the store's clock is behind the driver's: then both have the same start time.
    """
    return (bool(record.sha256), not record.undone_at, record.undone_at)


def _refuse_if_used(
    store: ObjectStore, newest: StateFile, records: dict[str, CommitRecord]
) -> None:
    """Refuse if a restore started from the state and is not committed, and its trials have run."""
    for restore_id in list_restores(store):
        if restore_id in records:
            continue
        try:
            base = read_plan(store, restore_id).base
        except (KeyNotFoundError, RecordUnreadableError):
            continue
        if base.name == newest.name and RestoreRecords(store, restore_id).started():
            raise InvalidInputError(
                f"{newest.name} cannot be undone: restore {restore_id} was started from it and is not "
                f"committed. The next restore of {store.uri} commits it first. Nothing was changed."
            )


def _check(store: ObjectStore, files: StateFiles, restore_id: str) -> CommitRecord:
    """Check again under the lease, when no other restore or undo can write."""
    record = read_commit_record(store, restore_id)
    is_marked = record is not None and record.undone_at
    if record is not None and is_marked and not files.exists(store, store.list_dir(), record):
        return record  # an earlier undo was cut off before it released the lease
    if record is None or _last_commit(store, files) != restore_id:
        raise _changed_meanwhile(store)
    return record


def _changed_meanwhile(store: ObjectStore) -> InvalidInputError:
    return InvalidInputError(
        f"{store.uri} was written to before its commit could be undone. Nothing was changed."
    )


def _mark(
    store: ObjectStore, files: StateFiles, restore_id: str, record: CommitRecord
) -> CommitRecord:
    """Record that the commit is being undone, and its hash: a later commit may use its name."""
    if record.undone_at:
        return record
    marked = msgspec.structs.replace(
        record,
        undone_at=store.now().isoformat(),
        sha256=record.sha256 or files.newest(store, store.list_dir()).sha256,
    )
    store.put(layout.commit_key(restore_id), encode(marked))
    return marked


def _records(store: ObjectStore) -> dict[str, CommitRecord]:
    """Return the records of all commits that have begun, by restore."""

    def read(restore_id: str) -> CommitRecord | None:
        try:
            record = read_commit_record(store, restore_id)
        except RecordUnreadableError:
            return None
        # without attempts: there may be thousands
        return record and msgspec.structs.replace(record, attempts={})

    restores = list_restores(store)
    found = zip(restores, for_each(read, restores), strict=True)
    return {restore_id: record for restore_id, record in found if record is not None}


def list_restores(store: ObjectStore) -> list[str]:
    """Return the ids of all restores and sweeps that left anything, in no useful order."""
    entries = store.list_dir(layout.ROOT)
    names = [(e.name, layout.unsegment(e.name)) for e in entries if e.is_dir and e.name != "lease"]
    # a directory that is not named by its id is not that of a restore
    return [name for at, name in names if is_safe_name(name) and layout.segment(name) == at]
