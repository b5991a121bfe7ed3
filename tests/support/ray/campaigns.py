"""Campaigns, run as people run them."""

import subprocess
import sys

from tests.support import ROOT


def run_campaign(campaign: str, *options: str) -> str:
    """Return what it printed; pytest shows it, with the seed and how to repeat what failed."""
    command = [sys.executable, "-m", f"campaigns.{campaign}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-8000:], done.stderr[-4000:])
    assert done.returncode == 0, f"see the output above; python -m campaigns.{campaign} …"
    return done.stdout
