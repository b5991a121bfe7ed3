"""The script of a sweep as a process: started by a shell, stopped as by Ctrl-C, and never left behind.

The script has a process group of its own, in the session of the runner: a signal reaches all of it and
not the runner, and a launcher that ends the session of a runner ends the script, too. Ray's daemons block
SIGINT (ray._private.services.start_ray_process, 2.60), as they must when a user presses Ctrl-C.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.storage.location import Location

STOP_SECONDS = 55.0
"""How long a stopped script may take to save its last snapshot. A Ray job is killed after 60 s."""

_POLL_SECONDS = 0.2

_GUARD = 'trap "" INT TERM HUP; read group && read end; [ -n "$group" ] && kill -9 "-$group"'
"""Outlives a runner that is killed, and then kills its script: without a lease it must not write."""

_OF_RUNNERS = frozenset({"TUNE_DISABLE_SIGINT_HANDLER", "RAY_AIR_NEW_OUTPUT"})
"""Variables that the runner sets for itself: Ray Tune must handle SIGINT, and print as it always does."""

_STOP_SIGNAL = "RAY_JOB_STOP_SIGNAL"
"""Set for the Ray job of a sweep: Ray then sends SIGINT to the runner and to its script
(ray.dashboard.modules.job.job_supervisor, 2.60). A second SIGINT would end Tune without a snapshot."""

_CLUSTER = "auto"

logger = logging.getLogger(__name__)


class Script:
    """The script of one attempt. `kill` may be called from any thread, at any time, more than once."""

    def __init__(self, request: RunnerRequest) -> None:
        self._request = request
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._is_killed = False
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start it, unless it was killed.

        Raises:
            InvalidInputError: If the request has no command line, or if no shell exists here.
        """
        command = self._request.entrypoint
        if not command:
            raise InvalidInputError(f"The sweep of {self._request.experiment} has no entrypoint.")
        shell = shutil.which("bash") or shutil.which("sh")
        if shell is None:
            raise InvalidInputError(f"There is neither bash nor sh here to run {command!r}.")
        with ThreadPoolExecutor(1) as beside:  # where no handler of a signal can interrupt it
            beside.submit(self._start, shell, command).result()

    def _start(self, shell: str, command: str) -> None:
        # Ray blocks it in the processes of its jobs, and a child inherits that
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        with self._lock:
            if self._is_killed:
                return
            self._guard = subprocess.Popen(  # noqa: S603  the arguments are fixed
                [shutil.which("sh") or shell, "-c", _GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
            self._process = subprocess.Popen(  # noqa: S603  the user's own command line
                [shell, "-c", command],
                stdin=subprocess.DEVNULL,
                env=script_environment(self._request, os.environ),
                process_group=0,
            )
            assert self._guard.stdin is not None  # noqa: S101  it is a pipe
            self._guard.stdin.write(f"{self._process.pid}\n".encode())
            self._guard.stdin.flush()

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Wait for its exit, and end what it left behind; None if it was not started or still runs."""
        process = self._process
        if process is None:
            return self._exit_code
        began = time.monotonic()
        while self._exit_code is None:
            # not reaped yet: until then its id, which names its group, cannot be reused
            if _has_exited(process.pid, os.WNOHANG):
                self.kill()
                break
            if timeout_seconds is not None and time.monotonic() - began > timeout_seconds:
                return None
            time.sleep(_POLL_SECONDS)
        return self._exit_code

    def stop(self) -> int | None:
        """Stop it as Ctrl-C does: Ray Tune saves one last snapshot. Kill it if that takes too long."""
        process = self._process
        if process is None:
            return None
        if os.environ.get(_STOP_SIGNAL) != signal.Signals.SIGINT.name:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        if self.wait(STOP_SECONDS) is None:
            logger.warning("The script did not end within %.0f s; it is killed.", STOP_SECONDS)
            self.kill()
        return self._exit_code

    def kill(self) -> None:
        """Kill all of its group that lives, and keep it from being started."""
        with self._lock:
            self._is_killed = True
            process, guard = self._process, self._guard
            if process is None or self._exit_code is not None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            _has_exited(process.pid)
            if guard is not None:  # before the group's id can be reused
                guard.kill()
                guard.wait()
                assert guard.stdin is not None  # noqa: S101  it is a pipe
                guard.stdin.close()
            self._exit_code = process.wait()


def script_environment(request: RunnerRequest, environment: "os._Environ[str]") -> dict[str, str]:
    """Return the variables of a script: where its experiment lies, and `python` for the runner's own."""
    env = {name: value for name, value in environment.items() if name not in _OF_RUNNERS}
    location = Location.parse(request.experiment)
    env["TUNE_RESTORE_EXPERIMENT"] = request.experiment
    env["TUNE_RESTORE_STORAGE_PATH"] = (
        str(location.parent) or "/"
    )  # of a path in the root directory
    env["TUNE_RESTORE_NAME"] = location.name
    directory = str(Path(sys.executable).parent)  # not resolved: that of a virtual environment
    env["PATH"] = os.pathsep.join(filter(None, [directory, env.get("PATH", os.defpath)]))
    if request.address not in (None, _CLUSTER):  # a Ray job has the address of its cluster
        env["RAY_ADDRESS"] = str(request.address)
    return env


def _has_exited(pid: int, how: int = 0) -> bool:
    """Whether a child has exited; without `os.WNOHANG`, wait for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | how) is not None
    except ChildProcessError:
        return True  # it was reaped, and a signal came before that was recorded


def describe_exit(exit_code: int) -> str:
    """Return an exit code of the script in words."""
    if exit_code < 0:
        with contextlib.suppress(ValueError):
            return f"{signal.Signals(-exit_code).name} ended the script"
    return f"the exit code of the script was {exit_code}"
