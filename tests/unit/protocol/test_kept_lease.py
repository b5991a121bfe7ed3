"""`tune-restore restore` and commits renew their lease while they run, and write nothing without it."""

import threading

import pytest

from airflow_tune_restore.exceptions import LeaseHeldError, LeaseLostError, StorageError
from airflow_tune_restore.protocol import kept_lease, layout, lease
from airflow_tune_restore.protocol.kept_lease import FRESH_SECONDS, keep_lease
from airflow_tune_restore.protocol.lease_watch import KNOWN_DEAD_SECONDS
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.waiting import eventually


def beats(store):
    entries = store.list_dir(layout.LEASE)
    return [store.get(f"{layout.LEASE}/{e.name}") for e in entries if "heartbeat" in e.name]


@pytest.fixture
def store():
    return MemoryStore()


def take_over(store):
    """Let another restore take the lease, as if the holder had been silent."""
    (held,) = lease.unreleased(store, but="")
    lease.release(store, held)
    lease.acquire(store, restore_id="another", holder="test")


def test_a_lease_is_renewed_until_the_work_is_done(store):
    lease.acquire(store, restore_id="shell", holder="test", ttl_seconds=0.25)
    with keep_lease(store, "shell"):
        first = beats(store)
        assert eventually(lambda: beats(store) != first)
        with pytest.raises(LeaseHeldError):
            lease.refuse_if_alive(store, "another")
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_lease_that_was_lost_is_not_renewed(store, caplog):
    lease.acquire(store, restore_id="shell", holder="test", ttl_seconds=0.25)
    with keep_lease(store, "shell"):
        take_over(store)
        before = beats(store)
        assert eventually(lambda: "could not be renewed" in caplog.text)
        assert beats(store) == before


def test_work_does_not_begin_without_the_lease(store):
    lease.acquire(store, restore_id="another", holder="test")
    with pytest.raises(LeaseLostError), keep_lease(store, "shell"):
        pytest.fail("it began")


@pytest.mark.parametrize("verb", ["create", "put", "delete"])
def test_a_process_that_was_frozen_writes_nothing_more(store, monkeypatch, verb):
    lease.acquire(store, restore_id="shell", holder="test", ttl_seconds=3600)
    store.put("there", b"before")
    now = [1000.0]
    monkeypatch.setattr(kept_lease.time, "monotonic", lambda: now[0])
    with keep_lease(store, "shell") as held:
        held.put("there", b"written")
        take_over(store)
        now[0] += FRESH_SECONDS + 1
        write = {
            "create": lambda: held.at("a").create("new", b"x"),
            "put": lambda: held.put("there", b"x"),
            "delete": lambda: held.delete("there"),
        }[verb]
        with pytest.raises(LeaseLostError):
            write()
        assert held.get("there") == b"written"
        assert held.at("a").list_dir() == []


def test_a_process_that_was_slow_and_still_holds_the_lease_goes_on(store, monkeypatch):
    lease.acquire(store, restore_id="shell", holder="test", ttl_seconds=3600)
    now = [1000.0]
    monkeypatch.setattr(kept_lease.time, "monotonic", lambda: now[0])
    with keep_lease(store, "shell") as held:
        first = beats(store)
        now[0] += FRESH_SECONDS + 1
        held.put("there", b"x")
        assert beats(store) != first
        assert list(held.stream("there", max_bytes=10)) == [b"x"]
        assert held.uri == store.uri


def freeze_in_looks(monkeypatch, now, seconds, *, meanwhile=lambda: None):
    """Let time pass between each answer of the store about the lease and its use."""
    check_held = lease.check_held

    def check_and_freeze(*of, **options):
        held = check_held(*of, **options)
        meanwhile()
        now[0] += seconds
        return held

    monkeypatch.setattr(lease, "check_held", check_and_freeze)


def test_a_process_that_was_frozen_in_a_look_looks_again(store, monkeypatch):
    lease.acquire(store, restore_id="shell", holder="test", ttl_seconds=3600)
    now = [1000.0]
    monkeypatch.setattr(kept_lease.time, "monotonic", lambda: now[0])
    with keep_lease(store, "shell") as held:
        now[0] += FRESH_SECONDS + 1
        freeze_in_looks(monkeypatch, now, 1250.0, meanwhile=lambda: take_over(store))
        with pytest.raises(LeaseLostError):
            held.put("there", b"x")
    assert [entry.name for entry in store.list_dir()] == [layout.ROOT]


def test_nothing_is_written_if_each_look_takes_too_long(store, monkeypatch):
    lease.acquire(store, restore_id="shell", holder="test", ttl_seconds=3600)
    now = [1000.0]
    monkeypatch.setattr(kept_lease.time, "monotonic", lambda: now[0])
    with keep_lease(store, "shell") as held:
        now[0] += FRESH_SECONDS + 1
        freeze_in_looks(monkeypatch, now, FRESH_SECONDS + 1)
        with pytest.raises(
            StorageError, match="5 looks at the lease in a row took longer than 15 s"
        ):
            held.put("there", b"x")
    assert [entry.name for entry in store.list_dir()] == [layout.ROOT]


def test_a_silent_holder_is_watched_for_longer_than_it_may_write():
    assert FRESH_SECONDS <= KNOWN_DEAD_SECONDS / 2
