"""Gives this process an Airflow of its own before any test imports it; those we start have theirs."""

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401
from tests.support.experiments.failed import Gate


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Trials of copied DAGs stand still after iteration 3 until it is opened."""
    return Gate(tmp_path_factory.mktemp("gate") / "is-open", before=4)
