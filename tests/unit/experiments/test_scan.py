"""Requests of a scan to the store, and its index, which changes no verdict."""

import json
import pickle
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.experiments import index as index_module
from airflow_tune_restore.experiments import spot_check
from airflow_tune_restore.experiments.evidence import EvidenceKind
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.scan_filter import ScanFilter
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.storage.counting import Clock, CountingStore

ODD = ["with space", "ünïcode-日本", "a=1,b=2", "50%", "%2F", "(x) [y]", "plus+plus", "a'b"]
ODD += ["ideographic\u3000space", "\U0001f469\u200d\U0001f52c", "checkpoint_study"]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return CountingStore.new(clock)


@pytest.fixture(autouse=True)
def small_index(monkeypatch):
    monkeypatch.setattr(index_module, "MIN_ROWS", 1)


def remembered(store):
    """Return the paths in the index."""
    return [json.loads(line)["path"] for line in store.get(layout.INDEX).splitlines()]


@pytest.fixture
def no_spot_check(monkeypatch):
    """Nothing is read again, so that what a scan asks for itself is seen."""
    monkeypatch.setattr(spot_check, "ONE_IN", 10**9)
    monkeypatch.setattr(spot_check, "LEAST", 0)


def put_experiment(store, path, *, status="TERMINATED", samples=None, **fields):
    last = {"last_result": {"done": True}} if status == "TERMINATED" else {}
    store.put(f"{path}/{STATE_NAME}", make_state([make_row("t1", status=status, **last, **fields)]))
    store.put(f"{path}/tuner.pkl", b"x")
    searcher = {"_total_samples": samples or 1, "_finished": samples is None}
    store.put(f"{path}/basic-variant-state-2026-01-01_00-00-00.json", pickle.dumps(searcher))


def fill(store, clock, *, days=1.0):
    put_experiment(store, "team/user/done")
    put_experiment(store, "team/user/bad", status="ERROR")
    put_experiment(store, "team/left", samples=3)
    put_experiment(store, "dead", status="RUNNING")
    store.put("broken/experiment_state-2026-01-01_00-00-00.json", b"{")
    store.put("bare/tuner.pkl", b"x")
    clock.now += timedelta(days=days)
    put_experiment(store, "alive", status="RUNNING")


def verdicts(store, **options):
    return {r.experiment.removeprefix("memory://"): r.health for r in scan(store, **options)}


def test_every_experiment_is_found_and_judged(store, clock):
    fill(store, clock)
    assert verdicts(store) == {
        "alive": Health.RUNNING,
        "bare": Health.NOT_STARTED,
        "broken": Health.UNREADABLE,
        "dead": Health.INTERRUPTED,
        "team/left": Health.INTERRUPTED,
        "team/user/bad": Health.ERRORED,
        "team/user/done": Health.FINISHED,
    }


def test_a_live_experiment_costs_one_listing_and_one_get(store, clock):
    put_experiment(store, "alive", status="RUNNING")
    store.asked.clear()
    scan(store, use_index=False)
    assert store.asked == {"list": 2, "get": 1}  # the prefix is listed, too


def test_an_ended_one_costs_one_more_get_for_the_samples_that_may_be_left(store, clock):
    put_experiment(store, "done")
    store.asked.clear()
    scan(store, use_index=False)
    assert store.asked == {"list": 2, "get": 2}


def test_a_second_scan_gets_the_index_and_nothing_else_that_has_not_changed(
    store, clock, no_spot_check
):
    for number in range(20):
        put_experiment(store, f"e{number}", status="ERROR" if number % 2 else "TERMINATED")
    clock.now += timedelta(days=1)
    first = scan(store)
    store.asked.clear()
    assert scan(store) == first
    assert store.asked == {"list": 21, "get": 1}
    put_experiment(store, "e3")
    store.asked.clear()
    assert verdicts(store)["e3"] is Health.FINISHED
    assert (store.asked["list"], store.asked["get"]) == (21, 3)


def test_a_state_that_cannot_be_read_is_got_again_when_it_has_changed(store, clock, no_spot_check):
    key = f"broken/{STATE_NAME}"
    store.put(key, b"{")
    first = scan(store)
    store.asked.clear()
    assert scan(store) == first
    assert store.asked["get"] == 1  # the index
    store.put(key, make_state([make_row("t1")]))
    assert verdicts(store)["broken"] is not Health.UNREADABLE


def test_one_that_would_take_much_room_is_read_again(store, clock, monkeypatch):
    put_experiment(store, "one")
    put_experiment(store, "two", status="RUNNING", trial_dir="d" * 200)
    monkeypatch.setattr(index_module, "MAX_ROW_BYTES", 600)
    clock.now += timedelta(days=1)
    first = scan(store)
    assert remembered(store) == ["one"]
    assert scan(store) == first


def test_an_index_that_would_not_be_read_is_not_written(store, clock, monkeypatch, caplog):
    put_experiment(store, "one")
    monkeypatch.setattr(index_module, "MAX_INDEX_BYTES", 100)
    clock.now += timedelta(days=1)
    scan(store)
    assert layout.INDEX not in store._objects
    assert "is not kept" in caplog.text


def test_a_restore_that_died_is_reported(store, clock):
    put_experiment(store, "exp", status="ERROR")
    clock.now += timedelta(days=1)
    claim = {"restore_id": "r1", "holder": "dag nightly", "ttl_seconds": 120}
    store.put(f"exp/{layout.lease_claim_key(7)}", json.dumps(claim).encode())
    assert [report.abandoned for report in scan(store)] == [None]
    clock.now += timedelta(seconds=121)
    assert [report.abandoned for report in scan(store)] == [7]
    store.put(f"exp/{layout.lease_release_key(7)}", b"{}")
    assert [report.abandoned for report in scan(store)] == [None]


def test_a_live_experiment_is_not_remembered(store, clock):
    put_experiment(store, "alive", status="RUNNING")
    scan(store)
    assert layout.INDEX not in store._objects


def test_a_prefix_that_cannot_be_written_to_is_scanned_without_an_index(store, clock):
    fill(store, clock)
    store.refuses = True
    assert verdicts(store)["dead"] is Health.INTERRUPTED
    assert layout.INDEX not in store._objects


def test_without_an_index_nothing_is_written(store, clock):
    fill(store, clock)
    before = dict(store._objects)
    scan(store, use_index=False)
    assert store._objects == before


def test_the_index_of_an_experiments_own_directory_is_none_of_a_prefix(store, clock):
    put_experiment(store, "exp")
    scan(store.at("exp"))
    assert f"exp/{layout.INDEX}" not in store._objects


def test_an_experiment_that_is_gone_is_forgotten(store, clock):
    put_experiment(store, "one")
    put_experiment(store, "two")
    clock.now += timedelta(days=1)
    scan(store)
    for key in [key for key in store._objects if key.startswith("one/")]:
        store.delete(key)
    put_experiment(store, "three")
    scan(store)
    assert remembered(store) in (["three", "two"], ["two"])


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_found_kept_in_the_index_and_reported(store, clock, name):
    put_experiment(store, f"{name}/{name}", status="ERROR")
    clock.now += timedelta(days=1)
    for _ in range(2):
        assert verdicts(store) == {f"{name}/{name}": Health.ERRORED}


@pytest.mark.parametrize("name", ["a\tb", "a\u202eb", "a\\..\\b", f"checkpoint_{'7' * 5000}"])
def test_who_cannot_be_addressed_is_named(store, clock, name, caplog):
    put_experiment(store, name)
    assert verdicts(store) == {}
    assert (
        f"{printable(f'{name!a}', 100)} is skipped: an address cannot hold this name" in caplog.text
    )


@pytest.mark.parametrize("stray", ["tuner.pkl", "experiment_state-notes.json"])
def test_a_file_that_only_looks_like_an_experiment_does_not_hide_those_below_it(
    store, clock, stray
):
    put_experiment(store, "team/one")
    store.put(f"team/{stray}", b"{}")
    store.put(stray, b"{}")
    assert verdicts(store)["team/one"] is Health.FINISHED
    assert len(verdicts(store)) == 3


def test_a_damaged_experiment_costs_no_listing_of_its_trials(store, clock):
    store.put(f"exp/{STATE_NAME}", b"{")
    for number in range(20):
        store.put(f"exp/trial_{number}/result.json", b"")
    store.asked.clear()
    assert verdicts(store) == {"exp": Health.UNREADABLE}
    assert store.asked["list"] == 2


def test_an_experiment_is_not_searched_for_others_while_its_store_fails(store, clock):
    put_experiment(store, "exp")
    put_experiment(store, "exp/below")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MemoryStore, "get", lambda *_a, **_k: (_ for _ in ()).throw(StorageError("gone"))
        )
        assert verdicts(store) == {"exp": Health.UNREADABLE}
    assert verdicts(store) == {"exp": Health.FINISHED}


def test_a_selection_leaves_out_and_does_not_list(store, clock):
    fill(store, clock)
    store.asked.clear()
    assert list(verdicts(store, selection=ScanFilter(include=("team/*/*",)), use_index=False)) == [
        "team/user/bad",
        "team/user/done",
    ]
    assert "team/left" not in verdicts(store, selection=ScanFilter(exclude=("left",)))
    assert list(verdicts(store, selection=ScanFilter(max_depth=1, exclude=("b*",)))) == [
        "alive",
        "dead",
    ]


def test_a_selective_scan_forgets_nothing_that_it_did_not_see(store, clock):
    put_experiment(store, "one")
    put_experiment(store, "two")
    clock.now += timedelta(days=1)
    scan(store)
    put_experiment(store, "two")
    clock.now += timedelta(days=1)
    scan(store, selection=ScanFilter(include=("two",)))
    assert remembered(store) == ["one", "two"]


@pytest.mark.parametrize("ends", ["dies", "is undone"])
def test_what_a_restore_wrote_before_it_ended_shows_no_driver(store, clock, ends):
    put_experiment(store, "exp", status="RUNNING", trial_dir="trial")
    clock.now += timedelta(hours=2)
    exp = store.at("exp")
    held = lease.acquire(exp, restore_id="r1", holder="it", ttl_seconds=60)
    clock.now += timedelta(seconds=9)
    for name in (layout.STORAGE_MARKER, "trial/result.json"):
        exp.put(name, b"")
    lease.renew(exp, held)
    if ends == "is undone":
        lease.release(exp, held)
    clock.now += timedelta(minutes=2)
    assert verdicts(store) == {"exp": Health.INTERRUPTED}
    exp.put(layout.STORAGE_MARKER, b"")  # a driver starts
    assert verdicts(store) == {"exp": Health.RUNNING}


def test_a_trial_whose_worker_uploads_checkpoints_is_alive(store, clock):
    put_experiment(store, "exp", status="RUNNING", trial_dir="trial")
    clock.now += timedelta(hours=2)
    assert verdicts(store)["exp"] is Health.INTERRUPTED
    store.put("exp/trial/checkpoint_000007/model.bin", b"x")
    assert verdicts(store)["exp"] is Health.RUNNING


def test_checkpoints_below_the_newest_are_not_listed(store, clock):
    put_experiment(store, "exp", status="RUNNING", trial_dir="trial")
    for number in range(50):
        store.put(f"exp/trial/checkpoint_{number:06d}/deep/model.bin", b"x")
    clock.now += timedelta(hours=2)
    store.asked.clear()
    scan(store, use_index=False)
    assert store.asked["list"] == 4  # prefix, root, trial, its newest checkpoint


def test_a_restore_at_work_is_seen_by_its_lease(store, clock):
    put_experiment(store, "exp", status="ERROR")
    clock.now += timedelta(days=1)
    claim = {"restore_id": "r1", "holder": "dag nightly", "ttl_seconds": 120}
    store.put(f"exp/{layout.lease_claim_key(1)}", json.dumps(claim).encode())
    (report,) = scan(store)
    assert report.health is Health.RUNNING
    assert "restore r1 of dag nightly is running on it" in report.reason
    clock.now += timedelta(seconds=121)
    assert verdicts(store)["exp"] is Health.ERRORED
    store.put(f"exp/{layout.lease_heartbeat_key(1)}", b"{}")
    assert verdicts(store)["exp"] is Health.RUNNING
    store.put(f"exp/{layout.lease_release_key(1)}", b"{}")
    assert verdicts(store)["exp"] is Health.ERRORED


def evidence(store):
    """Return the lines of the only experiment's table: found, and what it indicates."""
    (report,) = scan(store)
    return {row.name: (row.found, row.indicates) for row in report.evidence}


def test_a_lease_that_was_not_checked_is_not_shown_as_none(store, clock):
    """The lease of a live experiment is not read: its own writes are enough."""
    put_experiment(store, "exp", status="RUNNING", trial_dir="trial")
    assert evidence(store)[EvidenceKind.RESTORE] == ("none", "")  # nobody ever restored it
    claim = {"restore_id": "r1", "holder": "dag nightly", "ttl_seconds": 120}
    store.put(f"exp/{layout.lease_claim_key(1)}", json.dumps(claim).encode())
    seen = evidence(store)
    assert [
        seen[kind][0]
        for kind in (EvidenceKind.RESTORE, EvidenceKind.TRIAL_DIRS, EvidenceKind.SAMPLES)
    ] == ["not checked"] * 3
    clock.now += timedelta(hours=1)
    store.put(f"exp/{layout.lease_release_key(1)}", b"{}")
    seen = evidence(store)
    assert [seen[kind] for kind in (EvidenceKind.RESTORE, EvidenceKind.TRIAL_DIRS)] == [
        ("none", "")
    ] * 2
    assert seen[EvidenceKind.SAMPLES] == ("0 never drawn", "")


def test_a_sweep_that_has_just_begun_is_not_reported_as_never_started(store, clock):
    store.put("exp/tuner.pkl", b"x")
    (report,) = scan(store)
    assert report.health is Health.RUNNING
    assert report.reason.startswith("no trial of it is saved yet, last written 0 s ago")
    clock.now += timedelta(hours=1)
    (report,) = scan(store)
    assert report.health is Health.NOT_STARTED
    assert "was never started" in report.reason


def test_a_commit_between_two_looks_of_a_scan_is_seen(store, clock):
    """A restore commits and releases its lease after the root was listed, before the lease is."""
    put_experiment(store, "exp", status="RUNNING")
    claim = {"restore_id": "r1", "holder": "dag nightly", "ttl_seconds": 120}
    store.put(f"exp/{layout.lease_claim_key(1)}", json.dumps(claim).encode())
    clock.now += timedelta(hours=1)
    store.put(f"exp/{layout.lease_heartbeat_key(1)}", b"{}")
    list_dir = MemoryStore.list_dir

    def commits_first(self, path=""):
        if path == layout.LEASE:
            committed = STATE_NAME.replace(".json", "_r000001.json")
            store.put(f"exp/{committed}", make_state([make_row("t1")]))
            store.put(f"exp/{layout.lease_release_key(1)}", b"{}")
        return list_dir(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStore, "list_dir", commits_first)
        assert verdicts(store)["exp"] is Health.FINISHED


def test_a_root_that_changes_with_each_listing_is_still_judged(store, clock):
    put_experiment(store, "exp", status="ERROR")
    store.put(f"exp/{layout.lease_release_key(1)}", b"{}")
    list_dir = MemoryStore.list_dir

    def changes(self, path=""):
        store.put("exp/events.out", str(store.asked["list"]).encode())
        return list_dir(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStore, "list_dir", changes)
        store.asked.clear()
        assert verdicts(store)["exp"] is Health.ERRORED
    assert store.asked["list"] < 10


def test_a_store_that_fails_once_makes_nothing_older_the_newest(store, clock):
    put_experiment(store, "exp", status="ERROR")
    newer = "experiment_state-2026-11-24_10-00-00.json"
    store.put(f"exp/{newer}", make_state([make_row("t1")], start_time=2000.0))
    get = MemoryStore.get

    def fails(self, key, *, max_bytes=None):
        if key == newer:
            raise StorageError("timeout")
        return get(self, key, max_bytes=max_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStore, "get", fails)
        assert verdicts(store)["exp"] is Health.UNREADABLE
    assert verdicts(store)["exp"] is Health.FINISHED


changes = st.lists(
    st.tuples(
        st.sampled_from(["a", "t/b", "t/u/c"]),
        st.sampled_from(["TERMINATED", "ERROR", "RUNNING", "PENDING", "damaged"]),
        st.sampled_from([None, 1, 3]),
        st.sampled_from([0, 60, 3600, 90000]),
    ),
    max_size=6,
)


@st.composite
def indexes(draw):
    """Contents in the place of an index: nothing, noise, or lines of anything."""
    kind = draw(st.sampled_from(["kept", "gone", "noise", "cut", "swapped", "edited", "forged"]))
    return kind, draw(st.binary(max_size=200)), draw(st.integers(0, 2**16))


@settings(max_examples=100)
@given(history=changes, damage=indexes(), later=st.sampled_from([0, 60, 3600, 90000]))
def test_with_and_without_an_index_the_reports_are_the_same(history, damage, later):
    """Forged ones included, where there are so few that all is read again."""
    clock = Clock()
    store = CountingStore.new(clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "MIN_ROWS", 1)
        for path, status, samples, seconds in history:
            if status == "damaged":
                store.put(f"{path}/{STATE_NAME}", b"{")
            else:
                put_experiment(store, path, status=status, samples=samples)
            clock.now += timedelta(seconds=seconds)
            scan(store)
        clock.now += timedelta(seconds=later)
        damage_index(store, *damage)
        assert scan(store) == scan(store, use_index=False) == scan(store)


def damage_index(store, kind, noise, number):
    body = store._objects.get(layout.INDEX, (b"",))[0]
    rows = [json.loads(line) for line in body.splitlines()]
    if kind == "gone":
        store.delete(layout.INDEX)
    elif kind == "noise":
        store.put(layout.INDEX, noise)
    elif kind == "cut":
        store.put(layout.INDEX, body[: number % (len(body) + 1)])
    elif kind == "swapped":  # each row says what another one is
        summaries = [row["summary"] for row in rows]
        rows = [
            row | {"summary": one}
            for row, one in zip(rows, summaries[1:] + summaries[:1], strict=True)
        ]
        store.put(layout.INDEX, b"\n".join(json.dumps(row).encode() for row in rows))
    elif kind == "edited":
        store.put(layout.INDEX, body.replace(b"ERROR", b"TERMINATED"))
    elif kind == "forged":
        store.put(layout.INDEX, forge(rows, ERROR="TERMINATED", RUNNING="TERMINATED"))


def forge(rows, **renamed):
    """Return lines that are whole and say another status."""
    for row in rows:
        trials = row["summary"]["trials"]
        row["summary"] |= {"unfinished_dirs": [], "samples_left": 0}
        row["summary"]["trials"] = {renamed.get(name, name): n for name, n in trials.items()}
    return b"".join(
        index_module.encode_row(
            index_module.build_row(
                row["path"], row["fingerprint"], json.dumps(row["summary"]).encode()
            )
        )
        for row in rows
    )
