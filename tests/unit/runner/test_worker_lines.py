"""The lines of Ray's workers find the trials that these train."""

import pytest

from airflow_tune_restore.runner.reporter import KEPT_LINES
from airflow_tune_restore.runner.worker_lines import MOST_PROCESSES, WorkerLines


@pytest.fixture
def got():
    return []


@pytest.fixture
def lines(got):
    return WorkerLines(lambda owner, lines: got.append((owner, *lines)))


def batch(pid, *lines, ip="10.0.0.1"):
    return {"ip": ip, "pid": pid, "job": "01000000", "is_err": False, "lines": list(lines)}


def test_lines_wait_until_their_trial_is_known_and_go_to_no_other(lines, got):
    lines.take(batch(1, "imports"))
    lines.take(batch(2, "of another"))
    lines.take(batch(1, "of another node", ip="10.0.0.2"))
    assert got == []
    lines.assign("10.0.0.1", 1, "a")
    lines.take(batch(1, "trains"))
    assert got == [("a", "imports"), ("a", "trains")]


def test_a_worker_that_trains_another_trial_prints_for_this_one(lines, got):
    lines.assign("10.0.0.1", 1, "a")
    lines.leave("a")
    lines.assign("10.0.0.1", 1, "b")
    lines.take(batch(1, "trains"))
    assert got == [("b", "trains")]


def test_what_waits_is_bounded(lines, got):
    for pid in range(MOST_PROCESSES + 1):
        lines.take(batch(pid, *map(str, range(KEPT_LINES + 5))))
    lines.assign("10.0.0.1", 0, "forgotten")
    assert got == []
    lines.assign("10.0.0.1", 1, "kept")
    ((owner, *kept),) = got
    assert owner == "kept"
    assert kept == [str(number) for number in range(5, KEPT_LINES + 5)]


@pytest.mark.parametrize("odd", [{}, {"pid": "raylet", "lines": ["a"]}, {"lines": None, "pid": 1}])
def test_nothing_that_ray_sends_raises(lines, got, odd):
    lines.take(odd)
    assert got == []
