"""A scan in the shell reads few ledgers, and one that cannot be read hides no experiment."""

import json
import pickle
from collections import Counter

import pytest

from airflow_tune_restore.cli import commands as cli
from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.ledger import READ_LIMIT_BYTES
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state

ROWS = [make_row("bad", status="ERROR", error=True)]
LEDGER = json.dumps({"trials": {"bad": {"quarantined": "ValueError, 2 times"}, "t2": {}}}).encode()


class Counting(MemoryStore):
    """Counts what is asked below `.tune_restore`, in all places below it."""

    asked: Counter

    def at(self, path):
        below = type(self)(self._objects, root=f"{self._root}{path}/", clock=self._clock)
        below.asked = self.asked
        return below

    def list_dir(self, path=""):
        self.asked["list"] += path == layout.ROOT
        return super().list_dir(path)

    def get(self, key, *, max_bytes=None):
        self.asked["get"] += key == layout.LEDGER
        return super().get(key, max_bytes=max_bytes)


class Failing(Counting):
    """Fails at the ledger of one experiment."""

    def get(self, key, *, max_bytes=None):
        if (self._root, key) == ("bad/", layout.LEDGER):
            raise StorageError("Cannot read it: timeout.")
        return super().get(key, max_bytes=max_bytes)


def put_experiment(store, path, ledger=None, status="ERROR"):
    row = make_row("bad", status=status, error=status == "ERROR")
    store.put(f"{path}{STATE_NAME}", make_state([row]))
    store.put(f"{path}tuner.pkl", b"x")
    searcher = {"_total_samples": 1, "_finished": True}
    store.put(f"{path}basic-variant-state-2026-01-01_00-00-00.json", pickle.dumps(searcher))
    if ledger is not None:
        store.put(f"{path}{layout.LEDGER}", ledger)


@pytest.fixture
def scan(monkeypatch, capsys):
    """Run `tune-restore scan` over a store or a directory; return what it found, by last name."""

    def run(place):
        if isinstance(place, MemoryStore):
            place.asked = Counter()
            monkeypatch.setattr(cli, "open_place", lambda *_, **__: place)
        monkeypatch.setattr("sys.argv", ["tune-restore", "scan", str(place), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        assert not ended.value.code
        found = json.loads(capsys.readouterr().out)
        return {entry["experiment"].rpartition("/")[2]: entry for entry in found}

    return run


def test_ledgers_are_read_through_the_store_that_was_scanned_and_only_where_there_can_be_one(scan):
    store = Counting()
    put_experiment(store, "failed-again/", LEDGER)
    put_experiment(store, "never-restored/")
    put_experiment(store, "done/", LEDGER, status="TERMINATED")
    put_experiment(store, "restored-well/")
    store.put(f"restored-well/{layout.lease_release_key(1)}", b"{}")
    found = scan(store)
    assert {name: entry["quarantined"] for name, entry in found.items()} == {
        "done": [],
        "failed-again": ["bad"],
        "never-restored": [],
        "restored-well": [],
    }
    assert store.asked == {"list": 2, "get": 1}


def test_the_ledger_of_a_prefix_that_is_an_experiment_itself_is_read(scan):
    store = Counting()
    put_experiment(store, "", LEDGER)
    ((found),) = scan(store).values()
    assert found["quarantined"] == ["bad"]


def test_one_ledger_that_cannot_be_read_keeps_nobody_from_seeing_the_others(scan, tmp_path):
    for name in ("looped", "huge", "noise", "sound"):
        (make_experiment(tmp_path / name, ROWS) / layout.ROOT).mkdir()
    ledgers = {path.name: path / layout.LEDGER for path in tmp_path.iterdir()}
    ledgers["looped"].symlink_to(ledgers["looped"])
    with ledgers["huge"].open("wb") as file:
        file.truncate(READ_LIMIT_BYTES + 1)
    ledgers["noise"].write_bytes(b"{")
    ledgers["sound"].write_bytes(LEDGER)
    found = scan(tmp_path)
    assert {name: (entry["health"], entry["quarantined"]) for name, entry in found.items()} == {
        "looped": ("errored", []),
        "huge": ("errored", []),
        "noise": ("errored", []),
        "sound": ("errored", ["bad"]),
    }
    assert "ledger.json is a link" in found["looped"]["reason"]
    assert f"holds {READ_LIMIT_BYTES + 1} bytes" in found["huge"]["reason"]
    assert "ledger.json is unreadable" in found["noise"]["reason"]
    assert "ledger" not in found["sound"]["reason"]


def test_a_store_that_fails_at_one_ledger_keeps_nobody_from_seeing_the_others(scan):
    store = Failing()
    put_experiment(store, "bad/", LEDGER)
    put_experiment(store, "good/", LEDGER)
    found = scan(store)
    assert [found[name]["quarantined"] for name in ("bad", "good")] == [None, ["bad"]]
    assert found["bad"]["reason"].endswith("its ledger cannot be read: Cannot read it: timeout.")
