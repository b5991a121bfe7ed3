"""A forged index: found by what is read again beside it, and by chance, which the tests choose."""

import json
import pickle
from collections import Counter
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.experiments import spot_check
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.index import build_row, encode_row
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.scan_filter import ScanFilter
from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.storage.counting import Clock, CountingStore

SEARCHER = "basic-variant-state-2026-01-01_00-00-00.json"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return CountingStore.new(clock)


@pytest.fixture
def by_chance_alone(monkeypatch):
    """No more are read than chance chooses."""
    monkeypatch.setattr(spot_check, "LEAST", 0)


def chooses(*names):
    """Return the chance that chooses those."""
    return lambda path: 0.0 if path in names else 1.0


def put_experiment(store, path, *, status="ERROR", samples=4, **fields):
    last = {"last_result": {"done": True}} if status == "TERMINATED" else {}
    rows = [make_row(f"t{n}", status=status, **last, **fields) for n in range(4)]
    store.put(f"{path}/{STATE_NAME}", make_state(rows))
    store.put(f"{path}/tuner.pkl", b"x")
    store.put(f"{path}/{SEARCHER}", pickle.dumps({"_total_samples": samples}))


def fill(store, clock, count, **options):
    """Put experiments that ended long ago, and let a scan remember them."""
    for number in range(count):
        put_experiment(store, f"e{number:03}", **options)
    clock.now += timedelta(days=30)
    scan(store)
    assert layout.INDEX in store._objects


def remembered(store):
    """Return the summaries in the index, by path."""
    rows = map(json.loads, store.get(layout.INDEX).splitlines())
    return {row["path"]: row["summary"] for row in rows}


def forge(store, *paths, **lies):
    """Let whole rows of the index say something else; of all experiments, or some."""
    body = b""
    for line in store.get(layout.INDEX).splitlines():
        row = json.loads(line)
        if not paths or row["path"] in paths:
            row["summary"] |= lies
        summary = json.dumps(row["summary"]).encode()
        body += encode_row(build_row(row["path"], row["fingerprint"], summary))
    store.put(layout.INDEX, body)


FINISHED = {"trials": {"TERMINATED": 4}, "ended_by": {"itself": 4}}


def test_sixty_forged_rows_are_found_by_the_first_scan(store, clock, caplog):
    fill(store, clock, 60)
    forge(store, **FINISHED)
    reports = scan(store, chance=chooses())
    assert Counter(report.health for report in reports) == {Health.ERRORED: 60}
    assert remembered(store)["e007"]["trials"] == {"ERROR": 4}
    told = [r.getMessage() for r in caplog.records]
    said = "the index has trials={'TERMINATED': 4}, its state trials={'ERROR': 4}."
    assert [text.partition(": ")[2] for text in told[:-1]] == [said] * spot_check.LEAST
    assert (
        "the index does not agree with the states in all 8 checked rows. The index is ignored"
        in told[-1]
    )
    assert layout.INDEX in told[-1]


def test_one_hit_shows_all_that_are_forged(store, clock, by_chance_alone):
    """Even if the rows that hide the others are right."""
    fill(store, clock, 60)
    forge(store, "e010", "e020", "e030", **FINISHED)
    reports = scan(store, chance=chooses("e005", "e020"))
    assert Counter(report.health for report in reports) == {Health.ERRORED: 60}


def test_a_forged_row_that_chance_passes_over_stands_for_that_scan(store, clock, by_chance_alone):
    """The promise in the docstring of `index`."""
    fill(store, clock, 60)
    forge(store, "e010", **FINISHED)
    reports = {r.name: r.health for r in scan(store, chance=chooses("e005", "e020"))}
    assert reports.pop("e010") is Health.FINISHED
    assert set(reports.values()) == {Health.ERRORED}


def test_one_forged_row_is_found_within_some_scans(store, clock):
    """Each scan chooses by itself: with so many scans, one of 60 is missed once in 10**37."""
    fill(store, clock, 60)
    forge(store, "e010", **FINISHED)
    for _ in range(600):
        if all(report.health is Health.ERRORED for report in scan(store)):
            return
    pytest.fail("It was never read again.")


def read_again(store, **options):
    """Return how often each object of an experiment is got by a scan of what has not changed."""
    store.got.clear()
    scan(store, **options)
    return store.got[STATE_NAME]


@pytest.mark.parametrize(("chosen", "expected"), [(0, 8), (5, 8), (8, 8), (20, 20)])
def test_what_chance_chooses_is_read_again_and_eight_at_least(store, clock, chosen, expected):
    fill(store, clock, 60)
    names = [f"e{number:03}" for number in range(30, 30 + chosen)]
    assert read_again(store, chance=chooses(*names)) == expected


def test_chance_cannot_be_foreseen_and_chooses_one_in_thirty_two():
    paths = [f"e{number}" for number in range(32_000)]
    first, second = spot_check.fresh_chance(), spot_check.fresh_chance()
    assert all(first(path) == first(path) for path in paths[:10])
    chosen = [{p for p in paths if chance(p) < 1 / spot_check.ONE_IN} for chance in (first, second)]
    # 31 is one standard deviation, so ten are never seen
    assert all(abs(len(paths) / 32 - len(some)) < 310 for some in chosen)
    assert len(chosen[0] & chosen[1]) < 310


def test_a_check_costs_what_was_read_before(store, clock, by_chance_alone):
    fill(store, clock, 64)
    store.asked.clear()
    scan(store, chance=chooses("e001", "e002"))
    assert store.asked == {"list": 65, "get": 1 + 2 + 2}  # states and searchers' states


def test_rows_of_experiments_that_are_not_there_spread_no_chance(store, clock):
    fill(store, clock, 60)
    forge(store, **FINISHED)
    others = (encode_row(build_row(f"x{n}", "f" * 64, b"{}")) for n in range(5_000))
    store.put(layout.INDEX, b"".join(others) + store.get(layout.INDEX))
    assert Counter(report.health for report in scan(store)) == {Health.ERRORED: 60}


def test_what_was_read_in_this_scan_is_not_read_again(store, clock):
    fill(store, clock, 60)
    for number in range(59):
        put_experiment(store, f"e{number:03}", status="TERMINATED")
    clock.now += timedelta(days=1)
    assert read_again(store) == 59 + 1


LIES = {
    "another state": {"state_file": "experiment_state-2020-01-01_00-00-00.json"},
    "fewer trials": {"trials": {"ERROR": 1}},
    "unfinished trials": {"trials": {"ERROR": 3, "RUNNING": 1}},
    "directories": {"trials": {"RUNNING": 4}, "unfinished_dirs": ["a"]},
    "samples": {"samples_left": None},
    "more samples": {"samples_left": 7},
    "the newest result": {"last_result": 5.0},
    "two days between results": {"longest_interval": 172800.0},
    "two days between snapshots": {"snapshot_period": 172800.0},
    "a trainable": {"trainables": ["theirs"]},
    "no state": {"state_file": "", "trials": {}, "unreadable": "broken"},
}
BARE = dict.fromkeys(("samples_left", "last_result", "snapshot_period"))
BARE |= {"longest_interval": 0.0, "searcher_lost": "", "unreadable": ""}
BARE |= {"unfinished_dirs": (), "warnings": (), "trainables": (), "ended_by": {}}


@pytest.mark.parametrize("lie", LIES)
def test_whatever_verdicts_rest_on_is_compared(store, clock, lie):
    fill(store, clock, 50)
    honest = store.get(layout.INDEX)
    forge(store, "e010", **((BARE if lie == "no state" else {}) | LIES[lie]))
    scan(store, chance=chooses("e010"))
    assert store.get(layout.INDEX) == honest


def test_no_field_of_a_summary_is_forgotten():
    lies = {name for lie in LIES.values() for name in lie}
    assert lies | spot_check.NOT_COMPARED == set(StateSummary.__struct_fields__)
    assert not lies & spot_check.NOT_COMPARED


def test_an_experiment_that_never_started_has_no_row(store, clock, caplog):
    fill(store, clock, 50)
    store.put("bare/tuner.pkl", b"x")
    clock.now += timedelta(days=1)
    mark = spot_check.fingerprint(store.at("bare").list_dir())
    summary = json.dumps({"state_file": STATE_NAME} | FINISHED).encode()
    store.put(layout.INDEX, store.get(layout.INDEX) + encode_row(build_row("bare", mark, summary)))
    found = {report.name: report.health for report in scan(store, chance=chooses("bare"))}
    assert found["bare"] is Health.NOT_STARTED
    assert "was never started" in caplog.text


@pytest.mark.parametrize("status", ["TERMINATED", "ERROR", "RUNNING", "PENDING", "PAUSED"])
@pytest.mark.parametrize("samples", [1, 4, 9])
def test_an_honest_index_is_trusted(store, clock, status, samples, caplog):
    """Also where fields were added after reading: samples that are left, doubts about `tuner.pkl`."""
    fill(store, clock, 50, status=status, samples=samples)
    before = store.get(layout.INDEX)
    clock.now += timedelta(days=1)
    scan(store, chance=chooses(*remembered(store)))
    assert "index is ignored" not in caplog.text
    assert store.get(layout.INDEX) == before


def test_damaged_states_are_trusted_to_be_damaged(store, clock, caplog):
    for number in range(60):
        store.put(f"e{number:03}/{STATE_NAME}", b"{")
    scan(store)
    assert Counter(r.health for r in scan(store, chance=chooses("e001"))) == {Health.UNREADABLE: 60}
    assert "index is ignored" not in caplog.text


def test_an_experiment_that_changes_meanwhile_is_not_a_forgery(
    store, clock, by_chance_alone, monkeypatch, caplog
):
    fill(store, clock, 60)
    get = MemoryStore.get

    def removes(self, key, *, max_bytes=None):
        if key == STATE_NAME:
            put_experiment(store, "e001", status="TERMINATED")
        return get(self, key, max_bytes=max_bytes)

    monkeypatch.setattr(MemoryStore, "get", removes)
    scan(store, chance=chooses("e001"))
    assert "index is ignored" not in caplog.text


def test_a_store_that_fails_at_the_check_is_logged_and_not_a_forgery(
    store, clock, by_chance_alone, monkeypatch, caplog
):
    fill(store, clock, 60)
    get = MemoryStore.get

    def fails(self, key, *, max_bytes=None):
        if key == STATE_NAME:
            raise StorageError("timeout")
        return get(self, key, max_bytes=max_bytes)

    monkeypatch.setattr(MemoryStore, "get", fails)
    reports = scan(store, chance=chooses("e001"))
    assert Counter(report.health for report in reports) == {Health.ERRORED: 60}
    assert "memory://e001 cannot be compared with the index: timeout" in caplog.text


def test_a_forged_index_is_replaced_by_a_scan_of_a_few(store, clock):
    """Or its other rows would stand for ever, where only parts are ever scanned."""
    fill(store, clock, 60)
    forge(store, **FINISHED)
    reports = scan(store, selection=ScanFilter(include=("e001",)))
    assert [report.health for report in reports] == [Health.ERRORED]
    assert list(remembered(store)) == ["e001"]


def test_a_prefix_that_cannot_be_written_to_still_gets_true_reports(store, clock):
    fill(store, clock, 60)
    forge(store, **FINISHED)
    store.refuses = True
    assert Counter(report.health for report in scan(store)) == {Health.ERRORED: 60}


def test_what_a_forger_writes_into_a_row_is_shown_on_one_line(store, clock, caplog):
    fill(store, clock, 50)
    forge(store, "e010", trainables=["\x1b[31m\n::group::"] * 300)
    scan(store, chance=chooses("e010"))
    told, _ = [r.getMessage() for r in caplog.records]
    assert told.isprintable()
    assert len(told) < 5_000
