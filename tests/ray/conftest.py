"""Copies of the failed experiments."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  before any test here imports Airflow
from tests.support.experiments.failed import Gate


@pytest.fixture
def copied(failed_experiments: Mapping[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Copies an experiment to a new place; Ray restores a moved directory there."""

    def copy(kind: str, name: str = "") -> Path:
        return Path(shutil.copytree(failed_experiments[kind], tmp_path / "moved" / (name or kind)))

    return copy


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Trials that have it in their environment stand still after iteration 4 until it is opened."""
    return Gate(tmp_path / "gate-is-open", before=5)
