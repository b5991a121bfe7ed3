"""Ctrl-C and SIGTERM end a command in the same way, with the exit code of the signal."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import typer

EXIT_SIGNAL = 128
"""Plus the number of the signal, as shells do: 130 after Ctrl-C (as Typer does), 143 after SIGTERM."""

_SAME_STOP_SECONDS = 2.0
"""Signals within it are one: `timeout` of GNU signals the command, and at once its process group."""


@dataclass
class Stop:
    """The first signal that has stopped the block; 0 if none has."""

    signal: int = 0


@contextlib.contextmanager
def sigterm_as_ctrl_c(monotonic: Callable[[], float] = time.monotonic) -> Iterator[Stop]:
    """Let SIGTERM and Ctrl-C raise KeyboardInterrupt, until the block ends. No signal counts twice.

    Raises:
        typer.Exit: If the block does not catch it, with the exit code of the signal. While the process
            ends, another signal ends it at once: an exception would be a traceback.
    """
    stop, last, is_ending = Stop(), -_SAME_STOP_SECONDS, False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        now = monotonic()
        if now - last < _SAME_STOP_SECONDS:
            return
        last = now
        if is_ending:
            os._exit(EXIT_SIGNAL + number)
        stop.signal = stop.signal or number
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in a background job of a script
            signal.signal(number, interrupt)
    try:
        yield stop
    except KeyboardInterrupt:
        is_ending = True
        before.clear()  # the process keeps these handlers
        raise typer.Exit(EXIT_SIGNAL + (stop.signal or signal.SIGINT)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
