"""Many tasks, one driver: which one starts it, what each sees, and which trial goes on alone."""

import pytest

from airflow_tune_restore.exceptions import KeyExistsError, LeaseLostError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.request import (
    ProgressTail,
    Result,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.follow import POLL_SECONDS, QUIET_SECONDS, START_SECONDS
from airflow_tune_restore.restore.follow_shared import SharedFollower
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.restore.shared_driver import MOST_BROKEN, find_shared
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.records import Attempt, leave_outcome

DRIVER = layout.SHARED_DRIVER


class World:
    """A store, a clock, and what happens as time goes by."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.held = lease.acquire(self.store, restore_id="r", holder="a night")
        self.now = 0.0
        self.pauses: list[float] = []
        self.started: list[tuple[str, int]] = []
        self.script: list = []
        self.forever = lambda: None
        self.beats = 0

    def claim(self, unit: str, attempt: int = 1) -> None:
        request = RunnerRequest(
            experiment=self.store.uri,
            restore_id="r",
            trial_id=unit,
            action="run" if unit == DRIVER else "resume",
            attempt=attempt,
            trainable="a:b",
            trainable_name="b",
            is_shared=unit != DRIVER,
        )
        self.store.create(layout.request_key("r", unit, attempt), request.to_json())

    def follower(self, trial_id: str) -> SharedFollower:
        def start(number: int) -> None:
            self.claim(DRIVER, number)
            self.started.append((trial_id, number))

        self.claim(trial_id)
        Desk(self.store, "r").hand_over(trial_id, 1)
        return SharedFollower(
            self.store, "r", trial_id, start, monotonic=lambda: self.now, sleep=self.sleep
        )

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        (self.script.pop(0) if self.script else self.forever)()

    def beat(self, unit: str = DRIVER, attempt: int = 1) -> None:
        self.beats += 1
        self.store.put(layout.heartbeat_key("r", unit, attempt), str(self.beats).encode())

    def report(self, trial_id: str, *iterations: int) -> None:
        reports = [RunnerProgress(trial_id=trial_id, iteration=i, metrics={}) for i in iterations]
        tail = ProgressTail(first=0, reports=reports)
        self.store.put(layout.progress_key("r", trial_id, 1), tail.to_json())

    def end(self, unit: str, result: str = "finished", attempt: int = 1) -> None:
        leave_outcome(self.store, Attempt("r", unit, attempt), result)

    def desk(self) -> list[str]:
        return [attempt.trial_id for attempt in Desk(self.store, "r").read().to_run]


@pytest.fixture
def world() -> World:
    return World()


def watch(follower: SharedFollower) -> list[int]:
    return [report.iteration for report in follower.progress() if report is not None]


def watch_until_started(world: World, follower: SharedFollower, count: int = 1) -> None:
    for _ in follower.progress():
        if len(world.started) == count:
            return


def test_the_first_starts_the_driver_and_ends_with_its_own_trial(world):
    world.script = [
        lambda: (world.beat(), world.beat("a")),
        lambda: world.report("a", 1, 2),
        lambda: (world.report("a", 1, 2, 3), world.end("a")),
    ]
    follower = world.follower("a")
    assert watch(follower) == [1, 2, 3]
    assert (follower.outcome.result, follower.driver) == ("finished", 1)
    assert world.started == [("a", 1)]


def test_the_others_attach_and_see_the_end_of_a_short_trial_soon(world):
    world.claim(DRIVER)
    world.beat()
    world.script = [world.beat, lambda: world.end("b", "failed")]
    follower = world.follower("b")
    watch(follower)
    assert (follower.outcome.result, world.started) == ("failed", [])
    assert world.now < 1.5


def test_a_trial_that_takes_longer_is_looked_at_less_often(world):
    world.claim(DRIVER)
    world.script = [world.beat] * 40 + [lambda: world.end("a")]
    watch(world.follower("a"))
    assert world.pauses == sorted(world.pauses)
    assert world.pauses[-1] == POLL_SECONDS


def test_a_driver_that_has_just_started_has_time(world):
    world.claim(DRIVER)
    watch_until_started(world, world.follower("a"))
    assert world.started == [("a", 2)]
    assert START_SECONDS < world.now < START_SECONDS + 10


def test_after_the_death_of_a_driver_a_trial_it_had_not_begun_waits_for_the_next(world):
    world.claim(DRIVER)
    world.beat()
    follower = world.follower("a")
    watch_until_started(world, follower)
    assert world.started == [("a", 2)]
    assert QUIET_SECONDS < world.now < QUIET_SECONDS + 10
    assert world.desk() == ["a"]
    assert AttemptRecords(world.store, "r", "a").exit(1) is None


def test_after_the_death_of_a_driver_a_trial_it_had_begun_goes_on_alone(world):
    world.claim(DRIVER)
    world.beat()
    world.beat("a")
    follower = world.follower("a")
    watch(follower)
    assert (follower.outcome, world.started) == (None, [])
    assert follower.alone_because == "its shared driver died while it ran"
    records = AttemptRecords(world.store, "r", "a")
    assert records.exit(1) is not None
    assert find_shared(records) is None


def test_a_trial_whose_driver_died_does_not_wait_for_the_one_that_followed(world):
    """Another task has started the next driver already. It lives, and does not run this trial."""
    world.beat("a")
    world.claim(DRIVER, 1)
    world.claim(DRIVER, 2)
    world.forever = lambda: world.beat(attempt=2)
    follower = world.follower("a")
    watch(follower)
    assert "died" in follower.alone_because
    assert world.now < QUIET_SECONDS + 10


def test_a_trial_that_waits_for_its_turn_is_not_lost(world):
    world.claim(DRIVER)
    for _ in range(200):
        world.script.append(world.beat)
    world.script += [lambda: world.beat("a"), lambda: world.end("a")]
    follower = world.follower("a")
    watch(follower)
    assert world.now > START_SECONDS + QUIET_SECONDS
    assert (follower.outcome.result, follower.alone_because) == ("finished", "")


def test_a_trial_that_comes_when_the_driver_has_just_ended_starts_the_next(world):
    world.claim(DRIVER)
    world.beat()
    world.end(DRIVER)
    world.script = [lambda: world.end("a")]
    follower = world.follower("a")
    watch(follower)
    assert world.started == [("a", 2)]
    assert follower.driver == 2


def test_one_that_is_too_late_to_start_the_driver_attaches(world):
    follower = world.follower("a")

    def late(number: int) -> None:
        world.claim(DRIVER, number)
        world.script = [lambda: world.end("a")]
        raise KeyExistsError("", "")

    follower.start = late
    watch(follower)
    assert follower.outcome.attempt == 1


@pytest.mark.parametrize("ended", [0, 1])
def test_a_trial_that_the_next_driver_begins_during_a_look_stays_with_it(world, ended):
    """Another task starts that driver after this one looked for the newest."""
    if ended:
        world.claim(DRIVER)
        world.beat()
        world.end(DRIVER)
    follower = world.follower("a")
    looked = follower._reports.new

    def begin_meanwhile(attempt: int) -> list:
        if follower.driver == ended:
            world.claim(DRIVER, ended + 1)
            world.beat(attempt=ended + 1)
            world.beat("a")
            world.script = [lambda: world.end("a")]
        return looked(attempt)

    follower._reports.new = begin_meanwhile
    watch(follower)
    assert (follower.outcome.attempt, follower.alone_because) == (1, "")


def test_the_last_words_of_a_driver_are_heard(world):
    world.claim(DRIVER)
    world.beat("a")
    world.script = [lambda: (world.report("a", 9), world.end("a"), world.end(DRIVER))]
    follower = world.follower("a")
    assert watch(follower) == [9]
    assert follower.outcome is not None


@pytest.mark.parametrize("end", [None, Result.REFUSED, Result.INTERRUPTED])
def test_drivers_that_break_off_again_and_again_are_given_up(world, end):
    """One that cannot start would else be started for ever, by a task that never ends."""

    def break_off() -> None:
        newest = max((number for _, number in world.started), default=0)
        if end is not None:
            world.end(DRIVER, end, newest)

    world.forever = break_off
    follower = world.follower("a")
    watch(follower)
    assert [number for _, number in world.started] == list(range(1, MOST_BROKEN + 1))
    assert "3 shared drivers broke off" in follower.alone_because
    assert (follower.outcome, world.desk()) == (None, [])
    assert find_shared(AttemptRecords(world.store, "r", "a")) is None


def test_any_number_of_drivers_may_end_well(world):
    """Each ends when the desk was empty for a while; tasks that come later start another."""
    for number in range(1, 8):
        world.claim(DRIVER, number)
        world.end(DRIVER, attempt=number)
    world.script = [lambda: world.end("a")]
    watch(world.follower("a"))
    assert world.started == [("a", 8)]


def test_no_driver_is_started_once_the_restore_has_ended(world):
    lease.release(world.store, world.held)
    with pytest.raises(LeaseLostError):
        watch(world.follower("a"))
    assert world.started == []


def test_at_the_end_of_the_window_the_error_is_that_of_the_trial(world):
    follower = world.follower("a")

    def refuse(number: int) -> None:
        raise RestorePausedError(world.store.uri, DRIVER, "07:00")

    world.report("a", 4)
    follower.start = refuse
    with pytest.raises(RestorePausedError, match=r"Trial a of .* was paused at iteration 4"):
        watch(follower)
