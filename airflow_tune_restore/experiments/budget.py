"""How many bytes many threads may hold at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Lets readers in while together they hold no more than so many bytes.

    One that wants more than all of it is let in alone: 64 threads with a state of 134 MB each would be
    too much for a worker, one is not.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Wait until there is room for this many bytes, and give them back in the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size_bytes <= self._total)
            self._held += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= size_bytes
                self._changed.notify_all()
