"""What followers read, however many threads of a run report at once."""

import threading
from dataclasses import replace

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress, RunnerRequest
from airflow_tune_restore.runner.reporter import KEPT_LINES, Reporter
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.waiting import PATIENCE_SECONDS, eventually

KEY = layout.progress_key("r", "t", 1)


class SlowStore(MemoryStore):
    """Its first write waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_writing = threading.Event()
        self.go_on = threading.Event()

    def put(self, key: str, body: bytes) -> None:
        if not self.is_writing.is_set():
            self.is_writing.set()
            assert self.go_on.wait(PATIENCE_SECONDS)
        super().put(key, body)


class SeenLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_awaited = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_awaited.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def make_reporter(store: MemoryStore) -> Reporter:
    request = RunnerRequest(
        experiment="memory://", restore_id="r", trial_id=layout.WHOLE_EXPERIMENT, attempt=1,
        trainable="m:t", trainable_name="t", action="run",
    )  # fmt: skip
    return Reporter(store, request)


def progress(iteration: int) -> RunnerProgress:
    return RunnerProgress(trial_id="t", iteration=iteration, metrics={})


def iterations(store: MemoryStore) -> list[int]:
    return [p.iteration for p in ProgressTail.from_json(store.get(KEY)).after(0)]


def test_the_last_words_of_a_trial_are_written_when_flush_returns():
    """An outcome is put after it: a follower that sees the outcome looks no more for words."""
    store = SlowStore()
    reporter = make_reporter(store)
    reporter._writing = lock = SeenLock()
    reporter.add("t", progress(1))
    other = threading.Thread(target=reporter.flush)
    other.start()
    assert store.is_writing.wait(PATIENCE_SECONDS)
    reporter.add("t", progress(2))
    written = []
    mine = threading.Thread(target=lambda: (reporter.flush(), written.append(iterations(store))))
    mine.start()
    try:
        # it waits for the other; or it does not, and has ended
        eventually(lambda: lock.is_awaited.is_set() or not mine.is_alive())
        assert written == []
    finally:
        store.go_on.set()
    mine.join(PATIENCE_SECONDS)
    other.join(PATIENCE_SECONDS)
    assert written == [[1, 2]]
    assert iterations(store) == [1, 2]


def test_many_threads_flush_at_once_and_none_fails():
    store = MemoryStore()
    reporter = make_reporter(store)
    errors = []

    def report(number: int) -> None:
        try:
            for iteration in range(200):
                reporter.add("t", progress(number * 1000 + iteration))
                reporter.flush()
        except Exception as error:  # noqa: BLE001  told below
            errors.append(repr(error))

    threads = [threading.Thread(target=report, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert ProgressTail.from_json(store.get(KEY)).count == 800


def test_what_could_not_be_written_is_written_by_the_next_flush():
    class Failing(MemoryStore):
        fails = True

        def put(self, key: str, body: bytes) -> None:
            if self.fails:
                self.fails = False
                raise OSError("not now")
            super().put(key, body)

    store = Failing()
    reporter = make_reporter(store)
    reporter.add("t", progress(1))
    try:
        reporter.flush()
    except OSError:
        reporter.flush()
    assert iterations(store) == [1]


def test_the_trials_of_a_shared_driver_have_an_attempt_of_their_own_and_are_forgotten():
    store = MemoryStore()
    driver = replace(make_reporter(store)._request, trial_id=layout.SHARED_DRIVER, attempt=3)
    reporter = Reporter(store, driver, attempt=1)
    reporter.add("t", progress(1))
    reporter.flush()
    assert iterations(store) == [1]
    reporter.forget("t")
    reporter.add("t", progress(2))
    reporter.flush()
    assert iterations(store) == [2]


def test_lines_of_a_trial_are_kept_in_order_printable_and_bounded():
    store = MemoryStore()
    reporter = make_reporter(store)
    reporter.add("t", progress(1))
    reporter.add_lines("t", ["first", "\x1b[31mred\x1b[0m"])
    reporter.flush()
    tail = ProgressTail.from_json(store.get(KEY))
    assert (tail.lines, tail.first_line, tail.count) == (["first", "red"], 0, 1)
    reporter.add_lines("t", [f"line {number}" for number in range(KEPT_LINES)])
    reporter.flush()
    tail = ProgressTail.from_json(store.get(KEY))
    assert (len(tail.lines), tail.first_line, tail.line_count) == (KEPT_LINES, 2, KEPT_LINES + 2)
    assert tail.lines_after(KEPT_LINES + 1) == [f"line {KEPT_LINES - 1}"]
    assert tail.lines_after(0) == tail.lines


def test_a_record_of_an_older_runner_has_no_lines():
    tail = ProgressTail.from_json(b'{"first": 0, "reports": []}')
    assert (tail.lines, tail.line_count) == ([], 0)
