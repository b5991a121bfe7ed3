"""What every ObjectStore must do. One suite; each implementation is a subclass with a `store` fixture."""

import threading
import uuid

import pytest

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError, StorageError
from airflow_tune_restore.storage.fs import check_exclusive_create

ODD_NAMES = [
    "with space",
    "ünïcode-ß-日本",
    "a=1,b=2",
    "50%25",
    "plus+plus",
    "x#y",
    "q?r",
    "(paren)",
]


class ObjectStoreConformance:
    racers = 8
    rounds = 5

    @pytest.fixture
    def root(self, store):
        return store.at(f"conformance/{uuid.uuid4().hex}")

    def test_what_was_put_is_read_back(self, root):
        root.put("a/b.json", b"\x00one")
        assert root.get("a/b.json") == b"\x00one"
        root.put("a/b.json", b"two")
        assert root.get("a/b.json") == b"two"

    def test_an_empty_object_is_an_object(self, root):
        root.put("empty", b"")
        assert root.get("empty") == b""
        assert root.get("empty", max_bytes=10) == b""

    def test_a_missing_object_is_told_from_an_unreachable_one(self, root):
        with pytest.raises(KeyNotFoundError):
            root.get("nothing/here")
        root.delete("nothing/here")
        assert root.list_dir("nothing") == []

    def test_a_listing_is_one_level_deep_sorted_and_fresh(self, root):
        root.put("top.json", b"12345")
        root.put("dir/deep/er.json", b"x")
        entries = root.list_dir()
        assert [(e.name, e.is_dir) for e in entries] == [("dir", True), ("top.json", False)]
        assert entries[1].size_bytes == 5
        assert entries[1].modified_at.tzinfo is not None
        assert abs((root.now() - entries[1].modified_at).total_seconds()) < 60
        root.put("later.json", b"x")
        assert "later.json" in [e.name for e in root.list_dir()]
        assert [e.name for e in root.list_dir("dir")] == ["deep"]

    def test_what_was_deleted_is_gone(self, root):
        root.put("x", b"1")
        root.delete("x")
        with pytest.raises(KeyNotFoundError):
            root.get("x")

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names_survive(self, root, name):
        root.put(f"{name}/{name}.json", name.encode())
        assert root.at(name).get(f"{name}.json") == name.encode()
        assert [e.name for e in root.list_dir()] == [name]
        assert [e.name for e in root.list_dir(name)] == [f"{name}.json"]

    def test_more_than_the_limit_is_refused(self, root):
        root.put("big", b"x" * 100)
        assert len(root.get("big", max_bytes=100)) == 100
        with pytest.raises(StorageError):
            root.get("big", max_bytes=99)

    def test_an_existing_object_is_not_created_again(self, root):
        root.create("new", b"first")
        with pytest.raises(KeyExistsError):
            root.create("new", b"second")
        assert root.get("new") == b"first"

    def test_of_many_racing_creators_exactly_one_wins(self, root):
        for number in range(self.rounds):
            winners, barrier = [], threading.Barrier(self.racers)

            def race(racer, key=f"race-{number}", winners=winners, barrier=barrier):
                barrier.wait()
                try:
                    root.create(key, f"racer {racer}".encode())
                except KeyExistsError:
                    return
                winners.append(racer)

            threads = [threading.Thread(target=race, args=(racer,)) for racer in range(self.racers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(winners) == 1
            assert root.get(f"race-{number}") == f"racer {winners[0]}".encode()

    def test_the_self_test_lets_it_pass(self, root):
        check_exclusive_create(root)
        assert [e.name for e in root.list_dir(".tune_restore")] == []
