"""How many bytes many threads may read at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Admits readers while together they hold no more than a number of bytes.

    A reader that needs more than the whole budget is admitted alone: 64 threads with a state of 134 MB
    each would be too much for a worker, one is not.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Wait until there is room for this many bytes, and release them at the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size_bytes <= self._total)
            self._held += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= size_bytes
                self._changed.notify_all()


IN_MEMORY = ByteBudget(64 * 1024 * 1024)
"""State files and result rows that all threads of this process hold while they read them."""

IN_WORK = ByteBudget(256 * 1024 * 1024)
"""State files whose rows all threads of this process keep while they plan, start or commit."""

SMALL_BYTES = 1024 * 1024


def read_limit(listed_bytes: int, limit: int) -> int:
    """Return how much is read of a file for which a budget holds its listed size.

    A live driver may rewrite it meanwhile, with more trials or rows.
    """
    return min(limit, 2 * listed_bytes + SMALL_BYTES)
