"""A process that is paused or killed at any operation, while the next restore goes on, does no harm."""

import contextlib
import json
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import LeaseHeldError, TuneRestoreError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import attempts, layout, lease
from airflow_tune_restore.protocol.lease_objects import LeaseStatus
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt

OPTIONS = PrepareOptions(
    choices=PlanChoices(flags=ResumeFlags.from_flags(resume_errored=True)), stale_after=timedelta(0)
)
STATES = layout.STATE_PREFIX


class Watched(MemoryStore):
    """Calls `pause` before its Nth operation; keeps every version of every object."""

    def __init__(self, nth=0, pause=None):
        super().__init__()
        self.count, self.nth, self.pause = 0, nth, pause
        self.versions: dict[str, list[bytes]] = {}

    def _step(self):
        self.count += 1
        if self.count == self.nth:
            self.pause()

    def list_dir(self, path=""):
        self._step()
        return super().list_dir(path)

    def get(self, key, *, max_bytes=None):
        self._step()
        return super().get(key, max_bytes=max_bytes)

    def create(self, key, body):
        self._step()
        super().create(key, body)
        self.versions.setdefault(key, []).append(body)

    def put(self, key, body):
        self._step()
        super().put(key, body)
        self.versions.setdefault(key, []).append(body)


@pytest.fixture(autouse=True)
def _silent_for_long(monkeypatch):
    """Every holder was watched for its TTL, and every runner that left no outcome is dead."""
    monkeypatch.setattr(LeaseStatus, "is_alive", False)
    monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)
    monkeypatch.setattr(attempts, "QUIET_SECONDS", 0.0)


@pytest.fixture
def make_store():
    def make(**watch):
        store = Watched(**watch)
        rows = [
            make_row("done", last_result={"training_iteration": 6}, last_result_time=4.0),
            make_row("bad", status="ERROR", error=True, last_result_time=3.0),
            make_row("hung", status="RUNNING", last_result_time=2.0),
        ]
        store.put(STATE_NAME, make_state(rows))
        return store

    return make


def start(store, restore_id):
    """Prepare and start; None if nothing is left to do."""
    prepared = prepare_restore(store, restore_id, OPTIONS)
    if not isinstance(prepared, PreparedRestore):
        return None
    plan, _ = start_restore(prepared, holder=restore_id, ttl_seconds=60)
    return plan


def run(store, plan, trial_ids):
    for trial in plan.to_run:
        if trial.trial_id in trial_ids:
            row = make_row(trial.trial_id, last_result={"training_iteration": 6})
            leave_attempt(store, plan, trial.trial_id, row)


def whole_restore(store, restore_id):
    plan = start(store, restore_id)
    if plan is not None:
        run(store, plan, ["bad", "hung"])
        commit_restore(store, restore_id)


def check_history(store):
    """All trials have their results, no state was overwritten, and the lease is free."""
    experiment = read_experiment(store)
    assert [(t.trial_id, t.status, t.iteration) for t in experiment.trials] == [
        ("done", "TERMINATED", 6),
        ("bad", "TERMINATED", 6),
        ("hung", "TERMINATED", 6),
    ]
    names = [e.name for e in store.list_dir() if layout.is_state_file(e.name)]
    assert experiment.state_file.name == max(names)
    for key, bodies in store.versions.items():
        if not key.startswith(layout.ROOT) or key.endswith(("plan.json", ".claim.json")):
            assert len(bodies) == 1, f"{key} was written {len(bodies)} times"
    made = []
    for key, bodies in store.versions.items():
        if key.endswith("commit.json"):
            records = [json.loads(body) for body in bodies]
            assert len({r["start_time"] for r in records}) == 1, key
            assert records[-1]["is_done"], key
            made.append(records[-1]["state_file"])
    assert sorted(filter(None, made)) == sorted(set(names) - {STATE_NAME})
    assert lease.unreleased(store, but="") == []


def pause_everywhere(prepare, zombie, meanwhile, make_store):
    """Run `zombie` once for each of its operations, paused there while `meanwhile` happens."""
    store = make_store()
    prepare(store)
    before = store.count
    zombie(store)
    operations = store.count - before
    assert operations > 5
    for nth in range(1, operations + 1):
        store = make_store()
        prepare(store)
        store.nth = store.count + nth
        store.pause = lambda store=store: meanwhile(store)
        with contextlib.suppress(TuneRestoreError):  # it noticed
            zombie(store)
        assert store.count > store.nth, "it was never paused"
        whole_restore(store, "last")
        yield nth, store


def test_a_commit_paused_at_any_operation(make_store):
    def prepare(store):
        run(store, start(store, "r1"), ["bad"])

    for nth, store in pause_everywhere(
        prepare,
        lambda store: commit_restore(store, "r1"),
        lambda store: whole_restore(store, "r2"),
        make_store,
    ):
        check_history(store)
        assert nth


def test_a_start_paused_at_any_operation(make_store):
    def prepare(_store):
        pass

    for _, store in pause_everywhere(
        prepare,
        lambda store: start(store, "r1"),
        lambda store: whole_restore(store, "r2"),
        make_store,
    ):
        check_history(store)


def test_a_settling_start_paused_at_any_operation(make_store):
    def prepare(store):
        run(store, start(store, "r1"), ["bad"])

    for _, store in pause_everywhere(
        prepare,
        lambda store: start(store, "r2"),
        lambda store: whole_restore(store, "r3"),
        make_store,
    ):
        check_history(store)


@pytest.mark.parametrize("step", ["start", "settling start", "commit"])
def test_a_zombie_leaves_the_restore_alone_that_is_at_work(make_store, step, monkeypatch):
    """Paused while the next restore started: that one keeps its lease, runs and commits."""

    def watch(store, current, *_clocks):
        if current.restore_id == "r3":
            raise LeaseHeldError(store.uri, current.restore_id, current.holder, 0)

    monkeypatch.setattr(lease, "_wait_for_death", watch)

    def prepare(store):
        if step != "start":
            run(store, start(store, "r1"), ["bad"])

    zombie = {
        "start": lambda store: start(store, "r1"),
        "settling start": lambda store: start(store, "r2"),
        "commit": lambda store: commit_restore(store, "r1"),
    }[step]
    store = make_store()
    prepare(store)
    before = store.count
    zombie(store)
    for nth in range(1, store.count - before + 1):
        store = make_store()
        prepare(store)
        newer = []
        store.nth = store.count + nth
        store.pause = lambda store=store, newer=newer: newer.append(start(store, "r3"))
        with contextlib.suppress(TuneRestoreError):
            zombie(store)
        if newer != [None]:
            lease.check_held(store, "r3")
            run(store, newer[0], ["bad", "hung"])
            commit_restore(store, "r3")
        else:
            whole_restore(store, "r3")
        check_history(store)


class Killed(BaseException):
    """kill -9."""


@pytest.mark.parametrize("by", ["its own retry", "the next restore"])
@pytest.mark.parametrize("victim", ["start", "settling start", "commit"])
def test_killed_before_any_operation(make_store, victim, by):
    """And the progress that the dead had made is never lost: `bad` is not run twice."""

    def prepare(store):
        if victim != "start":
            run(store, start(store, "r1"), ["bad"])

    step = {
        "start": lambda store: start(store, "r1"),
        "settling start": lambda store: start(store, "r2"),
        "commit": lambda store: commit_restore(store, "r1"),
    }[victim]

    def kill():
        raise Killed

    store = make_store()
    prepare(store)
    before = store.count
    step(store)
    operations = store.count - before
    for nth in range(1, operations + 1):
        store = make_store()
        prepare(store)
        store.nth, store.pause = store.count + nth, kill
        with pytest.raises(Killed):
            step(store)
        if by == "its own retry":
            step(store)
        whole_restore(store, "last")
        check_history(store)
        claimed = [key for key in store.versions if key.endswith("request.json")]
        assert sum("trials/bad" in key for key in claimed) == 1, (nth, claimed)
