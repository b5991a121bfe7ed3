"""Which attempts a shared driver takes from its desk, when, and how it knows that nothing more comes."""

import json
import threading
from dataclasses import replace

import pytest

from airflow_tune_restore.exceptions import RunnerError, StorageError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import desk_reader
from airflow_tune_restore.runner.desk_reader import IDLE_SECONDS, DeskReader
from airflow_tune_restore.runner.heartbeat import Heartbeat
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.waiting import eventually, set_time

DRIVER = RunnerRequest(
    experiment="memory://", restore_id="r", trial_id=layout.SHARED_DRIVER, attempt=1,
    trainable="m:t", trainable_name="t", action="run",
)  # fmt: skip
SEED = json.dumps({"trial_data": [["{}", "{}"]]}).encode()


@pytest.fixture
def store():
    store = MemoryStore()
    lease.acquire(store, restore_id="r", holder="test")
    return store


def lay(store, *trial_ids, **changes):
    """Do what the task of each trial does."""
    for trial_id in trial_ids:
        request = replace(DRIVER, trial_id=trial_id, action="resume", is_shared=True)
        request = replace(request, **changes)
        store.create(layout.request_key("r", trial_id, 1), request.to_json())
        store.put(layout.seed_key("r", trial_id), SEED)
        Desk(store, "r").hand_over(trial_id, 1)


def read(store, **changes):
    """Make the reader of a driver, which has looked and taken once."""
    driver = replace(DRIVER, **changes)
    reader = DeskReader(store, driver, Heartbeat(store, driver, None).join)
    return again(reader)


def again(reader):
    reader.look()
    reader.take()
    return reader


def taken(reader):
    return sorted(work.trial_id for work in reader.take_new())


def test_it_takes_few_ahead_and_as_many_as_run_if_these_are_more(store):
    lay(store, *(f"t{number:02}" for number in range(20)))
    reader = read(store)
    assert len(taken(reader)) == 4
    assert taken(again(reader)) == []
    reader.set_running(4)
    assert len(taken(again(reader))) == 4  # eight: four run, four wait
    reader.set_running(8)
    assert len(taken(again(reader))) == 8
    for work in reader.works()[:3]:
        reader.end(work)
    reader.set_running(5)
    assert taken(again(reader)) == []
    assert len(reader.works()) == 13


def test_with_a_limit_no_more_are_in_work_than_it_says(store):
    lay(store, "a", "b", "c")
    reader = read(store, concurrent=2)
    assert len(taken(reader)) == 2
    reader.set_running(2)
    assert taken(again(reader)) == []
    reader.end(reader.works()[0])
    assert len(taken(again(reader))) == 1


def test_what_it_takes_has_a_first_heartbeat_and_its_seed(store):
    lay(store, "a")
    (work,) = read(store).take_new()
    assert (work.request.trial_id, work.seed) == ("a", json.loads(SEED))
    assert json.loads(store.get(layout.heartbeat_key("r", "a", 1)))["count"] == 1


def test_the_seeds_of_all_that_lies_there_are_read_as_far_as_they_can_be(store):
    lay(store, *"abcdef")
    store.put(layout.seed_key("r", "f"), b"{")
    assert read(store).seeds() == [json.loads(SEED)] * 5


def test_two_drivers_take_each_attempt_once(store):
    lay(store, "a", "b", "c", "d")
    first, second = read(store, concurrent=2), read(store)
    assert sorted(taken(first) + taken(second)) == ["a", "b", "c", "d"]
    for reader in (first, second):
        assert taken(again(reader)) == []


@pytest.mark.parametrize(
    "changes",
    [{"is_shared": False}, {"action": "run"}, {"trial_id": "other"}, {"attempt": 2}],
    ids=str,
)
def test_a_request_that_is_not_for_it_is_left_without_a_trace(store, changes):
    lay(store, "a")
    request = replace(DRIVER, trial_id="a", action="resume", is_shared=True)
    store.put(layout.request_key("r", "a", 1), replace(request, **changes).to_json())
    assert taken(read(store)) == []
    assert names_of_attempt(store) == ["request.json"]


@pytest.mark.parametrize("name", ["..%2F..@000001.run", "a@000002.run", "a%0Ab@000001.run"])
def test_a_name_on_the_desk_that_cannot_be_an_attempt_is_left(store, name):
    store.put(f"{layout.desk_dir('r')}/{name}.json", b"{}")
    lay(store, "good")
    assert taken(read(store)) == ["good"]


def test_an_attempt_that_a_newer_one_follows_is_left_without_a_trace(store):
    lay(store, "a")
    store.create(layout.request_key("r", "a", 2), b"{}")
    assert taken(read(store)) == []
    assert names_of_attempt(store) == ["request.json"]


def names_of_attempt(store):
    return [entry.name for entry in store.list_dir(layout.attempt_dir("r", "a", 1))]


@pytest.mark.parametrize("seed", [b"{", b"[]", b'{"trial_data": []}', b'{"trial_data": [[1, 2]]}'])
def test_a_damaged_seed_is_an_error_of_its_trial_alone(store, seed):
    lay(store, "a", "b")
    store.put(layout.seed_key("r", "a"), seed)
    works = {work.trial_id: work for work in read(store).take_new()}
    assert isinstance(works["a"].error, RunnerError)
    assert works["b"].error is None


def test_those_that_were_asked_to_stop_are_taken_beyond_each_limit(store):
    lay(store, "a", "b", "c")
    Desk(store, "r").ask_to_stop("c", 1)
    reader = read(store, concurrent=1)
    works = {work.trial_id: work for work in reader.take_new()}
    (other,) = works.keys() - {"c"}
    assert reader.is_asked_to_stop(works["c"])
    assert not reader.is_asked_to_stop(works[other])


def test_one_whose_first_heartbeat_has_lost_its_answer_is_the_next_and_counts_as_taken(
    store, monkeypatch
):
    """The task that follows it sees that it has begun, and gives it up if no other heartbeat comes."""
    create, lost = store.create, iter(["z"])

    def create_unheard(key, body):
        create(key, body)
        if key == layout.heartbeat_key("r", "z", 1) and next(lost, None):
            raise StorageError("the answer was lost")

    monkeypatch.setattr(store, "create", create_unheard)
    lay(store, "z")
    reader = DeskReader(store, DRIVER, Heartbeat(store, DRIVER, None).join)
    with pytest.raises(StorageError):
        again(reader)
    lay(store, *"abcdef")
    again(reader)
    assert taken(reader) == ["a", "b", "c", "z"]


def test_an_attempt_that_is_over_is_taken_off_the_desk(store):
    lay(store, "a")
    Desk(store, "r").ask_to_stop("a", 1)
    reader = read(store)
    reader.end(reader.works()[0])
    assert Desk(store, "r").read().to_run == []
    assert store.list_dir(layout.desk_dir("r")) == []


def test_the_driver_of_a_closed_desk_ends_when_all_is_done(store):
    lay(store, "a")
    reader = read(store)
    assert not reader.is_done()
    Desk(store, "r").close()
    assert not again(reader).is_done()
    reader.end(reader.works()[0])
    assert reader.is_done()


def test_an_open_desk_is_waited_for_and_work_begins_the_wait_anew(store, monkeypatch):
    clock = {"now": 1000.0}
    set_time(monkeypatch, "monotonic", lambda: clock["now"])
    reader = read(store)
    clock["now"] += IDLE_SECONDS - 1
    assert not again(reader).is_done()
    lay(store, "a")
    clock["now"] += 10
    assert not again(reader).is_done()
    reader.end(reader.works()[0])
    assert not again(reader).is_done()
    clock["now"] += IDLE_SECONDS
    assert again(reader).is_done()


def test_a_driver_that_ends_takes_nothing_that_comes_late(store):
    """Its last records would else hold an attempt that it has begun and not run."""
    Desk(store, "r").close()
    reader = read(store)
    assert reader.is_done()
    lay(store, "a")
    assert taken(again(reader)) == []
    assert reader.is_done()
    assert not store.list_dir(f"{layout.attempts_dir('r', 'a')}/000001")[1:]  # the request alone


def test_its_thread_takes_what_comes_and_survives_a_store_that_fails(store, monkeypatch):
    monkeypatch.setattr(desk_reader, "DESK_SECONDS", 0.01)
    failed = threading.Event()
    listed = store.list_dir

    def fail_once(directory=""):
        if not failed.is_set():
            failed.set()
            raise StorageError("the store does not answer")
        return listed(directory)

    reader = DeskReader(store, DRIVER, Heartbeat(store, DRIVER, None).join)
    monkeypatch.setattr(store, "list_dir", fail_once)
    reader.start()
    try:
        lay(store, "a")
        eventually(lambda: [work.trial_id for work in reader.works()] == ["a"])
        assert failed.is_set()
    finally:
        reader.stop()
    lay(store, "b")
    assert AttemptId("r", "b", 1) in Desk(store, "r").read().to_run
