"""SIGTERM and SIGINT end a run as Ctrl-C ends one of Tune's: one last snapshot, then the end."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


class ToldToStopError(BaseException):
    """A signal came while no trial was running; a BaseException, so that nothing swallows it."""


class StopSignals:
    """Takes both signals from the moment it is made, and remembers whether one came."""

    def __init__(self) -> None:
        self.came = False
        self._ignored = False
        self.install()

    def install(self) -> None:
        """Take both signals; again once Ray runs, whose C++ part takes SIGTERM for a crash."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Let nothing come between the end of the run and its outcome."""
        self._ignored = True

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        # came through Ray's handler, that aborts the process three seconds later: absl's
        # AbslFailureSignalHandler, installed by the core worker (seen in 2.60)
        signal.alarm(0)
        if self.came or self._ignored:
            return  # a second one must not spoil the snapshot
        self.came = True
        print("Told to stop: saving a snapshot.", file=sys.stderr, flush=True)  # noqa: T201
        if callable(signal.getsignal(signal.SIGUSR1)):
            # tune.run takes SIGUSR1 for "stop, and save one last time" (ray.tune.tune, 2.40 to 2.60)
            signal.raise_signal(signal.SIGUSR1)
        else:
            raise ToldToStopError


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep `ray.init` from putting its own SIGTERM handler in the place of ours.

    It calls `sys.exit`, in the middle of whatever runs (ray._private.worker.init, 2.60).
    """
    from ray._private import utils

    from airflow_tune_restore.runner.tune.private_api import replaced

    with replaced(utils, "set_sigterm_handler", lambda _handler: None):
        yield
