"""Standard output and error that survive the end of their reader.

A runner prints into a pipe. If the reader was killed, every print would raise BrokenPipeError: while a
result is handled, which makes Tune end the run without a last snapshot (seen in 2.60), or in the handler
of the signal that requests this snapshot.
"""

import io
import os
import sys
from typing import Any


def keep_open() -> None:
    """Replace `sys.stdout` and `sys.stderr`. Call it before logging, which keeps a reference to them."""
    sys.stdout = _unbreakable(1)
    sys.stderr = _unbreakable(2)


def _unbreakable(descriptor: int) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="replace", line_buffering=True)


class _Descriptor(io.FileIO):
    """A file descriptor that becomes /dev/null when its reader is gone."""

    def write(self, data: Any, /) -> int:
        """Write the data, or drop it without a reader."""
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes
