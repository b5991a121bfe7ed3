"""2,000 nights with a new seed; `python -m tests.simulation` makes more, and repeats one world."""

import os
import random

import pytest

from tests.simulation.campaign import explain, run_worlds, simulating, world_seeds

SEED = int(os.environ.get("TUNE_TEST_SEED", random.randrange(10**6)))
NIGHTS = 2000
PIECES = 4


@pytest.mark.parametrize("piece", range(PIECES))
def test_no_night_breaks_an_invariant(piece):
    print(f"seed {SEED}")
    seeds = world_seeds(SEED, first=piece, step=PIECES)
    with simulating():
        tally = run_worlds(seeds, NIGHTS // PIECES)
        told = [explain(*failure) for failure in tally.failures[:3]]
    if told:
        pytest.fail("\n\n".join([f"seed {SEED}", *told]), pytrace=False)
