"""What of a job's log is shown, whole or in pieces."""

import pytest

from airflow_tune_restore.launch.ray import job_log
from airflow_tune_restore.launch.ray.job_log import JobLog
from airflow_tune_restore.protocol.request import RunnerProgress


def result(iteration: int) -> str:
    return RunnerProgress(trial_id="t", iteration=iteration, metrics={}).to_line()


def read(text: str, size: int, **arguments) -> JobLog:
    log = JobLog(**arguments)
    for begin in range(0, len(text), size):
        log.take(text[begin : begin + size])
    return log


LOG = f"a\r\n{result(1)}\nb\n{result(2)}\nc"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_are_shown_once_and_results_counted(size):
    log = read(LOG, size, results=None)
    assert log.length == len(LOG) - 1  # the last line may still be written to
    assert log.newest.take("") == ["a", "b"]
    log.end()
    assert log.newest.take("") == ["c"]
    offset = LOG.index("b\n") + 2
    log = read(LOG, size, offset=offset, results=1)
    log.end()
    assert log.newest.take("") == [result(2), "c"]
    log = read(LOG, size, offset=len(LOG), results=2)
    log.end()
    assert log.newest.take("") == []
    assert list(log.last) == ["a", result(1), "b", result(2), "c"]


def test_a_look_after_a_look_shows_each_line_once_wherever_a_log_was_cut():
    lines = [f"line {number}" for number in range(20)]
    text, shown, offset = "\n".join(lines), [], 0
    for length in range(len(text)):
        log = read(text[:length], 5, offset=offset, results=None)
        shown += log.newest.take("")
        offset = max(offset, log.length)
    log = read(text, 5, offset=offset, results=None)
    log.end()
    assert [*shown, *log.newest.take("")] == lines


def test_a_line_without_end_takes_little_memory(monkeypatch):
    monkeypatch.setattr(job_log, "LONGEST_REST", 1000)
    log = JobLog(results=None)
    for _ in range(1000):
        log.take("x" * 100)
        assert sum(map(len, log._rest)) <= 1100
    assert log.read == 100_000
    assert log.length > 98_000
