"""A dozen kills, and races on every store; docs/reliability.md says how to run the long campaigns."""

import os
import random

import pytest

from tests.support.ray.campaigns import run_campaign

SEED = os.environ.get("TUNE_TEST_SEED", str(random.randrange(10**6)))


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
