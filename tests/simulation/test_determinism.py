"""One seed, one story: in this process, in another one, and without a thread or a sleep."""

import os
import subprocess
import sys
import threading
import time
from unittest import mock

from tests.simulation.campaign import simulating
from tests.simulation.night import draw_script, simulate
from tests.simulation.story import tell
from tests.support import ROOT

SEEDS = (6, 11, 12)


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


def test_there_is_no_thread_and_no_sleep():
    before = threading.active_count()
    with simulating(), mock.patch.object(time, "sleep", side_effect=AssertionError("it sleeps")):
        for seed in SEEDS:
            simulate(draw_script(seed))
            assert threading.active_count() <= before
