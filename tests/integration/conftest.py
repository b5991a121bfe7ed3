"""Real failed experiments, made once a session and copied for every test."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments import make_experiments, make_killed_experiment

KINDS = (
    "errored",
    "sparse",
    "retries",
    "extras",
    "kept",
    "class",
    "registered",
    "with_parameters",
    "with_resources",
    "trainer",
)


@pytest.fixture(scope="session")
def failed_experiments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One directory a kind; never write to them."""
    root = tmp_path_factory.mktemp("failed")
    if keep := os.environ.get("TUNE_TEST_EXPERIMENTS"):  # made before, to save a minute
        return {path.name: path for path in Path(keep).iterdir()}
    made = make_experiments(root, KINDS)
    return {**made, "killed": make_killed_experiment(root)}


@pytest.fixture
def copied(failed_experiments: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies an experiment to a new place; Ray restores a moved directory there."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(failed_experiments[kind], tmp_path / "moved" / kind))

    return copy
