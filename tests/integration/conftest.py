"""Real failed experiments, made once a session and copied for every test."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments import TRAINABLES, make_experiments, make_killed_experiment


@pytest.fixture(scope="session")
def failed_experiments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One directory a kind; never write to them."""
    root = tmp_path_factory.mktemp("failed")
    made = make_experiments(root, [kind for kind in TRAINABLES if kind != "killed"])
    return {**made, "killed": make_killed_experiment(root)}


@pytest.fixture
def copied(failed_experiments: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies an experiment to a new place; Ray restores a moved directory there."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(failed_experiments[kind], tmp_path / "moved" / kind))

    return copy
