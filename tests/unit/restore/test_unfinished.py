"""What a process left unfinished, whatever it was doing, is finished by the next restore."""

import json
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import KeyNotFoundError, StorageError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.lease_objects import LeaseStatus
from airflow_tune_restore.restore import abandoned, commit, undo
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import beat, leave_attempt, night, start_night

ROWS = [
    make_row("done", last_result={"training_iteration": 4}, last_result_time=4.0),
    make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 2}),
]
OPTIONS = PrepareOptions(
    choices=PlanChoices(flags=ResumeFlags.from_flags(resume_errored=True)),
    stale_after=timedelta(0),
)
FIRST = "experiment_state-2026-11-23_10-00-00_r000001.json"


class Dying(MemoryStore):
    """Fails at the first write of a key that ends like this."""

    dies_at = ""

    def put(self, key, body):
        self._die(key)
        super().put(key, body)

    def delete(self, key):
        self._die(key)
        super().delete(key)

    def _die(self, key):
        if self.dies_at and key.endswith(self.dies_at):
            self.dies_at = ""
            raise StorageError(f"{key}: 503 SlowDown")


@pytest.fixture
def store():
    made = Dying()
    made.put(STATE_NAME, make_state(ROWS))
    return made


@pytest.fixture
def _silent(monkeypatch):
    """Every holder was watched for its TTL."""
    monkeypatch.setattr(LeaseStatus, "is_alive", False)
    monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)


def start(store, restore_id):
    prepared = prepare_restore(store, restore_id, OPTIONS)
    assert isinstance(prepared, PreparedRestore), prepared
    return start_restore(prepared, holder=restore_id, ttl_seconds=60)


def refuse(*_arguments, **_options):
    raise StorageError("503 SlowDown")


def statuses(store):
    return [(trial.trial_id, trial.status) for trial in read_experiment(store).trials]


@pytest.mark.parametrize("fails_in", ["its plan", "the settlement before it"])
def test_a_second_try_of_a_plan_that_fails_leaves_the_lease_to_the_first(
    store, monkeypatch, fails_in
):
    prepared = prepare_restore(store, "r1", OPTIONS)
    first, _ = start_restore(prepared, holder="first", ttl_seconds=60)
    if fails_in == "its plan":
        store.dies_at = "seed.json"
    else:
        monkeypatch.setattr(abandoned, "_left_behind", refuse)
    with pytest.raises(StorageError):
        start_restore(prepared, holder="second", ttl_seconds=60)
    assert lease.check_held(store, "r1")
    leave_attempt(store, first, "bad")
    assert commit_restore(store, "r1").state_file == FIRST


@pytest.mark.parametrize("fails_in", ["its plan", "the settlement before it"])
def test_a_plan_that_fails_before_there_is_one_releases_the_lease(store, monkeypatch, fails_in):
    if fails_in == "its plan":
        store.dies_at = "seed.json"
    else:
        monkeypatch.setattr(abandoned, "_left_behind", refuse)
    with pytest.raises(StorageError):
        start(store, "r1")
    assert lease.unreleased(store, but="") == []


def test_a_try_that_comes_back_writes_no_seed_again(store):
    start(store, "r1")
    seed = layout.seed_key("r1", "bad")
    store.put(seed, b"as its runner has it")
    start(store, "r1")
    assert store.get(seed) == b"as its runner has it"


@pytest.mark.parametrize("has_run", [True, False])
def test_a_restore_that_was_released_without_a_commit_is_committed_if_it_has_run(store, has_run):
    plan = start_night(store, "r1")
    if has_run:
        beat(store, leave_attempt(store, plan, "bad"))
    lease.release(store, lease.check_held(store, "r1"))
    settled = commit_abandoned(store, restore_id="r2", holder="test")
    assert (settled.keys() == {"r1"}) == has_run
    assert statuses(store)[1] == ("bad", "TERMINATED" if has_run else "ERROR")


@pytest.mark.usefixtures("_silent")
def test_a_commit_that_died_at_its_end_is_finished_though_nothing_is_left_to_run(store):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "bad")
    store.dies_at = layout.commit_key("r1").rpartition("/")[2]
    with pytest.raises(StorageError):
        commit_restore(store, "r1")
    plan, settled = start(store, "r2")
    assert plan is None
    assert settled.restore_id == "r1"
    assert json.loads(store.get(layout.commit_key("r1")))["is_done"]
    assert lease.unreleased(store, but="") == []
    assert "every trial stays" in prepare_restore(store, "r3", OPTIONS)


@pytest.mark.usefixtures("_silent")
def test_a_settlement_that_died_is_finished_though_its_own_lease_is_released(store):
    leave_attempt(store, start_night(store, "r1"), "bad", result="failed")
    store.dies_at = "ledger.json"
    with pytest.raises(StorageError):
        start(store, "r2")
    quarantine = PrepareOptions(
        choices=PlanChoices(max_attempts=1, flags=OPTIONS.choices.flags), stale_after=timedelta(0)
    )
    prepared = prepare_restore(store, "r3", quarantine)
    plan, settled = start_restore(prepared, holder="r3", ttl_seconds=60)
    assert plan is None
    assert settled.restore_id == "r1"
    assert lease.unreleased(store, but="") == []


@pytest.mark.usefixtures("_silent")
@pytest.mark.parametrize("after", ["its mark", "nothing"])
def test_an_undo_that_died_is_finished_before_the_next_plan_is_made(store, after):
    night(store, "r1", result="finished")
    store.dies_at = FIRST if after == "its mark" else layout.commit_key("r1").rpartition("/")[2]
    with pytest.raises(StorageError):
        undo_commit(store, holder="test")
    prepared = prepare_restore(store, "r2", OPTIONS)
    if after == "nothing":  # it had not begun: the commit stands, and nothing is left to do
        assert "every trial stays" in prepared
        assert store.get(FIRST)
        return
    plan, settled = start_restore(prepared, holder="r2", ttl_seconds=60)
    assert settled is None
    assert plan.base.name == STATE_NAME
    with pytest.raises(KeyNotFoundError):
        store.get(FIRST)


def test_only_leases_of_undos_are_undos():
    assert undo.is_undo("undo-r1")
    assert not undo.is_undo("r1-undo")


@pytest.mark.usefixtures("_silent")
def test_failures_of_a_restore_that_no_longer_fits_count_all_the_same(store):
    leave_attempt(store, start_night(store, "r1"), "bad", result="failed")
    newer = STATE_NAME.replace("10-00-00", "11-00-00")
    store.put(newer, make_state(ROWS, start_time=2000.0))
    _, settled = start(store, "r2")
    assert settled is None
    assert [f.restore_id for f in read_ledger(store)[0].trials["bad"].failures] == ["r1"]


def test_a_commit_writes_through_the_store_that_needs_the_lease(store, monkeypatch):
    """The lease is lost while the commit waits for its runners, and it finds that out too late."""
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "bad")

    def lose(*_arguments):
        lease.release(store, lease.check_held(store, "r1"))
        lease.acquire(store, restore_id="r2", holder="another")
        monkeypatch.setattr("airflow_tune_restore.protocol.kept_lease.FRESH_SECONDS", -1.0)
        return {}

    monkeypatch.setattr(commit, "wait_for_units", lose)
    before = {key: store.get(key) for key in (STATE_NAME, layout.plan_key("r1"))}
    with pytest.raises(lease.LeaseLostError):
        commit_restore(store, "r1")
    assert before == {key: store.get(key) for key in before}
    with pytest.raises(KeyNotFoundError):
        store.get(layout.commit_key("r1"))


@pytest.mark.usefixtures("_silent")
def test_a_restore_that_was_committed_stops_no_plan_though_its_base_was_undone_since(store):
    """It changed nothing, and died before it released the lease."""
    night(store, "r1", result="finished")
    plan = start_night(store, "r2")
    assert plan.base.name == FIRST
    lease.release(store, lease.check_held(store, "r2"))
    commit_abandoned(store, restore_id="r3", holder="test")
    held = lease.acquire(store, restore_id="r2", holder="test")
    commit_restore(store, "r2")
    store.delete(layout.lease_release_key(held.epoch))
    store.delete(FIRST)
    settled = commit_abandoned(store, restore_id="r4", holder="test")
    assert settled == {"r3": None, "r2": None}
    assert lease.unreleased(store, but="r4") == []
