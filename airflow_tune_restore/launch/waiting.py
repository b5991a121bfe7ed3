"""A check whose process waits for the first attempt: Ray and the user's code are imported once for both.

The process gets two pipes besides its standard streams. It writes a line into the one when it has
checked, and prints there as every runner does once it runs an attempt. It reads the arguments of `run`
from the other one, and exits if nobody can write them any more.
"""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from airflow_tune_restore.launch.process import RunnerProcess, kill_session, remove_home

_POLL_SECONDS = 0.05


class WaitingRunner:
    """A process that checks, and then waits for the arguments of a run. It leads its own session.

    Args:
        start: Starts it with these arguments at the end, and with these descriptors.
        home: Its directory, which is removed when it has exited.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(
        self, start: Callable[[list[str], Sequence[int]], "subprocess.Popen[str]"], home: Path
    ) -> None:
        self._home = home
        self._has_checked = False
        self._output, output = os.pipe()
        arguments, self._arguments = os.pipe()
        try:
            self._process = start(["--then-run", str(arguments), str(output)], (arguments, output))
        except OSError:
            os.close(self._arguments)
            os.close(self._output)
            raise
        finally:
            os.close(arguments)
            os.close(output)

    @property
    def is_waiting(self) -> bool:
        """Whether it has checked and waits; it may have been killed since."""
        return self._has_checked

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait until it has checked. Returns its exit code; 0 if it waits, None if the time is over.

        Its exit is looked at, too: a process that the user's module left behind may hold the pipe open.
        """
        deadline = time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0 and self._process.poll() is None:
                if selector.select(min(_POLL_SECONDS, left)):
                    self._has_checked = bool(os.read(self._output, 1))
                    break
        if self._has_checked:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        return None

    def run(self, arguments: Sequence[str], earlier: Iterable[str]) -> RunnerProcess | None:
        """Let it run an attempt, or end it if it does not wait any more: None.

        Args:
            arguments: Those of the runner's command line.
            earlier: What the user's code has printed until now.
        """
        try:
            os.write(self._arguments, json.dumps(arguments).encode() + b"\n")
        except BrokenPipeError:
            self.end()
            return None
        os.close(self._arguments)
        self._process.stdout = open(  # noqa: PTH123, SIM115  a descriptor; the run closes it
            self._output, buffering=1, encoding="utf-8", errors="replace"
        )
        return RunnerProcess(self._process, self._home, earlier)

    def end(self) -> None:
        """Kill it and everything it started."""
        if self._process.returncode is None:  # once it is reaped, its id may be another session's
            kill_session(self._process.pid)
            self._process.wait()
        os.close(self._arguments)
        os.close(self._output)
        remove_home(self._home)
