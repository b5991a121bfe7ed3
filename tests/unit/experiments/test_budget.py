"""How many bytes are held at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.experiments.budget import ByteBudget


@given(sizes=st.lists(st.integers(0, 30), max_size=30))
def test_no_more_is_held_than_allowed_or_than_one_alone_wants(sizes):
    budget, lock, held, seen = ByteBudget(10), threading.Lock(), [], []

    def read(size):
        with budget.hold(size):
            with lock:
                held.append(size)
                seen.append(sum(held) <= 10 or sum(map(bool, held)) == 1)
            with lock:
                held.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, sizes))
    assert all(seen)
    assert len(seen) == len(sizes)
