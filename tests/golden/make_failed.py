"""Makes `tests/golden/failed/`: an experiment of each kind, as Ray left it.

    python -m tests.golden.make_failed                 all kinds
    python -m tests.golden.make_failed errored asha    these

They are made in `PLACE`, unless another is given: a searcher that Ray restores goes on drawing where the
experiment was made. What is there is removed.
"""

import shutil
import sys
from pathlib import Path

from tests.support import FAILED
from tests.support.experiments import failed

PLACE = Path("/tmp/airflow-tune-restore-golden")
NOISE = shutil.ignore_patterns("events.out.tfevents*")


def make(target: Path, kinds: list[str], place: Path = PLACE) -> None:
    """Make experiments anew in a place, and put them in the place of those in `target`."""
    for batch in failed.BATCHES:
        wanted = [kind for kind in batch if kind in kinds]
        if not wanted:
            continue
        shutil.rmtree(place, ignore_errors=True)
        failed.make_batch(place, wanted)
        for kind in wanted:
            shutil.rmtree(target / kind, ignore_errors=True)
            shutil.copytree(place / kind, target / kind, ignore=NOISE)
            print(f"made {target / kind}", flush=True)
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    make(FAILED, sys.argv[1:] or sorted(failed.TRAINABLES))
