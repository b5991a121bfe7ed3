"""Lists of experiments are kept for a while, and made once for all who ask at the same time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.plugin.experiment_lists import ExperimentLists
from airflow_tune_restore.plugin.places import Places
from airflow_tune_restore.plugin.settings import Settings
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.views import best_values
from airflow_tune_restore.views.best_values import THREADS, Best
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.waiting import PATIENCE_SECONDS


class CountedPlaces(Places):
    """Counts how often a prefix is opened, which each scan begins with."""

    def __init__(self, error=None):
        self.now, self.opened, self.error = 0.0, 0, error
        self.go_on = threading.Event()
        self.go_on.set()
        super().__init__(Settings(prefixes={"a": Address("/a")}), monotonic=lambda: self.now)

    def open_prefix(self, prefix):
        self.opened += 1
        self.go_on.wait()
        if self.error:
            raise self.error
        return MemoryStore()


def test_a_list_is_kept_for_its_seconds():
    places = CountedPlaces()
    lists = ExperimentLists(places)
    assert lists.read("a")["experiments"] == []
    places.now = 30
    lists.read("a")
    assert places.opened == 1
    places.now = 31
    lists.read("a")
    assert places.opened == 2


def test_a_fresh_list_is_new():
    places = CountedPlaces()
    lists = ExperimentLists(places)
    for now in (1, 2):
        places.now = now
        lists.read("a", fresh=True)
    assert places.opened == 2


def test_a_list_that_was_forgotten_is_made_again():
    places = CountedPlaces()
    lists = ExperimentLists(places)
    lists.read("a")
    lists.forget("a")
    lists.read("a")
    assert places.opened == 2


def test_a_scan_that_ran_while_something_changed_is_not_kept():
    places = CountedPlaces()
    places.go_on.clear()
    lists = ExperimentLists(places)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lists.read, "a")
        while not places.opened:
            pass
        places.now = 1
        lists.forget("a")
        places.go_on.set()
        asked.result()
    places.now = 2
    for _ in range(2):
        lists.read("a")
    assert places.opened == 2


def test_of_many_who_ask_at_once_one_has_the_prefix_scanned():
    places = CountedPlaces()
    places.go_on.clear()
    lists = ExperimentLists(places)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(lists.read, "a") for _ in range(8)]
        places.go_on.set()
        answers = [each.result() for each in asked]
    assert places.opened == 1
    assert all(each == answers[0] for each in answers)


def test_an_error_is_not_kept():
    places = CountedPlaces(StorageError("no"))
    lists = ExperimentLists(places)
    for _ in range(2):
        with pytest.raises(StorageError):
            lists.read("a")
    assert places.opened == 2


class TwoPrefixes(Places):
    """Two prefixes of one store with some experiments each."""

    def __init__(self):
        self.store = MemoryStore()
        for number in range(THREADS + 1):
            for prefix in "ab":
                self.store.put(f"{prefix}/x{number}/{STATE_NAME}", make_state([make_row("t")]))
        super().__init__(Settings(prefixes={"a": Address("/a"), "b": Address("/b")}))

    def open_prefix(self, prefix):
        return self.store.at(prefix)


def test_a_store_that_stops_to_answer_holds_up_the_best_values_of_no_other_prefix(monkeypatch):
    go_on, is_known = threading.Event(), threading.Semaphore(0)

    def read(store):
        if store.uri.startswith("memory://a/"):
            go_on.wait()
        else:
            is_known.release()
        return Best()

    monkeypatch.setattr(best_values, "read_best", read)
    lists = ExperimentLists(TwoPrefixes())
    try:
        assert lists.read("a")["pending"] == THREADS + 1
        assert lists.read("b")["pending"] == THREADS + 1
        assert all(is_known.acquire(timeout=PATIENCE_SECONDS) for _ in range(THREADS + 1))
    finally:
        go_on.set()
