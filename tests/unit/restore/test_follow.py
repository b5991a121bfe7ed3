"""Many tasks follow one run: which one starts it, what each sees, and when each is done."""

import json

import pytest

from airflow_tune_restore.exceptions import KeyExistsError, LeaseLostError, StorageError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress
from airflow_tune_restore.restore.follow import (
    OUTAGE_SECONDS,
    QUIET_SECONDS,
    SHOWN_REPORTS,
    START_SECONDS,
    Follower,
    ask_to_stop,
)
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.records import Attempt, leave_outcome

EVERY = layout.WHOLE_EXPERIMENT


class World:
    """A store, a clock, and what happens as time goes by."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.held = lease.acquire(self.store, restore_id="r", holder="a night")
        self.now = 0.0
        self.started: list[tuple[str, int]] = []
        self.script: list = []
        self.beats = 0

    def follower(self, trial_id: str) -> Follower:
        def start(attempt: int) -> None:
            self.store.create(layout.request_key("r", EVERY, attempt), b"{}")
            self.started.append((trial_id, attempt))

        return Follower(
            self.store, "r", trial_id, start, monotonic=lambda: self.now, sleep=self.sleep
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.script:
            self.script.pop(0)()

    def beat(self, attempt: int = 1) -> None:
        self.beats += 1
        self.store.put(layout.heartbeat_key("r", EVERY, attempt), str(self.beats).encode())

    def report(self, trial_id: str, *iterations: int, first: int = 0, attempt: int = 1) -> None:
        reports = [RunnerProgress(trial_id=trial_id, iteration=i, metrics={}) for i in iterations]
        tail = ProgressTail(first=first, reports=reports)
        self.store.put(layout.progress_key("r", trial_id, attempt), tail.to_json())

    def end(self, trial_id: str, result: str = "finished", attempt: int = 1) -> None:
        leave_outcome(self.store, Attempt("r", trial_id, attempt), result)


@pytest.fixture
def world() -> World:
    return World()


def watch(follower: Follower) -> list[int]:
    return [report.iteration for report in follower.progress() if report is not None]


def test_the_first_starts_the_run_and_ends_with_its_own_trial(world):
    world.script = [
        world.beat,
        lambda: world.report("a", 1, 2),
        lambda: (world.report("a", 1, 2, 3), world.end("a")),
    ]
    follower = world.follower("a")
    assert watch(follower) == [1, 2, 3]
    assert follower.outcome.result == "finished"
    assert world.started == [("a", 1)]


def test_the_others_attach(world):
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    world.beat()
    world.script = [world.beat, lambda: world.end("b", "failed")]
    follower = world.follower("b")
    watch(follower)
    assert follower.outcome.result == "failed"
    assert world.started == []


def test_a_trial_that_has_ended_for_good_starts_nothing(world):
    world.end("a", "failed")
    assert watch(world.follower("a")) == []
    assert world.started == []


def test_reports_that_were_dropped_do_not_repeat_others(world):
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    world.report("a", 1, 2)
    world.script = [lambda: world.report("a", 5, 6, first=4), lambda: world.end("a")]
    assert watch(world.follower("a")) == [1, 2, 5, 6]


def test_one_of_the_followers_restarts_a_run_that_died(world):
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    world.beat()
    follower = world.follower("a")
    for _ in follower.progress():
        if world.started:
            break
    assert world.started == [("a", 2)]
    assert QUIET_SECONDS < world.now < QUIET_SECONDS + 10


def test_a_look_that_takes_long_is_not_the_silence_of_the_run(world, monkeypatch):
    get = world.store.get

    def get_slowly(key, **limit):
        if key.endswith("heartbeat.json"):
            world.now += QUIET_SECONDS + 1
        return get(key, **limit)

    monkeypatch.setattr(world.store, "get", get_slowly)
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    world.beat()
    world.script = [lambda: None, world.beat, lambda: None, lambda: world.end("a")]
    watch(world.follower("a"))
    assert world.started == []


def test_a_claimed_run_has_time_to_start(world):
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    for _ in world.follower("a").progress():
        if world.started:
            break
    assert world.now > START_SECONDS


def test_a_follower_that_is_too_late_to_start_the_run_attaches(world):
    follower = world.follower("a")

    def late(attempt: int) -> None:
        world.store.create(layout.request_key("r", EVERY, attempt), b"{}")
        world.beat(attempt)
        world.script = [lambda: world.end("a", attempt=attempt)]
        raise KeyExistsError("", "")

    follower.start = late
    watch(follower)
    assert follower.outcome.attempt == 1


def test_a_trial_stopped_alone_goes_on_in_the_next_run(world):
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    world.beat()
    world.end("a", "interrupted")
    world.script = [
        world.beat,
        lambda: world.end(EVERY),  # the others are done: now it is our turn
        lambda: None,
        lambda: world.end("a", attempt=2),
    ]
    follower = world.follower("a")
    watch(follower)
    assert world.started == [("a", 2)]
    assert follower.outcome.attempt == 2


def test_the_last_words_of_a_run_are_heard(world):
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    world.beat()
    world.script = [lambda: (world.report("a", 9), world.end("a"), world.end(EVERY))]
    assert watch(world.follower("a")) == [9]
    assert world.started == []


def test_the_wish_to_stop_reaches_the_newest_run(world):
    ask_to_stop(world.store, "r", "a/b")  # none runs: nothing to ask
    world.store.create(layout.request_key("r", EVERY, 2), b"{}")
    ask_to_stop(world.store, "r", "a/b")
    (entry,) = world.store.list_dir(layout.stops_dir("r", 2))
    assert layout.unsegment(entry.name.removesuffix(".json")) == "a/b"


def test_a_tail_returns_what_is_new():
    tail = ProgressTail(
        first=3, reports=[RunnerProgress(trial_id="a", iteration=i, metrics={}) for i in (4, 5)]
    )
    assert [p.iteration for p in tail.after(0)] == [4, 5]
    assert [p.iteration for p in tail.after(4)] == [5]
    assert tail.after(5) == []
    assert ProgressTail.from_json(tail.to_json()) == tail
    assert isinstance(tail.after(0)[0], RunnerProgress)
    assert json.loads(tail.to_json())["first"] == 3


def test_a_store_that_is_out_of_reach_for_a_while_is_waited_for(world, monkeypatch):
    world.store.create(layout.request_key("r", EVERY, 1), b"{}")
    world.beat()
    listing = world.store.list_dir

    def down(_path: str = "") -> list:
        raise StorageError("no route to host")

    world.script = [
        lambda: monkeypatch.setattr(world.store, "list_dir", down),
        lambda: None,
        lambda: monkeypatch.setattr(world.store, "list_dir", listing),
        lambda: world.end("a"),
    ]
    follower = world.follower("a")
    watch(follower)
    assert follower.outcome.result == "finished"
    assert world.started == []

    monkeypatch.setattr(world.store, "list_dir", down)
    lasting = world.follower("b")
    monkeypatch.setattr(lasting, "_stopped_before", lambda: 0)
    with pytest.raises(StorageError, match="no route to host"):
        watch(lasting)
    assert world.now > OUTAGE_SECONDS


def test_no_run_is_started_once_the_restore_has_ended(world):
    """Each run would end itself at once, and the follower would start the next one, for ever."""
    lease.release(world.store, world.held)
    with pytest.raises(LeaseLostError):
        watch(world.follower("a"))
    assert world.started == []


def test_of_many_trials_followed_together_the_log_stays_short(world):
    """Half a million results: with each tenth after a thousand, then each hundredth, and so on."""
    follower = world.follower(EVERY)
    report = RunnerProgress(trial_id="a", iteration=1, metrics={})
    shown = sum(follower._is_shown(report) for _ in range(500_000))
    assert SHOWN_REPORTS < shown < 4 * SHOWN_REPORTS


def test_each_report_of_a_trial_with_its_own_task_is_shown(world):
    report = RunnerProgress(trial_id="a", iteration=1, metrics={})
    follower = world.follower("a")
    assert all(follower._is_shown(report) for _ in range(3 * SHOWN_REPORTS))


def test_reports_of_the_run_itself_are_shown_until_there_are_many(world):
    world.script = [world.beat, lambda: (world.report(EVERY, 1, 2, 3), world.end(EVERY))]
    assert watch(world.follower(EVERY)) == [1, 2, 3]
