"""The races in their shortest form; docs/reliability.md says how to run the long ones."""

import pytest

from tests.support.ray.campaigns import run_campaign


@pytest.mark.parametrize("store", ["local", "s3"])
def test_every_race_has_one_winner(store):
    out = run_campaign("races", "--stores", store, "--rounds", "1", "--racers", "4")
    assert "one winner each" in out
