"""Storage that is hostile or unlucky: the effect on one restore, and for how long."""

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace

import msgspec
import pytest

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    LeaseHeldError,
    LinkRefusedError,
    RecordUnreadableError,
    StateUnreadableError,
    StorageError,
    UncommittableError,
)
from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import attempts, layout, lease, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.kept_lease import keep_lease
from airflow_tune_restore.protocol.lease_watch import MAX_WATCH_SECONDS
from airflow_tune_restore.restore import commit, ledger, start
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state
from tests.support.records import beat, leave_attempt, leave_outcome, make_outcome, start_night

NOW = datetime(2026, 11, 28, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=3)
DAY = 24 * 3600.0
FLAGS = ResumeFlags.from_flags(resume_errored=True)
OPTIONS = PrepareOptions(
    choices=PlanChoices(flags=FLAGS, strategy="per_trial"), stale_after=timedelta(0)
)


class Time:
    """The clocks of a process, which only move when it sleeps."""

    def __init__(self, monkeypatch):
        self.slept = 0.0
        for function in (lease.acquire, lease.refuse_if_alive):
            monkeypatch.setitem(function.__kwdefaults__, "clock", self)
        for name in ("monotonic", "sleep"):
            monkeypatch.setitem(
                attempts.wait_until_all_over.__kwdefaults__, name, getattr(self, name)
            )

    def monotonic(self):
        return self.slept

    def sleep(self, seconds):
        self.slept += seconds


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


@pytest.fixture
def objects():
    return {STATE_NAME: (make_state([make_row("bad", status="ERROR")]), LONG_AGO)}


@pytest.fixture
def store(objects):
    return MemoryStore(objects, clock=lambda: NOW)


def claim(objects, *, at, epoch=1, restore_id="dead", ttl_seconds=60.0):
    body = {"restore_id": restore_id, "holder": "somebody", "ttl_seconds": ttl_seconds}
    objects[layout.lease_claim_key(epoch)] = (json.dumps(body).encode(), at)


def restore(store, restore_id="r2"):
    prepared = prepare_restore(store, restore_id, OPTIONS)
    return start_restore(prepared, holder="test", ttl_seconds=60)[0]


# --- numbers that were read


def test_a_claim_makes_nobody_wait_for_as_long_as_it_says(store, objects, time):
    claim(objects, at=NOW - timedelta(days=1), ttl_seconds=DAY)
    assert restore(store).restore_id == "r2"
    assert time.slept <= MAX_WATCH_SECONDS + 5


def test_a_lease_of_a_dag_is_watched_for_all_of_its_time(store, objects, time):
    claim(objects, at=LONG_AGO, ttl_seconds=900)
    restore(store)
    assert time.slept >= 900


@pytest.mark.parametrize("ahead", [timedelta(minutes=3), timedelta(days=70 * 365)])
def test_a_claim_from_the_future_is_no_sign_of_life(store, objects, time, ahead):
    claim(objects, at=NOW + ahead)
    (report,) = scan(store, stale_after=timedelta(0))
    assert (report.health, report.abandoned) == ("errored", 1)
    assert restore(store).restore_id == "r2"
    assert 60 <= time.slept < 70


def test_a_clock_that_is_a_little_ahead_is(store, objects, time):
    claim(objects, at=NOW + timedelta(seconds=20))
    (report,) = scan(store)
    assert report.health == "running"
    with pytest.raises(LeaseHeldError, match="last heartbeat 0 s ago"):
        restore(store)
    assert not time.slept


def test_a_living_holder_whose_clock_is_ahead_is_seen_while_it_is_watched(store, objects, time):
    claim(objects, at=NOW + timedelta(hours=2))
    beats = count()

    def sleep(seconds):
        time.slept += seconds
        store.put(layout.lease_heartbeat_key(1), str(next(beats)).encode())

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    with pytest.raises(LeaseHeldError):
        lease.acquire(store, restore_id="r2", holder="test", clock=clock)


def test_a_lease_that_nobody_would_believe_is_refused(store):
    with pytest.raises(InvalidInputError, match=r"lease_ttl is at most 86400 s \(a day\)"):
        lease.acquire(store, restore_id="r1", holder="test", ttl_seconds=2 * DAY)
    assert store.list_dir(layout.LEASE) == []


# --- many at once


def test_who_begins_with_many_experiments_watches_all_of_them_at_once(time):
    """A DAG run of a hundred experiments that died would keep the next one waiting a hundred times."""
    all_prepared = []
    for number in range(100):
        objects = {STATE_NAME: (make_state([make_row("bad", status="ERROR")]), LONG_AGO)}
        claim(objects, at=LONG_AGO, ttl_seconds=900)
        store = MemoryStore(objects, root=f"{number}/", clock=lambda: NOW)
        for key in list(objects):
            objects[f"{number}/{key}"] = objects.pop(key)
        all_prepared.append(prepare_restore(store, "r2", OPTIONS))
    for prepared in all_prepared:
        start_restore(prepared, holder="test", ttl_seconds=60)
    assert 900 <= time.slept < 910


def test_a_watch_that_began_before_a_sign_of_life_is_worth_nothing(store, objects, time):
    claim(objects, at=LONG_AGO)
    watch = lease.refuse_if_alive(store, "r2")
    time.slept = 1000
    objects[layout.lease_heartbeat_key(1)] = (b"alive", LONG_AGO)
    with pytest.raises(LeaseHeldError):
        lease.acquire(store, restore_id="r2", holder="test", watch=watch)


def test_the_runners_of_a_dead_restore_are_watched_at_once(objects, store, time):
    rows = [make_row(f"t{n}", status="ERROR") for n in range(160)]
    objects[STATE_NAME] = (make_state(rows), LONG_AGO)
    plan = start_night(store, "dead")
    for trial in plan.to_run:
        request = leave_attempt(store, plan, trial.trial_id)
        store.delete(layout.outcome_key("dead", trial.trial_id, request.attempt))
        beat(store, request)
    for key, (body, _) in objects.items():
        objects[key] = (body, LONG_AGO)
    summary = next(iter(commit_abandoned(store, restore_id="r2", holder="test").values()))
    assert {change.status_after for change in summary.changes} == {"TERMINATED"}
    assert time.slept < lease_objects.DEFAULT_TTL_SECONDS + attempts.QUIET_SECONDS + 10


def test_a_runner_that_lives_is_named_while_others_are_over(objects, store, time):
    objects[STATE_NAME] = (make_state([make_row(f"t{n}", status="ERROR") for n in range(3)]), NOW)
    plan = start_night(store, "r1")
    for trial in plan.to_run:
        request = claim_attempt(store, plan, trial.trial_id, RunnerSettings(trainable="m:train"))
        beat(store, request)
    beats = count()

    def sleep(seconds):
        time.slept += seconds
        store.put(layout.heartbeat_key("r1", "t1", 1), str(next(beats)).encode())

    started = [attempts.AttemptId("r1", f"t{n}", 1) for n in range(3)]
    alive, _silent = attempts.wait_until_all_over(
        store,
        started,
        patience_seconds=120,
        monotonic=time.monotonic,
        sleep=sleep,
    )
    assert alive == [started[1]]
    assert 120 <= time.slept < 125


def test_a_runner_that_lives_after_all_is_committed_with_its_last_iteration(
    store, time, monkeypatch
):
    """Its heartbeats did not reach the store for a while. It sees the record of the commit, and ends."""
    plan = start_night(store, "r1")
    request = leave_attempt(store, plan, "bad", iteration=3, result="interrupted")
    outcome = layout.outcome_key("r1", "bad", request.attempt)
    store.delete(outcome)
    beat(store, request)
    create = store.create

    def create_while_it_finishes(key, body):
        create(key, body)
        if key == layout.commit_key("r1"):
            row = make_row("bad", status="TERMINATED", last_result={"training_iteration": 5})
            snapshot = layout.snapshot_key("r1", "bad", request.attempt)
            MemoryStore.put(store, snapshot, make_state([row]))
            leave_outcome(store, request, "finished", status="TERMINATED", iteration=5)

    monkeypatch.setattr(store, "create", create_while_it_finishes)
    summary = commit_restore(store, "r1")
    (change,) = summary.changes
    assert (change.status_after, change.iteration_after) == ("TERMINATED", 5)
    assert time.slept >= attempts.QUIET_SECONDS


def test_a_silent_runner_is_watched_again_once_it_can_see_the_commit(store, time):
    plan = start_night(store, "r1")
    request = leave_attempt(store, plan, "bad")
    store.delete(layout.outcome_key("r1", "bad", request.attempt))
    beat(store, request)
    commit_restore(store, "r1")
    assert 2 * attempts.QUIET_SECONDS <= time.slept < 2 * attempts.QUIET_SECONDS + 5


class Counting(MemoryStore):
    """Counts what is asked for, by the kind of request."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.asked = Counter()

    def get(self, key, *, max_bytes=None):
        self.asked[f"get {key.rpartition('/')[2]}"] += 1
        return super().get(key, max_bytes=max_bytes)

    def list_dir(self, path=""):
        self.asked[f"list {path}"] += 1
        return super().list_dir(path)


def test_ten_thousand_claims_of_one_dead_restore_are_settled_once(objects, time):
    store = Counting(objects, clock=lambda: NOW)
    plan = start_night(store, "dead")
    leave_attempt(store, plan, "bad")
    for epoch in range(1, 10_001):
        claim(objects, at=LONG_AGO, epoch=epoch)
    store.asked.clear()
    summary = next(iter(commit_abandoned(store, restore_id="r2", holder="test").values()))
    assert summary.state_file is not None
    assert store.asked["get plan.json"] == 2  # to find its runners, and to commit
    claims = sum(n for what, n in store.asked.items() if what.endswith(".claim.json"))
    assert claims <= 2 * 10_000 + 10
    assert sum(n for what, n in store.asked.items() if what.startswith("list")) < 100
    assert lease.unreleased(store, but="r2") == []


def test_a_dead_restore_is_settled_and_committed_under_a_lease_that_is_kept(store, monkeypatch):
    """A large one takes longer than the lease lasts, and a third would take it for dead."""
    kept = []

    def note(of, restore_id):
        kept.append(restore_id)
        return keep_lease(of, restore_id)

    for module in (start, commit):
        monkeypatch.setattr(module, "keep_lease", note)
    leave_attempt(store, start_night(store, "r1"), "bad")
    commit_restore(store, "r1")
    assert kept == ["r1", "r1"]


# --- claims that cannot be seen


class Blind(MemoryStore):
    """Holds claims that it does not list."""

    def list_dir(self, path=""):
        return [] if path == layout.LEASE else super().list_dir(path)


def test_a_claim_that_is_not_listed_ends_in_an_error_and_not_in_more_claims(objects):
    claim(objects, at=LONG_AGO)
    with pytest.raises(
        StorageError, match=r"00000001\.claim\.json exists, but .* does not list it"
    ):
        lease.acquire(Blind(objects), restore_id="r2", holder="test")
    assert [key for key in objects if key.startswith(layout.LEASE)] == [layout.lease_claim_key(1)]


@pytest.mark.parametrize("target", ["latest.txt/model", "x" * 300, "nothing", "."])
@pytest.mark.parametrize("where", ["", f"{layout.LEASE}", f"{layout.ROOT}"])
def test_a_stray_link_hides_no_lease_and_no_experiment(tmp_path, target, where):
    directory = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR")])
    (tmp_path / "latest.txt").write_text("x")
    store = LocalStore(directory)
    start_night(store, "r1")
    (directory / "latest.txt").write_text("x")
    (directory / where / "latest").symlink_to(target)
    (tmp_path / "latest").symlink_to(target)
    assert lease.check_held(store, "r1").epoch == 1
    (report,) = scan(LocalStore(tmp_path))
    assert report.health == "running"
    with pytest.raises(LeaseHeldError):
        lease.acquire(store, restore_id="r2", holder="test")


@pytest.mark.parametrize("target", ["nothing", "00000001.claim.json"])
def test_a_link_in_the_place_of_a_claim_holds_no_longer_than_others(tmp_path, time, target):
    directory = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR")])
    store = LocalStore(directory)
    (directory / layout.LEASE).mkdir(parents=True)
    (directory / layout.lease_claim_key(1)).symlink_to(target)
    (directory / layout.lease_claim_key(2)).symlink_to(target)
    clock = iter(NOW + timedelta(days=365 * n) for n in range(10, 1000))
    store.now = lambda: next(clock)
    assert lease.acquire(store, restore_id="r2", holder="test").epoch == 3
    assert 120 <= time.slept < 130


def test_a_link_to_a_secret_is_not_copied_into_the_experiment(tmp_path, time):
    """Like a restore that died: the next restore commits the state of its callbacks."""
    secret = tmp_path / "airflow.cfg"
    secret.write_text("fernet_key = abc")
    directory = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR")])
    store = LocalStore(directory)
    plan = start_night(store, "dead")
    request = leave_attempt(store, plan, "bad")
    kept = layout.attempt_dir("dead", "bad", request.attempt)
    (directory / kept / layout.callbacks_name(layout.KEPT)).symlink_to(secret)
    committed = commit_restore(store, "dead")
    assert committed.state_file is not None
    assert not [path for path in directory.iterdir() if "callback" in path.name]
    texts = [
        path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    assert not any(b"fernet_key" in text for text in texts)


def test_nothing_is_written_through_the_directory_of_a_restore_that_is_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    directory = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR")])
    store = LocalStore(directory)
    start_night(store, "dead")
    (directory / layout.restore_dir("dead")).rename(outside / "dead")
    (directory / layout.restore_dir("dead")).symlink_to(outside / "dead")
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    with pytest.raises(RecordUnreadableError, match="dead is a link"):
        commit_restore(store, "dead")
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


# --- what the lease's directory holds besides


@pytest.mark.parametrize("kind", ["release", "heartbeat"])
def test_a_number_that_has_a_release_is_not_taken_again(store, objects, kind):
    """Claims were deleted, as our errors advise: what is left must not end every new restore at once."""
    for epoch in range(1, 4):
        objects[f"{layout.LEASE}/{epoch:08d}.{kind}.json"] = (b"{}", LONG_AGO)
    leave_attempt(store, restore(store, "r1"), "bad")
    assert lease.check_held(store, "r1").epoch == 4
    assert commit_restore(store, "r1").state_file is not None


def test_a_directory_in_the_place_of_a_claim_uses_its_number_up(tmp_path, time):
    directory = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR")])
    (directory / layout.lease_claim_key(1)).mkdir(parents=True)
    (directory / layout.lease_release_key(2)).mkdir()
    assert lease.acquire(LocalStore(directory), restore_id="r1", holder="test").epoch == 3
    assert not time.slept


def test_claims_that_go_on_coming_are_not_watched_one_after_the_other(store, objects, time):
    claim(objects, at=LONG_AGO)
    numbers = count(2)

    def sleep(seconds):
        time.slept += seconds
        if time.slept >= 59:
            claim(objects, at=LONG_AGO, epoch=next(numbers), ttl_seconds=DAY)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    with pytest.raises(LeaseHeldError):
        lease.acquire(store, restore_id="r2", holder="test", clock=clock)
    assert time.slept < 120


def test_many_dead_restores_are_watched_at_once(store, objects, time):
    for number in range(5):
        plan = start_night(store, f"dead{number}")
        beat(store, claim_attempt(store, plan, "bad", RunnerSettings(trainable="m:train")))
        lease.release(store, lease.check_held(store, f"dead{number}"))
        del objects[layout.lease_release_key(number + 1)]
        # the next one is started all the same, as after a TTL
        for key in (layout.lease_claim_key(number + 1), layout.lease_heartbeat_key(number + 1)):
            objects[key] = (objects[key][0], LONG_AGO)
    time.slept = 0
    commit_abandoned(store, restore_id="r2", holder="test")
    assert time.slept < lease_objects.DEFAULT_TTL_SECONDS + attempts.QUIET_SECONDS + 10


# --- what would not be read again


def test_a_state_that_would_not_be_read_again_is_not_written(store, objects, monkeypatch):
    leave_attempt(store, start_night(store, "r1"), "bad")
    size = len(objects[STATE_NAME][0])
    monkeypatch.setattr(layout, "MAX_STATE_BYTES", size + 20)
    row = make_row("bad", config={"x": "y" * 1000}, last_result={"training_iteration": 3})
    store.put(layout.snapshot_key("r1", "bad", 1), make_state([row]))
    with pytest.raises(StateUnreadableError, match="Nothing was committed; what the runners left"):
        commit_restore(store, "r1")
    assert [key for key in objects if "/" not in key] == [STATE_NAME]


def test_a_row_that_would_not_be_read_again_leaves_its_trial_as_it_was(store, monkeypatch, caplog):
    plan = start_night(store, "r1")
    monkeypatch.setattr("airflow_tune_restore.protocol.bounded_json.MAX_DOCUMENT_BYTES", 100_000)
    leave_attempt(store, plan, "bad", make_row("bad", config={"x": "y" * 100_000}))
    assert commit_restore(store, "r1").state_file is None
    assert (
        "the snapshot" in caplog.text
        or "too large" in caplog.text
        or "not committed" in caplog.text
    )


def test_a_ledger_is_written_so_that_it_is_read_again(store, monkeypatch):
    failures = tuple(
        ledger.FailedAttempt(restore_id="r", attempt=n + 1, cause="trainable", message="x" * 100)
        for n in range(ledger.KEPT)
    )
    monkeypatch.setattr(ledger, "READ_LIMIT_BYTES", 10_000)
    ledger.write_ledger(store, ledger.Ledger(trials={"bad": ledger.History(failures=failures)}))
    read, warning = ledger.read_ledger(store)
    assert (read.trials["bad"].failures, warning) == (failures[-2:], "")


# --- names that no reader takes

LONG = f"experiment_state-{'x' * 231}.json"


@pytest.mark.parametrize(
    "name",
    [
        "experiment_state-~\x07.json",
        "experiment_state-~\\..\\.json",
        "experiment_state-~\u202e.json",
        LONG,
        "experiment_state-~_r999999.json",
    ],
    ids=ascii,
)
def test_a_file_after_which_no_commit_could_be_found_is_named_when_planning(objects, store, name):
    """Committed under a name that no reader takes, it would be restored again every night."""
    objects[name] = (b"", LONG_AGO)
    with pytest.raises(
        UncommittableError, match=r"Ray reads it as the newest.*delete it"
    ) as caught:
        prepare_restore(store, "r1", OPTIONS)
    assert ascii(name)[1:-1] in str(caught.value)
    assert set(objects) == {STATE_NAME, name}


def test_such_a_file_that_comes_later_stops_the_commit_and_loses_nothing(objects, store):
    plan = restore(store, "r1")
    leave_attempt(store, plan, "bad")
    objects[LONG] = (b"", LONG_AGO)
    with pytest.raises(UncommittableError):
        commit_restore(store, "r1")
    del objects[LONG]
    assert commit_restore(store, "r1").state_file is not None


@pytest.mark.parametrize("name", ["experiment_state-~.json", f"experiment_state-{'x' * 200}.json"])
def test_a_commit_after_a_file_of_an_odd_name_is_found_again(objects, store, name):
    objects[name] = (b"", LONG_AGO)
    leave_attempt(store, restore(store, "r1"), "bad")
    summary = commit_restore(store, "r1")
    assert summary.state_file == max(key for key in objects if "/" not in key)
    base = read_base(store)
    assert (base.state_file.name, base.trials[0].status) == (summary.state_file, "TERMINATED")


# --- a plan that speaks of another place


def test_a_planted_plan_of_other_trials_is_not_taken_for_ours(store, objects):
    """The id of a restore can be guessed; a plan of an attacker could map any number of tasks."""
    plan = start_night(store, "r1")
    planted = replace(plan, trials=(*plan.trials, replace_trial(plan.trials[0], "invented")))
    store.put(layout.plan_key("r1"), planted.to_json())
    with pytest.raises(RecordUnreadableError, match="its trials are not those of"):
        prepare_restore(store, "r1", OPTIONS)
    lease.release(store, lease.check_held(store, "r1"))
    assert restore(store, "r1").restore_id == "r1-2"


def replace_trial(trial, trial_id):
    return msgspec.structs.replace(trial, trial_id=trial_id)


def test_a_plan_is_one_of_the_experiment_it_lies_in(store):
    """An attacker who can write it could name another team's experiment; or its directory was moved."""
    start_night(store, "r1")
    key = layout.plan_key("r1")
    document = json.loads(store.get(key))
    store.put(key, json.dumps({**document, "experiment": "s3://other/team"}).encode())
    plan = read_plan(store, "r1")
    assert plan.experiment == store.uri
    request = claim_attempt(store, plan, "bad", RunnerSettings(trainable="m:train"))
    assert request.experiment == store.uri


# --- what a searcher saves


@pytest.mark.parametrize(
    "name",
    [
        ".0",
        "experiment_state-kept.json",
        "callback-states-kept.pkl",
        "a\x1bb-kept.pkl",
        "x-kept.txt",
    ],
)
def test_what_only_lies_beside_a_searchers_state_is_not_committed(objects, store, name):
    plan = start_night(store, "r1", strategy="whole_experiment")
    row = make_row("bad", last_result={"training_iteration": 6})
    kept = layout.searcher_dir("r1", 1)
    draws = replace(plan, continues_search=True)
    store.put(layout.plan_key("r1"), draws.to_json())
    leave_attempt(store, draws, layout.WHOLE_EXPERIMENT, row, iteration=6)
    state = json.loads(make_state([row]))
    state["stats"]["searcher"] = 1
    store.put(layout.snapshot_key("r1", layout.WHOLE_EXPERIMENT, 1), json.dumps(state).encode())
    for saved in (name, "searcher-state-kept.pkl"):
        store.put(f"{kept}/{layout.numbered(1)}{saved}", b"saved")
    committed = commit_restore(store, "r1").state_file
    session = layout.session_of(committed)
    root = {key: body for key, (body, _) in objects.items() if "/" not in key}
    assert set(root) == {STATE_NAME, committed, f"searcher-state-{session}.pkl"}
    assert root[committed] != b"saved"


# --- restores whose id is taken by what cannot be read


def test_a_link_in_the_place_of_our_directory_ends_the_draft(tmp_path):
    """Behind it every name is refused, and the search for a free one would never end."""
    directory = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR")])
    (directory / layout.ROOT).symlink_to(tmp_path)
    with pytest.raises(LinkRefusedError, match=r"\.tune_restore is a link"):
        prepare_restore(LocalStore(directory), "r1", OPTIONS)


def test_a_thousand_restores_of_one_id_are_enough(store):
    for number in range(1, 1001):
        store.put(layout.commit_key("r1" if number == 1 else f"r1-{number}"), b"{}")
    with pytest.raises(StorageError, match="holds 1000 restores of the id r1"):
        prepare_restore(store, "r1", OPTIONS)


def test_a_commit_record_that_cannot_be_read_takes_the_id_of_its_restore(objects):
    store = Counting(objects, clock=lambda: NOW)
    store.put(layout.commit_key("r1"), b" " * (layout.MAX_PLAN_BYTES + 1))
    assert restore(store, "r1").restore_id == "r1-2"
    assert "get commit.json" not in store.asked  # there may be a thousand of them


def test_a_request_and_an_outcome_are_those_of_the_attempt_they_lie_in(store):
    request = claim_attempt(
        store, start_night(store, "r1"), "bad", RunnerSettings(trainable="m:train")
    )
    key = layout.request_key("r1", "bad", 1)
    moved = replace(request, experiment="s3://other/team")
    store.put(key, moved.to_json())
    assert AttemptRecords(store, "r1", "bad").request(1) == request
    leave_outcome(store, request)
    other = replace(request, trial_id="other")
    outcome = layout.outcome_key("r1", "bad", 1)
    store.put(outcome, make_outcome(other).to_json())
    with pytest.raises(RecordUnreadableError, match="the outcome of another attempt"):
        AttemptRecords(store, "r1", "bad").outcome(1)
    store.put(key, other.to_json())
    with pytest.raises(RecordUnreadableError, match="the request of another attempt"):
        AttemptRecords(store, "r1", "bad").request(1)
