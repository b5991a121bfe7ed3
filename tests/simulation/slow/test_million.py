"""A million nights on all cores. `TUNE_TEST_NIGHTS` makes it shorter, `TUNE_TEST_SEED` repeats it."""

import os
import random
import subprocess
import sys

from tests.support import ROOT

SEED = os.environ.get("TUNE_TEST_SEED", str(random.randrange(10**6)))
NIGHTS = os.environ.get("TUNE_TEST_NIGHTS", "1000000")


def test_a_million_nights_break_no_invariant():
    command = [sys.executable, "-m", "tests.simulation", "--nights", NIGHTS, "--seed", SEED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-20_000:], done.stderr[-2_000:])
    assert done.returncode == 0
