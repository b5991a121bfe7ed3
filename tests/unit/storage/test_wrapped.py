"""The steps that examine and plan an experiment read small objects and trees of trials once."""

import pytest

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage import wrapped
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.storage.wrapped import ReadOnceStore
from tests.support.storage.counting import Clock, CountingStore


class Walked(CountingStore):
    """Counts walks as requests of their own, as object stores answer them."""

    def walk(self, path=""):
        self.asked["walk"] += 1
        yield from MemoryStore(self._objects, root=self._root, clock=self._clock).walk(path)


@pytest.fixture
def behind():
    store = Walked.new(Clock())
    for key in (
        "tuner.pkl",
        "t1/result.json",
        "t1/checkpoint_000000/model",
        "t1/checkpoint_000001/model",
        "t1/checkpoint_000001/deep/er",
        "t2/result.json",
        layout.LEDGER,
    ):
        store.put(key, key.encode())
    store.asked.clear()
    return store


@pytest.fixture
def store(behind):
    return ReadOnceStore(behind)


def listing(store, path):
    return [(entry.name, entry.is_dir, entry.size_bytes) for entry in store.list_dir(path)]


@pytest.mark.parametrize(
    "path", ["t1", "t1/checkpoint_000001", "t1/checkpoint_000001/deep", "t1/missing", "t2", "t3"]
)
def test_a_tree_is_listed_as_its_directories_are(store, behind, path):
    assert listing(store, path) == listing(behind, path)


def test_the_directories_of_a_trial_are_one_request(store, behind):
    for path in ("t1", "t1/checkpoint_000000", "t1/checkpoint_000001", "t1"):
        store.list_dir(path)
    assert behind.asked == {"walk": 1}


def test_a_tree_that_does_not_fit_into_one_answer_is_listed_by_directory(
    store, behind, monkeypatch
):
    monkeypatch.setattr(wrapped, "_ONE_ANSWER", 3)
    assert listing(store, "t1") == listing(behind, "t1")
    behind.asked.clear()
    store.list_dir("t1")
    store.list_dir("t1/checkpoint_000001")
    assert behind.asked == {"list": 2}


def test_trees_take_a_limited_amount_of_memory(store, behind, monkeypatch):
    monkeypatch.setattr(store, "_tree_room", 1)
    store.list_dir("t1")  # more than there is room for, and the last one
    assert listing(store, "t2") == listing(behind, "t2")
    behind.asked.clear()
    store.list_dir("t2")
    store.list_dir("t2")
    assert behind.asked == {"list": 2}


def test_a_small_object_of_the_root_is_read_once(store, behind):
    assert store.get("tuner.pkl", max_bytes=100) == store.get("tuner.pkl") == b"tuner.pkl"
    assert behind.got == {"tuner.pkl": 1}


def test_a_kept_object_has_its_limit_like_any_other(store):
    store.get("tuner.pkl")
    with pytest.raises(Exception, match="holds more than 3 bytes"):
        store.get("tuner.pkl", max_bytes=3)


def test_what_is_missing_is_asked_for_again(store, behind):
    with pytest.raises(KeyNotFoundError):
        store.get("late.pkl")
    behind.put("late.pkl", b"it is there")
    assert store.get("late.pkl") == b"it is there"


def test_own_records_are_read_anew(store, behind):
    for _ in range(2):
        store.get(layout.LEDGER)
        store.list_dir(layout.ROOT)
        store.list_dir()
    assert behind.got == {layout.LEDGER: 2}
    assert behind.asked["list"] == 4


def test_a_directory_that_is_a_link_is_followed_as_before(tmp_path):
    (tmp_path / "elsewhere" / "checkpoint_000001").mkdir(parents=True)
    (tmp_path / "elsewhere" / "checkpoint_000001" / "model").write_bytes(b"x")
    (tmp_path / "sweep" / "t1").mkdir(parents=True)
    (tmp_path / "sweep" / "t1" / "checkpoint_000001").symlink_to(
        tmp_path / "elsewhere" / "checkpoint_000001"
    )
    store = ReadOnceStore(LocalStore(tmp_path / "sweep"))
    assert [entry.name for entry in store.list_dir("t1/checkpoint_000001")] == ["model"]


def test_a_directory_that_leads_to_itself_ends(tmp_path):
    (tmp_path / "t1").mkdir()
    (tmp_path / "t1" / "again").symlink_to(tmp_path / "t1")
    (tmp_path / "t1" / "result.json").write_bytes(b"x")
    store = ReadOnceStore(LocalStore(tmp_path))
    assert [entry.name for entry in store.list_dir("t1")] == ["again", "result.json"]


def test_an_empty_directory_is_still_there(tmp_path):
    (tmp_path / "t1" / "checkpoint_000002").mkdir(parents=True)
    store = ReadOnceStore(LocalStore(tmp_path))
    assert [entry.name for entry in store.list_dir("t1")] == ["checkpoint_000002"]
    assert store.list_dir("t1/checkpoint_000002") == []
