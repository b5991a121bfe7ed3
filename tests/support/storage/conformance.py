"""What every ObjectStore must do. Each implementation is a subclass with a `store` fixture."""

import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import KeyExistsError, KeyNotFoundError, StorageError
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.storage.self_test import check_exclusive_create

ODD_NAMES = [
    "with space",
    "ünïcode-ß-日本",
    "a=1,b=2",
    "50%25",
    "plus+plus",
    "x#y",
    "q?r",
    "x#",
    "x?",
    "x;y",
    "a@b",
    "tail ",
    " lead",
    "(paren)",
    "NoSuchBucket 404",
]


class ReadWriteConformance:
    """Everything but `create`, which pyarrow does not have."""

    has_etags = True

    @pytest.fixture
    def root(self, store):
        # words that once were looked for in the texts of errors, which hold the key
        return store.at(f"bucket-416-precondition-conflict/{uuid.uuid4().hex}")

    def test_what_was_put_is_read_back(self, root):
        root.put("a/b.json", b"\x00one")
        assert root.get("a/b.json") == b"\x00one"
        root.put("a/b.json", b"two")
        assert root.get("a/b.json") == b"two"

    def test_an_empty_object_is_an_object(self, root):
        root.put("empty", b"")
        assert root.get("empty") == b""
        assert root.get("empty", max_bytes=10) == b""

    @pytest.mark.parametrize("limit", [{}, {"max_bytes": 100}], ids=["unlimited", "limited"])
    def test_what_is_missing_is_said_to_be_missing(self, root, limit):
        for key in ("nothing", "nothing/here"):
            with pytest.raises(KeyNotFoundError):
                root.get(key, **limit)
            root.delete(key)

    def test_where_there_is_nothing_a_listing_is_empty(self, root):
        assert root.list_dir() == []
        assert root.at("some").at("where").list_dir("else") == []
        root.put("object", b"x")
        assert root.list_dir("object") == []

    def test_a_directory_is_not_an_object(self, root):
        root.put("dir/object", b"x")
        with pytest.raises(KeyNotFoundError):
            root.get("dir")

    def test_a_listing_is_one_level_deep_and_sorted(self, root):
        root.put("top.json", b"12345")
        root.put("dir/deep/er.json", b"x")
        entries = root.list_dir()
        assert [(e.name, e.is_dir) for e in entries] == [("dir", True), ("top.json", False)]
        assert entries[1].size_bytes == 5
        assert [e.name for e in root.list_dir("dir")] == ["deep"]

    def test_a_walk_yields_all_objects_below_and_nothing_else(self, root):
        for key in ("a/one", "a/b/two", "a/b/c/three", "ab/four", "five"):
            root.put(key, key.encode())
        walked = {entry.name: entry for entry in root.walk("a")}
        assert set(walked) == {"one", "b/two", "b/c/three"}
        assert walked["b/two"].size_bytes == len(b"a/b/two")
        assert walked["b/two"].modified_at is not None
        assert not any(entry.is_dir for entry in walked.values())
        assert {entry.name for entry in root.walk()} >= {"five", "ab/four", "a/b/c/three"}
        assert list(root.walk("missing")) == []

    def test_a_walk_sees_what_was_put_just_before_it(self, root):
        for number in range(3):
            root.put(f"grows/{number}", b"x")
            assert len(list(root.walk("grows"))) == number + 1

    def test_a_directory_is_not_confused_with_one_whose_name_begins_the_same(self, root):
        root.put("sweep/a", b"x")
        root.put("sweep1/b", b"x")
        root.put("sweep.json", b"x")
        assert [e.name for e in root.list_dir("sweep")] == ["a"]

    def test_a_listing_is_never_from_a_cache(self, root, store):
        other = store.at(root.uri.removeprefix(store.uri).strip("/"))
        assert root.list_dir("dir") == []
        other.put("dir/first", b"x")
        assert [e.name for e in root.list_dir("dir")] == ["first"]
        other.put("dir/second", b"x")
        assert [e.name for e in root.list_dir("dir")] == ["first", "second"]
        other.delete("dir/first")
        assert [e.name for e in root.list_dir("dir")] == ["second"]

    def test_times_are_aware_and_by_the_stores_own_clock(self, root):
        root.put("object", b"x")
        (entry,) = root.list_dir()
        # a day: of time zones and wrong units; a starved machine may take minutes between the two
        assert abs(root.now() - entry.modified_at) < timedelta(days=1)

    def test_the_etag_tells_one_content_from_another(self, root):
        if not self.has_etags:
            pytest.skip("this client tells no etags")
        root.put("object", b"one")
        before = root.list_dir()
        assert root.list_dir() == before
        root.put("object", b"another")
        assert root.list_dir()[0].etag != before[0].etag != ""

    def test_what_was_deleted_is_gone(self, root):
        root.put("dir/x", b"1")
        root.delete("dir/x")
        with pytest.raises(KeyNotFoundError):
            root.get("dir/x")
        assert root.list_dir("dir") == []

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names_survive(self, root, name):
        root.put(f"{name}/{name}.json", name.encode())
        assert root.at(name).get(f"{name}.json") == name.encode()
        assert [e.name for e in root.list_dir()] == [name]
        assert [e.name for e in root.list_dir(name)] == [f"{name}.json"]
        root.delete(f"{name}/{name}.json")
        with pytest.raises(KeyNotFoundError):
            root.get(f"{name}/{name}.json")

    def test_more_than_the_limit_is_refused(self, root):
        root.put("big", b"x" * 100)
        assert len(root.get("big", max_bytes=100)) == 100
        with pytest.raises(StorageError):
            root.get("big", max_bytes=99)

    def test_a_large_object_is_streamed_as_it_was_put(self, root):
        body = random.Random(7).randbytes(20_000_000)
        root.put("large", body)
        assert b"".join(root.stream("large", max_bytes=len(body))) == body
        root.put("empty", b"")
        assert b"".join(root.stream("empty", max_bytes=0)) == b""
        with pytest.raises(StorageError, match="holds"):
            list(root.stream("large", max_bytes=len(body) - 1))
        for key in ("nothing", "nothing/here"):
            with pytest.raises(KeyNotFoundError):
                list(root.stream(key, max_bytes=10))

    def test_many_threads_may_use_one_store(self, root):
        def write_and_read(number):
            root.put(f"{number}/object", str(number).encode())
            return root.get(f"{number}/object"), [e.name for e in root.list_dir(str(number))]

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(write_and_read, range(32)))
        assert found == [(str(number).encode(), ["object"]) for number in range(32)]


class ObjectStoreConformance(ReadWriteConformance):
    racers = 8
    rounds = 5

    def test_an_existing_object_is_not_created_again(self, root):
        root.create("dir/new", b"first")
        with pytest.raises(KeyExistsError):
            root.create("dir/new", b"second")
        assert root.get("dir/new") == b"first"

    def test_what_was_deleted_may_be_created_anew(self, root):
        root.create("new", b"first")
        root.delete("new")
        root.create("new", b"second")
        assert root.get("new") == b"second"

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

            with ThreadPoolExecutor(self.racers) as pool:
                list(pool.map(race, range(self.racers)))  # raises what a racer raised
            assert len(winners) == 1
            assert root.get(f"race-{number}") == f"racer {winners[0]}".encode()

    def test_the_self_test_lets_it_pass(self, root):
        check_exclusive_create(root)
        assert [e.name for e in root.list_dir(".tune_restore")] == []


def uses(store):
    """Return every way of using a store, each as a function."""
    return [
        store.list_dir,
        lambda: store.get("x", max_bytes=10),
        lambda: store.put("x", b""),
        lambda: store.create("x", b""),
        store.now,
    ]


class CloudConformance:
    """What only stores behind a network can do wrong."""

    def put_marker(self, root, path):
        root._fs.pipe_file(f"{root._path(path)}/", b"")

    @pytest.fixture
    def missing_bucket(self, store):
        here = Location.parse(store.uri)
        there = here._replace(authority="no-such-thing-here", path="/experiment")
        return type(store)(store._fs, there)

    def test_directory_markers_are_folded_into_their_directory(self, root):
        root.put("dir/file", b"x")
        self.put_marker(root, "dir")
        self.put_marker(root, "empty")
        assert [(e.name, e.is_dir) for e in root.list_dir()] == [("dir", True), ("empty", True)]
        assert [e.name for e in root.list_dir("dir")] == ["file"]
        assert root.list_dir("empty") == []

    def test_a_missing_bucket_is_not_an_empty_one(self, missing_bucket):
        with pytest.raises(StorageError, match="the bucket 'no-such-thing-here' does not exist"):
            missing_bucket.list_dir()

    def test_a_missing_bucket_is_not_a_missing_object(self, missing_bucket):
        with pytest.raises(StorageError, match=r"the bucket .* does not exist"):
            missing_bucket.get("object", max_bytes=10)
