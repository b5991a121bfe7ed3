"""Places in one bucket share a client as long as what opened them lives."""

import threading
import time

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.fs import StoreClients
from airflow_tune_restore.storage.self_test import check_exclusive_create


@pytest.fixture
def clients():
    return StoreClients()


def client_of(store):
    return store._fs


def test_places_in_one_bucket_share_a_client(clients):
    stores = [clients.open(f"memory://bucket/{path}") for path in ("a", "a/b", "c")]
    assert len({id(client_of(store)) for store in stores}) == 1
    assert [store.uri for store in stores] == [
        "memory://bucket/a", "memory://bucket/a/b", "memory://bucket/c",
    ]  # fmt: skip


def test_buckets_and_accounts_have_clients_of_their_own(clients):
    import fsspec

    def connect():
        return fsspec.filesystem("memory", skip_instance_cache=True)

    stores = [
        clients.open("memory://one/a"),
        clients.open("memory://other/a"),
        clients.open("memory://one/a", account="conn", connect=connect),
    ]
    assert len({id(client_of(store)) for store in stores}) == 3


def test_a_connection_is_asked_for_once_by_many_threads(clients):
    import fsspec

    asked = []

    def connect():
        asked.append(1)
        time.sleep(0.01)
        return fsspec.filesystem("memory", skip_instance_cache=True)

    threads = [
        threading.Thread(
            target=lambda n=n: clients.open(f"memory://b/{n}", account="c", connect=connect)
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


def test_after_an_error_new_places_get_a_new_client(clients):
    before = clients.open("memory://bucket/a")
    clients.forget()
    assert client_of(clients.open("memory://bucket/a")) is not client_of(before)
    assert before.uri == "memory://bucket/a"


def test_an_address_is_checked_however_many_were_opened(clients):
    clients.open("memory://bucket/a")
    with pytest.raises(InvalidInputError, match="not known"):
        clients.open("memory://bucket/a?region=x")


def test_a_path_needs_no_client(clients, tmp_path):
    assert clients.open(str(tmp_path)).uri == tmp_path.as_posix()


def test_a_bucket_is_tested_once(clients, monkeypatch):
    stores = [clients.open(f"memory://tested/{n}") for n in range(3)]
    created = []
    create = type(stores[0]).create
    monkeypatch.setattr(
        type(stores[0]), "create", lambda self, *args: (created.append(1), create(self, *args))[1]
    )
    for store in stores:
        check_exclusive_create(store)
    assert len(created) == 2  # two racers
