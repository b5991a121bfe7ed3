"""Many requests at the same time: in order, bounded, and none after an error."""

import threading
import time
from unittest.mock import patch

import pytest

from airflow_tune_restore.storage import in_flight
from airflow_tune_restore.storage.in_flight import ahead, for_each


@pytest.fixture(params=[for_each, ahead])
def at_once(request):
    return request.param


def test_results_are_in_the_order_of_the_items(at_once):
    def slow_at_first(number):
        time.sleep(0.01 if number == 0 else 0)
        return number * 2

    assert list(at_once(slow_at_first, range(100))) == [number * 2 for number in range(100)]


def test_nothing_is_fine(at_once):
    assert list(at_once(str, [])) == []


def test_no_more_threads_than_the_limit(at_once, monkeypatch):
    monkeypatch.setattr(in_flight, "IN_FLIGHT", 3)
    now, most, lock = [0], [0], threading.Lock()

    def work(_):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.001)
        with lock:
            now[0] -= 1

    list(at_once(work, range(50)))
    assert 1 < most[0] <= 3


def test_an_error_is_raised_and_the_rest_is_left(at_once, monkeypatch):
    monkeypatch.setattr(in_flight, "IN_FLIGHT", 1)
    done = []

    def work(number):
        done.append(number)
        if number == 2:
            raise ValueError(number)

    with pytest.raises(ValueError, match="2"):
        list(at_once(work, range(1000)))
    assert len(done) < 1000


def test_few_results_wait_in_memory(monkeypatch):
    monkeypatch.setattr(in_flight, "IN_FLIGHT", 4)
    made = []
    results = ahead(lambda number: made.append(number), range(1000))
    next(results)
    time.sleep(0.05)
    assert len(made) <= 2 * 4
    results.close()
    assert len(made) < 1000


def test_what_is_answered_at_once_needs_no_threads():
    """From a disk of this machine, a thread would cost more than the answer."""
    with patch.object(in_flight, "monotonic", return_value=5.0):
        threads = for_each(lambda _: threading.get_ident(), range(100))
    assert set(threads) == {threading.get_ident()}


def test_slow_answers_come_side_by_side_from_then_on():
    """The first ten come at once; then it takes as many threads as wait for each other."""
    together = threading.Barrier(in_flight.IN_FLIGHT)

    def work(number):
        if number == 10:
            clock.return_value = 50.0
        elif number > 10:
            together.wait(timeout=60)
        return number

    items = list(range(11 + in_flight.IN_FLIGHT))
    with patch.object(in_flight, "monotonic", return_value=5.0) as clock:
        assert for_each(work, items) == items
