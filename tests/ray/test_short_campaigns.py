"""The campaigns in their shortest form; docs/reliability.md says how to run the long ones."""

import os

import pytest

from tests.support.ray.campaigns import run_campaign

FIXED = "4388"
"""In the first round of each lane somebody is killed inside or after a write, and no round has to wait
until a lease has run out, or a run of all counts as dead."""
SEED = os.environ.get("TUNE_TEST_SEED", FIXED)


def test_a_kill_in_each_lane_loses_nothing(
    failed_experiments,
):  # shared drivers: in the longer form
    pytest.importorskip("s3fs")
    out = run_campaign(
        "kills", "--kills", "4", "--real", "1", "--shared", "0", "--whole", "1", "--most", "1",
        "--seed", SEED,
        "--rounds", "1" if SEED == FIXED else "9",
        "--ttl", "120",  # whoever is slow is not dead
        "--experiment", str(failed_experiments["two_errored"]),
    )  # fmt: skip
    assert "lost: nothing" in out


@pytest.mark.parametrize("store", ["local", "s3"])
def test_every_race_has_one_winner(store):
    out = run_campaign("races", "--stores", store, "--rounds", "1", "--racers", "4")
    assert "one winner each" in out
