"""A dozen kills, and races on every store; docs/reliability.md says how to run the long campaigns."""

import os
import random

import pytest

from tests.support.ray.campaigns import run_campaign

CHOSEN = os.environ.get("TUNE_TEST_SEED")
SEED = CHOSEN or str(random.randrange(10**6))
FIXED = "4388"
"""In the first round of each lane somebody is killed inside or after a write, and no round has to wait
until a lease has run out, or a run of all counts as dead."""


def test_a_kill_in_each_lane_loses_nothing(failed_experiments):
    pytest.importorskip("s3fs")
    out = run_campaign(
        "kills", "--kills", "4", "--real", "1", "--shared", "0", "--whole", "1", "--most", "1",
        "--seed", CHOSEN or FIXED,
        "--rounds", "9" if CHOSEN else "1",
        "--ttl", "120",  # whoever is slow is not dead
        "--experiment", str(failed_experiments["two_errored"]),
    )  # fmt: skip
    assert "lost: nothing" in out


def test_a_dozen_kills_lose_nothing():
    pytest.importorskip("s3fs")
    out = run_campaign(
        "kills", "--kills", "14", "--real", "2", "--shared", "2", "--whole", "0", "--seed", SEED
    )
    assert "lost: nothing" in out


@pytest.mark.parametrize("store", ["local", "s3", "gcs", "azure"])
def test_every_race_has_one_winner(store):
    if store == "azure":
        pytest.importorskip("adlfs")
    racers = "4" if store == "s3" else "8"
    out = run_campaign("races", "--stores", store, "--rounds", "3", "--racers", racers)
    assert "one winner each" in out
