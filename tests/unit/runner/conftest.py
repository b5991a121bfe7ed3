"""What the tests of the runner share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tests their `__main__` back: a runner has a stand-in for it for the rest of its life."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
