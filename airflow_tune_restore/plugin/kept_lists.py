"""Lists that are kept for a while. Of browsers that ask at once, one has it made, and the others wait."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class KeptLists(Generic[_Value]):
    """Keeps one value for each name.

    Args:
        seconds: How long a value is kept.
        monotonic: A clock in seconds.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._kept: dict[str, tuple[float, _Value]] = {}
        self._making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def get(self, name: str, make: Callable[[], _Value], *, fresh: bool = False) -> _Value:
        """Return the value of a name. A fresh one was begun after the call."""
        oldest = self._monotonic() - (0 if fresh else self._seconds)
        with self._making[name]:
            if name in self._kept and self._kept[name][0] >= oldest:
                return self._kept[name][1]
            began = self._monotonic()
            value = make()
            self._kept[name] = (began, value)
            return value

    def forget(self, name: str) -> None:
        """Make the value of a name anew at the next call: it has changed."""
        self._kept.pop(name, None)
