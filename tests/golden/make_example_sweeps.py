"""Makes `tests/golden/example_sweep/`: the example sweep as Ray left it, once failed and once killed.

python -m tests.golden.make_example_sweeps
"""

import shutil
import tempfile
from pathlib import Path

from tests.support.experiments.sweeps import KINDS, MADE, make_sweep


def main() -> None:
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            made = make_sweep(kind, Path(scratch))
            shutil.rmtree(MADE / kind, ignore_errors=True)
            ignored = shutil.ignore_patterns("events.out.tfevents*")
            shutil.copytree(made, MADE / kind, ignore=ignored)
        print(f"made {MADE / kind}")


if __name__ == "__main__":
    main()
