"""One seed, one story: in this process, in another one, and without a thread or a sleep."""

import os
import subprocess
import sys
import threading
import time

from airflow_tune_restore.protocol import kept_lease, lease_watch
from airflow_tune_restore.storage.in_flight import for_each
from tests.simulation.campaign import simulating
from tests.simulation.night import draw_script, simulate
from tests.simulation.store import SimulatedStore
from tests.simulation.story import tell
from tests.support import ROOT
from tests.support.waiting import set_time

SEEDS = (6, 11, 12)
SHORT = 67
"""A world with few requests, in which several are sent at the same time."""


def stories() -> list[str]:
    with simulating():
        return [tell(draw_script(seed), everything=True) for seed in SEEDS]


def test_the_same_seed_has_the_same_story():
    assert stories() == stories()


def test_another_process_and_another_hash_seed_have_the_same_story():
    for seed, story in zip(SEEDS, stories(), strict=True):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--only", str(seed), "--requests"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == f"{story}\n", done.stderr


def test_telling_changes_nothing():
    with simulating():
        for seed in SEEDS:
            script = draw_script(seed)
            told, untold = simulate(script, is_told=True), simulate(script)
            assert (told.steps, told.seconds, told.failure) == (
                untold.steps,
                untold.seconds,
                untold.failure,
            )


def test_there_is_no_thread_and_no_sleep(monkeypatch):
    start, here = threading.Thread.start, threading.current_thread()

    def refuse(thread):
        assert threading.current_thread() is not here, "it starts a thread"
        start(thread)

    def fail(_seconds):
        raise AssertionError("it sleeps")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    set_time(monkeypatch, "sleep", fail)
    with simulating():
        for seed in SEEDS:
            simulate(draw_script(seed))


def test_a_slow_machine_changes_nothing(monkeypatch):
    """Requests are sent one by one as long as the answers come at once, by the clock of the world."""
    script = draw_script(SHORT)
    with simulating():
        quick = simulate(script)
    request = SimulatedStore._request

    def slow(*arguments):
        time.sleep(0.006)
        return request(*arguments)

    monkeypatch.setattr(SimulatedStore, "_request", slow)
    with simulating():
        assert simulate(script) == quick


def test_a_thread_of_an_earlier_test_touches_no_world():
    """It goes on in modules of the package: it sleeps and waits in true time, beside the worlds."""
    has_ended, naps, errors = threading.Event(), [], []

    def go_on():
        try:
            while not has_ended.is_set():
                lease_watch.CLOCK.sleep(0.0001)
                kept_lease.threading.Event().wait(0.0001)
                kept_lease.threading.Condition()
                for_each(str, "abc")
                naps.append(lease_watch.CLOCK.monotonic())
        except BaseException as error:  # noqa: BLE001  the test shows it
            errors.append(error)

    alone = stories()
    thread = threading.Thread(target=go_on, daemon=True)
    with simulating():
        thread.start()
        beside = [tell(draw_script(seed), everything=True) for seed in SEEDS]
        has_ended.set()
        thread.join()
    assert beside == alone
    assert errors == []
    assert naps == sorted(naps)
    assert naps[-1] <= time.monotonic()
