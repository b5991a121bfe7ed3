"""SIGTERM and SIGINT end a run as Ctrl-C ends a run of Tune: with one last snapshot."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


class StopRequestedError(BaseException):
    """A signal came while no trial was running. A BaseException, so that `except Exception` misses it."""


class StopSignals:
    """Handles both signals from its construction on, and records whether one came."""

    def __init__(self) -> None:
        self.received = False
        self._ignored = False
        self.install()

    def install(self) -> None:
        """Handle both signals. Call it again after Ray has started, which replaces the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignore signals from now on, until the outcome is written."""
        self._ignored = True

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        # Ray's handler ran first; it aborts the process three seconds later (absl's
        # AbslFailureSignalHandler, installed by the core worker, seen in 2.60)
        signal.alarm(0)
        if self.received or self._ignored:
            return  # a second signal must not interrupt the snapshot
        self.received = True
        print("Stopping: saving a snapshot.", file=sys.stderr, flush=True)  # noqa: T201
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
