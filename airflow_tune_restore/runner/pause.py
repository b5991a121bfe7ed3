"""The end of a window: the runner pauses by itself, whatever becomes of the process that started it.

A thread waits for it by the store's clock. It asks the attempt to stop, as a signal does. A driver cannot
always react: it may hang in an import, in the start of Ray or in a callback. So after a grace the thread
ends the process, and what is saved counts.
"""

import threading
import time
from collections.abc import Callable

from airflow_tune_restore.protocol import window
from airflow_tune_restore.storage.base import ObjectStore

_LONGEST_WAIT = 3600.0
"""Seconds: a longer wait is one of several (a lock cannot wait for thousands of years)."""


class PauseTimer:
    """Waits for the end of a window, and for the grace after it. Without a window it does nothing.

    Args:
        pause_at: The end, as recorded; "" without a window.
        pause: Asks the attempt to stop. Called once, by the timer's thread, as `give_up`.
        give_up: Ends the process.
    """

    def __init__(
        self,
        store: ObjectStore,
        pause_at: str,
        *,
        pause: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._store = store
        self._end = window.parse_end(pause_at)
        self._pause, self._give_up = pause, give_up

    def start(self) -> bool:
        """Begin to wait; return whether the window is over already. Then nobody is asked to stop."""
        if self._end is None:
            return False
        began = time.monotonic()
        deadline = began + (self._end - self._store.now()).total_seconds()
        if deadline <= began:
            return True
        threading.Thread(target=self._run, args=(deadline,), name="pause", daemon=True).start()
        return False

    def _run(self, deadline: float) -> None:
        _sleep_until(deadline)
        self._pause()
        _sleep_until(deadline + window.GRACE_SECONDS)
        self._give_up()


def _sleep_until(deadline: float) -> None:
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, _LONGEST_WAIT))
