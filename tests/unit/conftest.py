"""Gives unit tests an Airflow of their own before any of them imports it."""

import pytest

from airflow_tune_restore.restore import release, undo
from tests.support.airflow import home as airflow_home  # noqa: F401


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch):
    """An undo right after a commit does not wait; `restore/test_second_tries.py` tests the wait."""
    for module in (release, undo):
        monkeypatch.setattr(module, "let_rest", lambda _store: None)
