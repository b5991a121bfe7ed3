"""What is shared by the processes of a test session is made once, and only if it is asked for."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.made_once import MadeOnce


def test_a_batch_is_made_by_the_first_who_asks(tmp_path):
    made = []

    def make(directory, batch):
        made.append(batch)
        for kind in batch:
            (directory / kind).mkdir(parents=True)

    batches = [("a", "b"), ("c",)]
    shared = [MadeOnce(tmp_path, batches, make) for _ in range(4)]  # as four processes have it
    assert "a" in shared[0]
    assert made == []
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda one: one["b"], shared))
    assert found == {shared[0]["b"]}
    assert shared[1]["a"].is_dir()
    assert made == [("a", "b")]


def test_what_could_not_be_made_is_made_by_the_next(tmp_path):
    made = []

    def make(directory, batch):
        made.append(batch)
        (directory / "a").mkdir(parents=True)
        if len(made) == 1:
            raise RuntimeError("no Ray")

    shared = MadeOnce(tmp_path, [("a",)], make)
    with pytest.raises(RuntimeError):
        shared["a"]
    assert shared["a"].is_dir()
    assert len(made) == 2
