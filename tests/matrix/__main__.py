"""Runs every cell of the version matrix, and prints the table of docs/conformance.md.

    python -m tests.matrix                 all of it; twenty minutes, once environments are made
    python -m tests.matrix ray trainers    the cells of these kinds

Environments are made with uv and kept in ~/.cache/airflow-tune-restore; the trainers' needs 5 GB. A
Python that this machine does not have is skipped, and said to be.
"""

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.matrix import environments
from tests.matrix.environments import airflow_python, find_python, project_python, run_tests

UNIT = ["tests/unit", "tests/ray/test_planner_against_ray.py"]
RUNNER = [
    "tests/ray/kept/test_runner_resume.py",
    "tests/ray/kept/slow/test_more_of_runner_resume.py",
]


@dataclass(frozen=True)
class Cell:
    """One run of some tests in one environment; `python` makes it, or returns None to skip it."""

    kind: str
    what: str
    python: Callable[[], str | None]
    tests: list[str]


def cells() -> list[Cell]:
    """Return the whole matrix."""
    here = lambda: sys.executable  # noqa: E731
    return [
        Cell("ray", "experiments of Ray 2.10 to 2.60, read, planned and restored by 2.60",
             here,
             ["tests/ray/kept/test_versions.py", "tests/ray/kept/slow/test_every_version.py"]),
        *(
            Cell("ray", f"Ray {version} restores its own", here,
                 ["tests/ray/slow/test_older_rays.py", "-k", version])
            for version in environments.OWN_RAYS
        ),
        *(
            Cell("python", f"Python {version}", _other_python(version), [*UNIT, *RUNNER])
            for version in ("3.11", "3.12", "3.13", "3.14")
        ),
        Cell("airflow", "Airflow of uv.lock", here, environments.AIRFLOW_TESTS),
        *(
            Cell("airflow", f"Airflow {version}", partial(airflow_python, version),
                 environments.AIRFLOW_TESTS)
            for version in environments.AIRFLOWS
        ),
        Cell("trainers", "Torch, RLlib, LightGBM", lambda: project_python(sys.executable, "trainers"),
             ["tests/ray/kept/slow/test_trainers.py"]),
    ]  # fmt: skip


def _other_python(version: str) -> Callable[[], str | None]:
    def make() -> str | None:
        found = find_python(version)
        return project_python(found) if found else None

    return make


def run(cell: Cell) -> tuple[str, bool]:
    """Run one cell and return its row."""
    begun = time.monotonic()
    python = cell.python()
    if python is None:
        return f"| {cell.what} | skipped: not on this machine | |", True
    done = run_tests(python, *cell.tests, MATRIX="1")
    lines = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed)", line)]
    ending = re.sub(r"[=]+", "", lines[-1]).strip() if lines else "no test ran"
    if done.returncode != 0:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
    seconds = time.monotonic() - begun
    return (
        f"| {cell.what} | {ending.partition(' in ')[0]} | {seconds:.0f} s |",
        done.returncode == 0,
    )


def main(kinds: list[str]) -> int:
    """Run the cells; the exit code says whether all are green."""
    green = True
    print("| cell | result | time |", "|---|---|---|", sep="\n", flush=True)
    for cell in cells():
        if kinds and cell.kind not in kinds:
            continue
        row, is_green = run(cell)
        print(row, flush=True)
        green = green and is_green
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
