"""Makes `tests/golden/failed/`: an experiment of each kind, as Ray left it.

    python -m tests.golden.make_failed                 all kinds
    python -m tests.golden.make_failed errored asha    these

They are made in `PLACE`: a searcher that Ray restores goes on drawing where the experiment was made.
"""

import shutil
import sys
from pathlib import Path

from tests.support import FAILED
from tests.support.experiments import failed

PLACE = Path("/tmp/airflow-tune-restore-golden")
NOISE = shutil.ignore_patterns("events.out.tfevents*")


def make(target: Path, kinds: list[str]) -> None:
    """Make experiments anew, and put them in the place of those in `target`."""
    for batch in failed.BATCHES:
        wanted = [kind for kind in batch if kind in kinds]
        if not wanted:
            continue
        shutil.rmtree(PLACE, ignore_errors=True)
        failed.make_batch(PLACE, wanted)
        for kind in wanted:
            shutil.rmtree(target / kind, ignore_errors=True)
            shutil.copytree(PLACE / kind, target / kind, ignore=NOISE)
            print(f"made {target / kind}", flush=True)
    shutil.rmtree(PLACE, ignore_errors=True)


if __name__ == "__main__":
    make(FAILED, sys.argv[1:] or sorted(failed.TRAINABLES))
