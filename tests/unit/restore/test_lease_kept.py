"""`tune-restore restore` and commits renew their lease while they run."""

import threading

import pytest

from airflow_tune_restore.exceptions import LeaseHeldError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.waiting import eventually


def beats(store):
    entries = store.list_dir(layout.LEASE)
    return [store.get(f"{layout.LEASE}/{e.name}") for e in entries if "heartbeat" in e.name]


def test_a_lease_is_renewed_until_the_work_is_done():
    store = MemoryStore()
    lease.acquire(store, restore_id="shell", holder="test", ttl_seconds=3600)
    with lease.kept(store, "shell", 0.25):
        assert eventually(lambda: beats(store))
        first = beats(store)
        assert eventually(lambda: beats(store) != first)
        with pytest.raises(LeaseHeldError):
            lease.refuse_if_alive(store, "another")
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_lease_that_was_lost_is_not_renewed(caplog):
    store = MemoryStore()
    lease.release(store, lease.acquire(store, restore_id="shell", holder="test"))
    lease.acquire(store, restore_id="another", holder="test")
    with lease.kept(store, "shell", 0.25):
        assert eventually(lambda: caplog.text.count("could not be renewed") > 1)
    assert beats(store) == []
