"""SIGTERM and SIGINT end a run as Ctrl-C ends a run of Tune: with one last snapshot."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT)
"""The signals that ask a runner to stop."""


class StopRequestedError(BaseException):
    """A signal came while no trial was running. A BaseException, so that `except Exception` misses it."""


class StopSignals:
    """Handles both signals from its construction on, and records whether one came.

    Attributes:
        received: Whether the run was asked to stop.
        is_paused: Whether that was because the window of its restore has ended.
    """

    def __init__(self) -> None:
        self.received = False
        self.is_paused = False
        self._pauses = False
        self._ignored = False
        self.install()

    def install(self) -> None:
        """Handle both signals. Call it again after Ray has started, which replaces the handlers."""
        for number in NUMBERS:
            signal.signal(number, self._handle)
        # the driver of a Ray job inherits a mask that blocks SIGINT (JobSupervisor, seen in 2.60)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)

    def ignore(self) -> None:
        """Ignore signals from now on, until the outcome is written."""
        self._ignored = True

    def pause(self) -> None:
        """Ask this process to stop because its window has ended. Called by another thread.

        By SIGINT: at a SIGTERM, Ray's handler would abort a process whose main thread cannot react in
        time (see `_handle`). To the main thread, so that a system call in it is interrupted.
        """
        self._pauses = True
        main = threading.main_thread().ident
        assert main is not None  # noqa: S101  it has been started
        signal.pthread_kill(main, signal.SIGINT)

    def raise_if_received(self) -> None:
        """Raise StopRequestedError if a signal came before."""
        if self.received:
            raise StopRequestedError

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        # Ray's handler ran first; it aborts the process three seconds later (absl's
        # AbslFailureSignalHandler, installed by the core worker, seen in 2.60)
        signal.alarm(0)
        if self.received or self._ignored:
            return  # a second signal must not interrupt the snapshot
        self.received, self.is_paused = True, self._pauses
        why = "Pausing: the window of this restore has ended" if self._pauses else "Stopping"
        print(f"{why}: saving a snapshot.", file=sys.stderr, flush=True)  # noqa: T201
        if callable(signal.getsignal(signal.SIGUSR1)):
            # tune.run handles SIGUSR1 as "stop, and save one last time" (ray.tune.tune, 2.40 to 2.60)
            signal.raise_signal(signal.SIGUSR1)
        else:
            raise StopRequestedError


@contextlib.contextmanager
def without_ray_handler() -> Iterator[None]:
    """Keep `ray.init` (2.60) from replacing the SIGTERM handler by one that calls `sys.exit`."""
    from ray._private import utils

    from airflow_tune_restore.runner.tune.private_api import replaced

    with replaced(utils, "set_sigterm_handler", lambda _handler: None):
        yield
