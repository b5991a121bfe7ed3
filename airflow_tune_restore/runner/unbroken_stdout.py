"""Standard output and error that outlive whoever reads them.

A runner prints into a pipe. Once its reader was killed, every print would raise BrokenPipeError: in the
middle of a result, whose run Tune then gives up without a last snapshot (seen in 2.60), or in the handler
of the signal that asks for that snapshot.
"""

import io
import os
import sys
from typing import Any


def keep_open() -> None:
    """Replace `sys.stdout` and `sys.stderr`; before anything keeps one of them, as logging does."""
    sys.stdout = _unbreakable(1)
    sys.stderr = _unbreakable(2)


def _unbreakable(descriptor: int) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="replace", line_buffering=True)


class _Descriptor(io.FileIO):
    """A file descriptor that becomes /dev/null when nobody reads it any more."""

    def write(self, data: Any, /) -> int:
        """Write, or drop what nobody would read."""
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes
