"""The campaigns in their short form; docs/reliability.md says how to run the long ones."""

import os
import random
import subprocess
import sys

import pytest

from tests.support import ROOT

SEED = os.environ.get("TUNE_TEST_SEED", str(random.randrange(10**6)))


def run(campaign: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"campaigns.{campaign}", *options],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-8000:], done.stderr[-4000:])  # the seed, and how to repeat what failed
    assert done.returncode == 0, f"see the output above; python -m campaigns.{campaign} …"
    return done.stdout


def test_a_dozen_kills_lose_nothing():
    pytest.importorskip("s3fs")
    out = run("kills", "--kills", "12", "--real", "2", "--whole", "0", "--seed", SEED)
    assert "lost: nothing" in out


@pytest.mark.parametrize("store", ["local", "s3", "gcs", "azure"])
def test_every_race_has_one_winner(store):
    if store == "azure":
        pytest.importorskip("adlfs")
    racers = "4" if store == "s3" else "8"
    out = run("races", "--stores", store, "--rounds", "3", "--racers", racers)
    assert "one winner each" in out
