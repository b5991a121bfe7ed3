"""A runner as a child process on this machine, with its own Ray or an existing cluster by address.

The child gets no Airflow configuration and no connection: what it needs to reach storage is passed in
`env`. It watches its parent and ends, with a snapshot saved, when that is killed.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import EXIT_REFUSED, RunnerRequest

GRACE_SECONDS = 60.0
"""How long a runner that was told to stop may take to save its snapshot."""

_PACKAGE_ROOT = Path(__file__).parents[2].as_posix()
_RUNNER = "airflow_tune_restore.runner"


class LocalLauncher:
    """Starts runners here.

    Args:
        python: Interpreter that has ray.
        env: Environment variables to add, such as storage credentials.
        pythonpath: Directories from which trainables are imported.
    """

    def __init__(
        self,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        pythonpath: Sequence[str] = (),
    ) -> None:
        self._python = python
        self._env = dict(env or {})
        self._pythonpath = list(pythonpath)

    def start(self, request: RunnerRequest) -> "RunnerProcess":
        """Start a runner for a stored request.

        Raises:
            RunnerError: If the interpreter cannot be started.
        """
        key = layout.request_key(request.restore_id, request.trial_id, request.attempt)
        command = ["run", "--experiment", request.experiment, "--request", key]
        return RunnerProcess(self._spawn([*command, "--parent-pid", str(os.getpid())]))

    def check(
        self,
        *,
        experiment: str,
        trainable: str,
        trainable_name: str,
        param_space: str | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        """Find out whether a trainable fits an experiment, before anything is leased or started.

        Raises:
            InvalidInputError: If it does not; says why.
            RunnerError: If that could not be found out.
        """
        command = ["check", "--experiment", experiment, "--trainable", trainable]
        command += ["--trainable-name", trainable_name]
        command += ["--param-space", param_space] if param_space else []
        command += [part for module in imports for part in ("--import", module)]
        child = self._spawn(command)
        output, _ = child.communicate()
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        if child.returncode == EXIT_REFUSED and lines:
            raise InvalidInputError(lines[-1].removeprefix("error: "))
        if child.returncode != 0:
            raise RunnerError(
                f"Could not check trainable {trainable}: {self._python} ended with exit code "
                f"{child.returncode}. {_last_line(output)}"
            )

    def _spawn(self, arguments: Sequence[str]) -> "subprocess.Popen[str]":
        command = [self._python, "-u", "-m", _RUNNER, *arguments]
        try:
            return subprocess.Popen(  # noqa: S603  no shell, and no credential among the arguments
                command,
                env=self._child_env(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                bufsize=1,
                start_new_session=True,  # a group of its own: Ctrl-C reaches us first
            )
        except OSError as error:
            raise RunnerError(f"Cannot start {self._python}: {error.strerror}.") from error

    def _child_env(self) -> dict[str, str]:
        # AIRFLOW_CONN_…, the database URL, fernet and JWT keys are none of a trainable's business
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW_", "_AIRFLOW"))
        }
        path = [*self._pythonpath, inherited.get("PYTHONPATH", ""), _PACKAGE_ROOT]
        return {
            **inherited,
            **self._env,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(part for part in path if part)),
        }


class RunnerProcess:
    """A running runner."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self._child = child
        self._stopping = threading.Lock()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def lines(self) -> Iterator[str]:
        """Yield what it prints, line by line, until it ends."""
        assert self._child.stdout is not None  # noqa: S101  opened as a pipe above
        for line in self._child.stdout:
            yield line.rstrip("\n")

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        code = self._child.wait()
        self._sweep()
        return code

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Tell it to stop and wait; kill it if it has not saved its snapshot in time."""
        with self._stopping:
            if self._child.poll() is None:
                self._child.send_signal(signal.SIGTERM)
                try:
                    self._child.wait(grace_seconds)
                except subprocess.TimeoutExpired:
                    self._child.kill()
                    self._child.wait()
            self._sweep()

    def _sweep(self) -> None:
        """End what its private Ray left behind in its process group."""
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""
