"""Two tries of one task share a lease, and one of them may freeze anywhere: neither spoils anything."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from airflow_tune_restore.cli.restore import _Restore
from airflow_tune_restore.exceptions import (
    InvalidInputError,
    LeaseHeldError,
    LeaseLostError,
    StateChangedError,
    StorageError,
)
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.kept_lease import let_rest
from airflow_tune_restore.protocol.lease_objects import LeaseStatus
from airflow_tune_restore.protocol.lease_watch import KNOWN_DEAD_SECONDS
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.restore import abandoned, commit, undo
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage import in_flight
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import beat, leave_attempt, night, start_night
from tests.support.waiting import set_time

ROWS = [
    make_row("a", status="ERROR", error=True, last_result={"training_iteration": 2}),
    make_row("b", status="ERROR", error=True, last_result={"training_iteration": 2}),
]
OPTIONS = PrepareOptions(
    choices=PlanChoices(flags=ResumeFlags.from_flags(resume_errored=True)),
    stale_after=timedelta(0),
)
FIRST = "experiment_state-2026-11-23_10-00-00_r000001.json"
BEGAN = datetime(2026, 11, 29, tzinfo=UTC)


class Interrupted(MemoryStore):
    """Something happens before or after one request: the first one that fits."""

    waiting = None

    def before(self, verb, key, then):
        self.waiting = (verb, key, then, "before")

    def after(self, verb, key, then):
        self.waiting = (verb, key, then, "after")

    def _carry_out(self, verb, key, request):
        fits = self.waiting and self.waiting[0] == verb and key.endswith(self.waiting[1])
        if not fits:
            return request()
        (_, _, then, when), self.waiting = self.waiting, None
        if when == "before":
            then()
            return request()
        answer = request()
        then()
        return answer

    def put(self, key, body):
        return self._carry_out("put", key, lambda: MemoryStore.put(self, key, body))

    def get(self, key, **options):
        return self._carry_out("get", key, lambda: MemoryStore.get(self, key, **options))

    def create(self, key, body):
        return self._carry_out("create", key, lambda: MemoryStore.create(self, key, body))

    def delete(self, key):
        return self._carry_out("delete", key, lambda: MemoryStore.delete(self, key))

    def list_dir(self, path=""):
        return self._carry_out("list", path, lambda: MemoryStore.list_dir(self, path))


def refuse():
    raise StorageError("503 SlowDown")


@pytest.fixture
def now(monkeypatch):
    """The monotonic clock of all processes, and how it moves."""
    made = [1000.0]
    set_time(monkeypatch, "monotonic", lambda: made[0])
    set_time(monkeypatch, "sleep", lambda seconds: made.__setitem__(0, made[0] + seconds))
    return made


@pytest.fixture
def store(now):
    made = Interrupted(clock=lambda: BEGAN + timedelta(seconds=now[0]))
    made.put(STATE_NAME, make_state(ROWS))
    return made


@pytest.fixture
def _silent(monkeypatch):
    """Every holder was watched for its TTL."""
    monkeypatch.setattr(LeaseStatus, "is_alive", False)
    monkeypatch.setattr(lease.Watch, "left", lambda *_arguments: 0.0)


def start(store, restore_id):
    prepared = prepare_restore(store, restore_id, OPTIONS)
    assert isinstance(prepared, PreparedRestore), prepared
    return start_restore(prepared, holder=restore_id, ttl_seconds=60)[0]


def run_all(store, plan, *trial_ids, **ends):
    for trial_id in trial_ids or ("a", "b"):
        leave_attempt(store, plan, trial_id, **ends)


def files(store):
    return [entry.name for entry in store.list_dir() if not entry.is_dir]


def statuses(store):
    return {trial.trial_id: trial.status for trial in read_experiment(store).trials}


@pytest.mark.usefixtures("_silent")
def test_a_plan_that_thaws_writes_nothing_under_a_later_lease_of_its_own_id(
    store, now, monkeypatch
):
    monkeypatch.setattr(in_flight, "IN_FLIGHT", 1)  # all threads of a process freeze together
    seeds = []

    def meanwhile():
        now[0] += 5000.0
        other = start(store, "r2")
        run_all(store, other, result="interrupted", iteration=6)
        assert commit_restore(store, "r2").state_file == FIRST
        again = start(store, "r1")  # its DAG run was cleared
        assert again.base.name == FIRST
        seeds.extend(store.get(layout.seed_key("r1", trial)) for trial in "ab")

    store.after("put", "seed.json", meanwhile)
    with pytest.raises(LeaseLostError, match="taken again"):
        start(store, "r1")
    assert [store.get(layout.seed_key("r1", trial)) for trial in "ab"] == seeds


def test_a_second_commit_does_not_bring_back_what_was_undone(store, now, monkeypatch):
    """The first one has released the lease, and the second one has looked at it just before."""
    monkeypatch.setattr(undo, "let_rest", let_rest)
    run_all(store, start(store, "r1"))

    def meanwhile():
        now[0] += 5.0
        commit_restore(store, "r1")
        undone.append(undo_commit(store, holder="a person"))
        assert FIRST not in files(store)

    undone = []
    store.after(
        "create",
        "r1/commit.json",
        lambda: store.after("get", "attempts/000001/state.json", meanwhile),
    )
    with pytest.raises(LeaseLostError):
        commit_restore(store, "r1")
    assert undone
    assert FIRST not in files(store)
    assert json.loads(store.get(layout.commit_key("r1")))["undone_at"]


def test_an_undo_long_after_a_commit_does_not_wait(store, now, monkeypatch):
    monkeypatch.setattr(undo, "let_rest", let_rest)
    night(store, "r1", trial_id="a")
    now[0] += 60.0
    before = now[0]
    undo_commit(store, holder="a person")
    assert now[0] == before


def test_a_plan_that_freezes_after_it_failed_does_not_release_the_lease_of_a_second_try(store, now):
    def second_try():
        now[0] += 600.0
        assert start(store, "r1")

    def fail():
        store.after("list", ".tune_restore/r1", second_try)
        refuse()

    store.before("put", "seed.json", fail)
    with pytest.raises(StorageError, match="503"):
        start(store, "r1")
    assert lease.check_held(store, "r1")


def test_a_second_undo_that_fails_leaves_the_lease_to_the_first(store, now, monkeypatch):
    night(store, "r1", trial_id="a", result="interrupted", iteration=4)
    check = undo._check

    def check_and_freeze(*arguments):
        found = check(*arguments)
        monkeypatch.setattr(undo, "_check", lambda *_arguments: refuse())
        with pytest.raises(StorageError):
            undo_commit(store, holder="second")
        monkeypatch.setattr(undo, "_check", check)
        with pytest.raises(LeaseHeldError):
            start(store, "r2")
        return found

    monkeypatch.setattr(undo, "_check", check_and_freeze)
    undo_commit(store, holder="first")
    assert FIRST not in files(store)
    assert start(store, "r2").base.name == STATE_NAME


@pytest.mark.parametrize("freezes_at", ["the record", "the choice of attempts"])
def test_a_commit_that_freezes_takes_the_attempt_that_ran_meanwhile(store, now, freezes_at):
    plan = start(store, "r1")
    leave_attempt(store, plan, "b")
    beat(store, leave_attempt(store, plan, "a", result="interrupted", iteration=3))

    def meanwhile():
        now[0] += 600.0  # Airflow takes the commit for lost, and the trial is cleared
        beat(store, leave_attempt(store, plan, "a", iteration=9))

    if freezes_at == "the record":
        store.before("create", "r1/commit.json", meanwhile)
    else:
        store.before("get", "trials/a/attempts/000001/outcome.json", meanwhile)
    commit_restore(store, "r1")
    assert statuses(store) == {"a": "TERMINATED", "b": "TERMINATED"}


@pytest.mark.usefixtures("_silent")
def test_a_commit_of_a_dead_restore_that_another_try_began_and_left_is_finished(store, monkeypatch):
    """That try created the record and the state after this one had seen neither, and died."""
    run_all(store, start(store, "r1"))
    begin = commit._begin

    def begin_late(held, plan, record):
        monkeypatch.setattr(commit, "_begin", begin)
        store.before("put", "r1/commit.json", refuse)
        with pytest.raises(StorageError):
            commit.write_commit(held, plan, record, RestoreRecords(store, "r1"))
        return begin(held, plan, record)

    monkeypatch.setattr(commit, "_begin", begin_late)
    assert start(store, "r2") is None  # nothing is left to do
    record = read_commit_record(store, "r1")
    assert (record.is_done, record.state_file) == (True, FIRST)
    undo_commit(store, holder="a person")
    assert FIRST not in files(store)


def test_a_claim_after_a_freeze_waits_until_a_holder_that_thawed_has_looked(
    store, now, monkeypatch
):
    """The taker froze between its last look at the holder and its claim."""
    monkeypatch.setattr(LeaseStatus, "is_alive", False)
    held = lease.acquire(store, restore_id="r1", holder="test", ttl_seconds=60)
    store.before("create", ".claim.json", lambda: lease.renew(store, held))
    before = now[0]
    assert lease.acquire(store, restore_id="r2", holder="test", ttl_seconds=60).epoch == 2
    assert now[0] >= before + 60 + KNOWN_DEAD_SECONDS


@pytest.mark.usefixtures("_silent")
def test_a_commit_that_has_not_ended_is_not_undone_by_the_record_of_another(store):
    """Both make the same bytes: the store's clock is behind the driver's."""
    store.put(STATE_NAME, make_state(ROWS, start_time=4e9))
    for restore_id in ("r1", "r2"):
        plan = start(store, restore_id)
        for trial in "ab":
            leave_attempt(store, plan, trial, make_row(trial, status="TERMINATED"))
        if restore_id == "r1":
            commit_restore(store, "r1")
            undo_commit(store, holder="a person")
    store.after("create", FIRST, refuse)
    with pytest.raises(StorageError):
        commit_restore(store, "r2")
    with pytest.raises(InvalidInputError, match="restore r2 has not finished its commit"):
        undo_commit(store, holder="a person")
    assert FIRST in files(store)


@pytest.mark.usefixtures("_silent")
def test_an_undo_that_was_cut_off_is_finished_though_an_older_one_has_a_later_time(store, now):
    store.put(STATE_NAME, make_state(ROWS, start_time=4e9))
    for restore_id in ("r1", "r2"):
        plan = start(store, restore_id)
        for trial in "ab":
            leave_attempt(store, plan, trial, make_row(trial, status="TERMINATED"))
        commit_restore(store, restore_id)
        if restore_id == "r1":
            undo_commit(store, holder="a person")
    now[0] -= 300.0  # another machine
    store.before("delete", FIRST, refuse)
    with pytest.raises(StorageError):
        undo_commit(store, holder="a person")
    assert FIRST in files(store)
    assert abandoned.has_left_work(store, "r3")
    assert start(store, "r3").base.name == STATE_NAME


def test_ctrl_c_right_after_the_plan_stops_no_later_undo(store):
    night(store, "r1", trial_id="a", result="interrupted")

    def stop():
        raise KeyboardInterrupt

    prepared = prepare_restore(store, "r2", OPTIONS)
    store.after("create", "r2/plan.json", stop)
    shell = _Restore(store, None, None, 1, None)
    with pytest.raises(KeyboardInterrupt):
        shell.carry_out(prepared)
    for restore_id in ("r3", "r4"):
        night(store, restore_id, trial_id="a", result="interrupted", iteration=5)
    undone = [undo_commit(store, holder="a person").restore_id for _ in range(3)]
    assert undone == ["r4", "r3", "r1"]


@pytest.mark.usefixtures("_silent")
def test_a_dag_run_whose_restore_no_longer_fitted_starts_another_one_when_it_is_cleared(store):
    start(store, "r1")
    store.put(STATE_NAME.replace("10-00-00", "11-00-00"), make_state(ROWS, start_time=2000.0))
    with pytest.raises(StateChangedError):
        commit_restore(store, "r1")
    run_all(store, start(store, "r2"), result="interrupted")
    commit_restore(store, "r2")
    assert start(store, "r1").restore_id == "r1-2"


def test_a_lease_that_is_held_is_reported_whatever_the_store_answers_after_that(store):
    prepared = prepare_restore(store, "r1", OPTIONS)
    start_night(store, "r2")
    store.before("list", ".tune_restore/r1", refuse)
    with pytest.raises(LeaseHeldError):
        start_restore(prepared, holder="r1", ttl_seconds=60)
