"""Waiting for what will come, however slow the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 900.0
"""After this, what is waited for never comes: on an idle machine all of it takes seconds."""

T = TypeVar("T")


def eventually(condition: Callable[[], T]) -> T:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return found
