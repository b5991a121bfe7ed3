"""A runner as a child process: its output, its exit, and how it is stopped.

The child leads a session of its own. So everything it starts (a private Ray has a dozen processes) can be
found and ended with it, and a Ctrl-C in a terminal does not reach it directly.
"""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from airflow_tune_restore.launch.base import RunState
from airflow_tune_restore.launch.log_lines import LONGEST_LINE
from airflow_tune_restore.protocol.printable import shortened
from airflow_tune_restore.protocol.request import PROGRESS_PREFIX, RunnerExit
from airflow_tune_restore.restore.runner_death import LAST_LINES

GRACE_SECONDS = 60.0
"""How long a stopped runner may take to save its snapshot."""

KILL_SECONDS = 10.0
POLL_SECONDS = 0.5
OUTPUT_SECONDS = 5.0
"""How long after a runner's exit its output may take to be read: 64 KiB are left in the pipe at most."""

BACKLOG_LINES = 10_000
"""Most lines of a runner that wait for a reader."""

_LONGEST_READ = 256 * 1024


class RunnerProcess:
    """A running runner: the `Run` of the local launcher. Its output is always read, so it never waits.

    Args:
        process: The runner, which leads its own session.
        home: Directory of the runner; it is removed when the runner has exited.
        earlier: Lines that it has printed before, elsewhere.
    """

    def __init__(
        self, process: "subprocess.Popen[str]", home: Path, earlier: Iterable[str] = ()
    ) -> None:
        self._process = process
        self._home = home
        # no locks here: a signal handler that stops the runner may interrupt its reader, and the runner
        # must not wait then
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waiting_results: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._left_out = 0
        self._left_out_shown = 0
        self._fetched: deque[str] = deque()
        self._has_all_output = False
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        # an event, not the thread's end: a Ctrl-C in Thread.join makes it forget that it waits (3.11)
        self._exited = threading.Event()
        self._drained = threading.Event()
        for line in earlier:
            self._keep(line)
        threading.Thread(target=self._drain, name="runner-output", daemon=True).start()
        threading.Thread(target=self._clean_up, name="runner-exit", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id, and the id of its session."""
        return self._process.pid

    def poll(self) -> RunState:
        """Return its state, after a wait for its next line or its exit of at most `POLL_SECONDS`."""
        with contextlib.suppress(queue.Empty):
            if not self._has_all_output:
                self._fetch(POLL_SECONDS)
        if self._has_all_output and self._exited.wait(POLL_SECONDS):
            return RunState.ENDED
        return RunState.RUNNING

    def output(self) -> Iterator[str]:
        """Yield its lines since the last call, stdout and stderr merged, without line ends.

        If it prints faster than they are read, the oldest lines are left out and counted; results
        are not.
        """
        with contextlib.suppress(queue.Empty):
            while not self._has_all_output:
                self._fetch(0.0)
        while self._fetched:  # one by one: a caller may leave the rest for the next call
            line = self._fetched.popleft()
            if not _is_result(line):
                self._last_lines.append(line)
            yield line

    def lines(self) -> Iterator[str]:
        """Yield its lines as in `output`, until it has exited."""
        state = RunState.RUNNING
        while state is not RunState.ENDED:
            state = self.poll()
            yield from self.output()

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for its exit and return the exit code; negative if a signal ended it.

        Raises:
            TimeoutError: If it still runs.
        """
        if not self._exited.wait(timeout_seconds):
            raise TimeoutError(f"runner {self.pid} still runs")
        return self._process.wait()

    def exit(self) -> RunnerExit:
        """Return its exit code and its last lines."""
        return RunnerExit(exit_code=self.wait(), message="\n".join(self._last_lines))

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Let it save a snapshot and exit. After the grace period, kill it and everything it started."""
        if not self._exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)  # not its group: Ray must live until the snapshot
        try:
            self.wait(grace_seconds)
        except TimeoutError:
            kill_session(self.pid)
            self.wait()

    def _fetch(self, timeout_seconds: float) -> None:
        """Fetch the next waiting line, after results that came before it.

        Raises:
            queue.Empty: If none came in time.
        """
        line = self._waiting.get(timeout=timeout_seconds)
        if (missing := self._left_out - self._left_out_shown) > 0:
            self._left_out_shown += missing
            words = "1 line" if missing == 1 else f"{missing:,} lines"
            self._fetched.append(f"… {words} left out here: it prints faster than they are shown")
        while not self._waiting_results.empty():
            self._fetched.append(self._waiting_results.get())
        if line is None:
            self._has_all_output = True
        else:
            self._fetched.append(line)

    def _drain(self) -> None:
        with contextlib.closing(self._process.stdout) as output:  # type: ignore[type-var]
            while line := output.readline(_LONGEST_READ):  # type: ignore[union-attr]
                self._keep(line.rstrip("\n"))
        self._waiting.put(None)
        self._drained.set()

    def _keep(self, line: str) -> None:
        """Keep a line for the reader; if too many wait, drop the oldest."""
        self._waiting.put(line if _is_result(line) else shortened(line, LONGEST_LINE))
        if self._waiting.qsize() <= BACKLOG_LINES:
            return
        with contextlib.suppress(queue.Empty):  # the reader was faster
            oldest = self._waiting.get_nowait()
            if oldest and _is_result(oldest) and self._waiting_results.qsize() < BACKLOG_LINES:
                self._waiting_results.put(oldest)
            else:
                self._left_out += 1

    def _clean_up(self) -> None:
        """Wait for the exit and end what the runner left behind: a killed runner cannot stop its Ray.

        The process is reaped last; until then its id, which names the session, cannot be reused.
        """
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            kill_session(self.pid)
            self._process.wait()
            remove_home(self._home)
        finally:
            self._exited.set()
        if not self._drained.wait(OUTPUT_SECONDS):
            # a daemon that it started, in a session of its own, holds the pipe, maybe for ever
            self._waiting.put(None)


def remove_home(home: Path) -> None:
    """Remove the directory of a runner, as far as possible; links are not followed.

    `TemporaryDirectory` would change the modes of what it cannot remove, by name (Python 3.11): a runner
    with an account of its own could put links to other files there.
    """
    shutil.rmtree(home, ignore_errors=True)


def _is_result(line: str) -> bool:
    return line.startswith(PROGRESS_PREFIX)


def kill_session(session: int) -> None:
    """Kill every process of a session and wait until they are gone; Ray's workers start others."""
    deadline = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGKILL)
    while (alive := _members(session)) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _members(session: int) -> list[int]:
    """Return the living processes of a session; an empty list without /proc (macOS)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid pgrp session …; the name may hold any character
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found
