"""An undo deletes the last commit and nothing else, wherever it is cut off."""

import hashlib
import json

import pytest

from airflow_tune_restore.exceptions import (
    CommitUndoneError,
    InvalidInputError,
    LeaseHeldError,
    StorageError,
)
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import beat, leave_attempt, night, plan_night, start_night

ROWS = [
    make_row("done", last_result={"training_iteration": 4}, last_result_time=4.0),
    make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 2}),
]
FIRST, SECOND = (f"experiment_state-2026-11-23_10-00-00_r00000{n}.json" for n in (1, 2))


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else LocalStore(tmp_path)
    made.put(STATE_NAME, make_state(ROWS))
    return made


def objects(store, path="") -> dict[str, bytes]:
    """Return every object of a store but those of leases."""
    found: dict[str, bytes] = {}
    for entry in store.list_dir(path):
        key = f"{path}/{entry.name}".lstrip("/")
        if entry.is_dir and key != layout.LEASE:
            found |= objects(store, key)
        elif not entry.is_dir:
            found[key] = store.get(key)
    return found


def newest(store) -> str:
    return read_experiment(store).state_file.name


def test_the_experiment_is_read_as_before_the_commit(store):
    before, health = objects(store), scan(store)[0].health
    night(store, "r1", result="finished", iteration=6)
    assert newest(store) == FIRST
    undone = undo_commit(store, holder="test")
    assert (undone.restore_id, undone.state_file, undone.newest) == ("r1", FIRST, STATE_NAME)
    after = objects(store)
    assert {key: body for key, body in after.items() if not key.startswith(layout.ROOT)} == before
    assert scan(store)[0].health == health
    assert [trial.trial_id for trial in plan_night(store).to_run] == ["bad"]


def test_only_the_state_file_goes_and_only_the_record_changes(store):
    night(store, "r1")
    before = objects(store)
    undo_commit(store, holder="test")
    after = objects(store)
    assert set(before) - set(after) == {FIRST}
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {layout.commit_key("r1")}


def test_a_second_undo_takes_back_the_commit_before_and_a_third_says_there_is_none(store):
    night(store, "r1")
    night(store, "r2", iteration=4)
    assert undo_commit(store, holder="test").restore_id == "r2"
    assert newest(store) == FIRST
    assert undo_commit(store, holder="test").restore_id == "r1"
    assert newest(store) == STATE_NAME
    with pytest.raises(InvalidInputError, match=r"No commit can be undone: the driver of .* wrote"):
        undo_commit(store, holder="test")


def test_committing_again_does_not_put_it_back_and_says_so(store):
    night(store, "r1")
    undo_commit(store, holder="test")
    with pytest.raises(CommitUndoneError, match=r"r1 was undone at 20.*not done again"):
        commit_restore(store, "r1")
    assert newest(store) == STATE_NAME


def test_the_next_commit_may_have_the_same_name_and_is_another(store):
    night(store, "r1")
    undo_commit(store, holder="test")
    night(store, "r2", iteration=5)
    assert newest(store) == FIRST
    with pytest.raises(CommitUndoneError):
        commit_restore(store, "r1")
    assert undo_commit(store, holder="test").restore_id == "r2"


@pytest.mark.parametrize("again", ["r0", "r2"])
def test_a_commit_that_is_the_same_as_one_undone_before_is_undone(store, again):
    """The store's clock is behind the driver's, so both commits make the same bytes under one name."""
    store.put(STATE_NAME, make_state(ROWS, start_time=4e9))
    for restore_id in ("r1", again):
        plan = start_night(store, restore_id)
        leave_attempt(store, plan, "bad", make_row("bad", status="TERMINATED"))
        commit_restore(store, restore_id)
        committed = store.get(FIRST)
        assert undo_commit(store, holder="test").restore_id == restore_id
    records = [json.loads(store.get(layout.commit_key(each))) for each in ("r1", again)]
    assert {record["sha256"] for record in records} == {hashlib.sha256(committed).hexdigest()}
    assert all(record["undone_at"] for record in records)


def test_a_later_session_of_its_own_driver_stops_the_undo(store):
    night(store, "r1")
    later = "experiment_state-2026-11-24_10-00-00.json"
    store.put(later, make_state(ROWS, start_time=9e9))
    before = objects(store)
    with pytest.raises(InvalidInputError, match=later):
        undo_commit(store, holder="test")
    assert objects(store) == before


def test_a_later_file_that_cannot_be_read_stops_it_too(store):
    night(store, "r1")
    later = "experiment_state-2026-11-24_10-00-00.json"
    store.put(later, b"{")
    with pytest.raises(InvalidInputError, match=f"{later} was written later"):
        undo_commit(store, holder="test")
    assert newest(store) == FIRST


def test_a_session_in_another_time_zone_stops_it_too(store):
    night(store, "r1")
    later = "experiment_state-2026-11-23_09-00-00.json"
    store.put(later, make_state(ROWS, start_time=9e9))
    with pytest.raises(InvalidInputError, match=later):
        undo_commit(store, holder="test")


def test_a_state_file_that_somebody_changed_is_not_deleted(store):
    night(store, "r1")
    store.put(FIRST, make_state(ROWS, start_time=8e9))
    with pytest.raises(InvalidInputError, match="no recorded commit wrote this content"):
        undo_commit(store, holder="test")
    assert newest(store) == FIRST


def test_a_restore_at_work_stops_it(store):
    night(store, "r1")
    start_night(store, "r2")
    with pytest.raises((LeaseHeldError, InvalidInputError), match="r2"):
        undo_commit(store, holder="test")
    assert newest(store) == FIRST


def test_a_restore_that_was_begun_and_never_committed_stops_it(store):
    night(store, "r1")
    plan = start_night(store, "r2")
    beat(store, leave_attempt(store, plan, "bad", result="failed"))
    lease.release(store, lease.check_held(store, "r2"))
    with pytest.raises(InvalidInputError, match="r2 was started from it and is not committed"):
        undo_commit(store, holder="test")


def test_a_commit_that_changed_nothing_is_nothing_to_undo(store):
    night(store, "r1")
    start_night(store, "r2")
    assert commit_restore(store, "r2").state_file is None
    assert undo_commit(store, holder="test").restore_id == "r1"


def test_a_commit_of_an_older_release_can_be_undone(store):
    night(store, "r1")
    record = json.loads(store.get(layout.commit_key("r1")))
    del record["sha256"], record["undone_at"]
    store.put(layout.commit_key("r1"), json.dumps(record).encode())
    assert undo_commit(store, holder="test").restore_id == "r1"
    with pytest.raises(CommitUndoneError):
        commit_restore(store, "r1")


def test_records_that_make_no_sense_are_passed_over(store):
    night(store, "r1")
    store.put(layout.commit_key("x"), b"{")
    store.put(layout.commit_key("y"), b'{"state_file": 1}')
    store.put(layout.plan_key("z"), b"[]")
    assert undo_commit(store, holder="test").restore_id == "r1"


class CutOff(Exception):
    """The process is gone."""


class Cutting:
    """A store whose process dies before or after its n-th write."""

    def __init__(self, store, writes: int, *, after: bool) -> None:
        self._store, self._left, self._after, self._dead = store, writes, after, False

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if name not in ("put", "create", "delete"):
            return method

        def write(*args):
            if self._dead:
                raise CutOff
            self._left -= 1
            if self._left == 0:
                self._dead = True
                if self._after:
                    method(*args)
                raise CutOff
            return method(*args)

        return write


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("writes", [1, 2, 3, 4])
def test_an_undo_that_was_cut_off_is_finished_by_the_next(store, writes, after, monkeypatch):
    monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)  # it was silent for its TTL
    night(store, "r1")
    night(store, "r2", iteration=4)
    with pytest.raises(CutOff):  # claim, mark, delete, release
        undo_commit(Cutting(store, writes, after=after), holder="test")
    assert newest(store) in (FIRST, SECOND)
    if writes == 4 and after:
        return  # it had ended
    assert undo_commit(store, holder="again").restore_id == "r2"
    assert newest(store) == FIRST
    with pytest.raises(CommitUndoneError):
        commit_restore(store, "r2")
    night(store, "r3", iteration=5)
    assert newest(store) == SECOND


def test_an_undo_that_was_cut_off_and_overtaken_by_a_restore_is_void(store, monkeypatch):
    monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)
    night(store, "r1")
    with pytest.raises(CutOff):
        undo_commit(Cutting(store, 3, after=False), holder="test")  # marked, not deleted
    summary = night(store, "r2", iteration=5)
    assert commit_restore(store, "r1").state_file == FIRST
    assert undo_commit(store, holder="test").state_file == summary.state_file == SECOND
    assert undo_commit(store, holder="test").state_file == FIRST


@pytest.mark.parametrize("error", [InvalidInputError, StorageError])
def test_a_refused_undo_leaves_the_lease_free_and_a_failed_one_to_the_next_try(store, error):
    night(store, "r1")
    real, checks = store.get, []

    class Failing(Cutting):
        def get(self, key, **limits):
            if key == layout.commit_key("r1"):
                checks.append(key)
                if len(checks) == 2:
                    raise error("the store is away for a moment")
            return real(key, **limits)

    with pytest.raises(error):
        undo_commit(Failing(store, 99, after=False), holder="test")
    if error is StorageError:
        with pytest.raises(LeaseHeldError):
            start_night(store, "r2")
        undo_commit(store, holder="test")
    start_night(store, "r2")
