"""Waiting for what will come, however slow the machine is, and clocks that a test sets."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pytest

PATIENCE_SECONDS = 900.0
"""After this, what is waited for never comes: on an idle machine all of it takes seconds."""

T = TypeVar("T")


def set_time(monkeypatch: "pytest.MonkeyPatch", name: str, stand_in: Callable[..., Any]) -> None:
    """Put a function in the place of one of `time`, for this thread and those that it starts.

    Threads that earlier tests have left behind would move a clock, or be counted as what waited.
    """
    real = getattr(time, name)
    others = set(threading.enumerate()) - {threading.current_thread()}

    def function(*arguments: float) -> Any:
        return (real if threading.current_thread() in others else stand_in)(*arguments)

    monkeypatch.setattr(time, name, function)


def eventually(condition: Callable[[], T]) -> T:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return found
