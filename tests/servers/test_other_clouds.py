"""The operations that a restore relies on, on GCS and Azure; the whole suite on both is in slow/."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError, LeaseHeldError
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.storage.fs import open_store

RACERS = 4


@pytest.mark.parametrize("kind", ["gcs", "azure"])
def test_one_of_many_creators_wins_and_one_restore_holds_the_lease(kind, request):
    server = request.getfixturevalue(kind)
    store = open_store(f"{server.url}/{uuid.uuid4().hex}")
    barrier = threading.Barrier(RACERS)

    def race(racer: int) -> int | None:
        barrier.wait()
        try:
            store.create("dir/raced for", f"racer {racer}".encode())
        except KeyExistsError:
            return None
        return racer

    with ThreadPoolExecutor(RACERS) as pool:
        (winner,) = [racer for racer in pool.map(race, range(RACERS)) if racer is not None]
    assert store.get("dir/raced for", max_bytes=100) == f"racer {winner}".encode()

    store.put("x y", b"one")
    store.put("x y", b"two")
    assert [(e.name, e.is_dir, e.size_bytes) for e in store.list_dir()][1:] == [("x y", False, 3)]
    assert [e.name for e in store.list_dir("dir")] == ["raced for"]
    store.delete("x y")
    with pytest.raises(KeyNotFoundError):
        store.get("x y")

    held = lease.acquire(store, restore_id="r1", holder="the first")
    with pytest.raises(LeaseHeldError, match="the first"):
        lease.acquire(store, restore_id="r2", holder="the second")
    lease.renew(store, held)
    assert lease.check_held(store, "r1").epoch == held.epoch
    lease.release(store, held)
    assert lease.acquire(store, restore_id="r2", holder="the second").epoch == held.epoch + 1
