"""Runs a runner as a child process of this machine and follows it to its end.

The child leads a session of its own, so that whatever it starts (a private Ray has a dozen processes)
can be found and ended with it, and a Ctrl-C in a terminal reaches it only through us.
"""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import airflow_tune_restore
from airflow_tune_restore.exceptions import InvalidInputError, RunnerError, TuneRestoreError
from airflow_tune_restore.launch.account import Account
from airflow_tune_restore.launch.log_lines import LONGEST_LINE
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import EXIT_REFUSED, PROGRESS_PREFIX, RunnerRequest

CHECK_TIMEOUT_SECONDS = 120.0
GRACE_SECONDS = 60.0
"""How long a runner that was told to stop may take to save its snapshot."""

KILL_SECONDS = 10.0
BACKLOG_LINES = 10_000
"""Lines of a runner that wait for whoever shows them."""

_LONGEST_LINE = 256 * 1024
_PACKAGE = "airflow_tune_restore"
_PREFIX = "tune-restore-"
"""Short: the paths of Ray's sockets below it may have 107 bytes."""

_KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_AIRFLOW = ("AIRFLOW", "_AIRFLOW")
"""Prefixes of variables the runner never sees: connections, database, fernet key, tokens."""


@dataclass(frozen=True, kw_only=True)
class LocalLauncher:
    """Starts runners as child processes.

    Args:
        python: Interpreter that has Ray and the user's code; it need not have Airflow.
        env: Variables for the runner, on top of ours without Airflow's. Credentials go here.
        pythonpath: Directories the user's code is imported from, by the runner and Ray's workers.
        account: Whom runners run as; without, as this process, whose memory, files and first environment
            they can then read. It must be able to read interpreter and code, and to write to experiments
            on a disk. Its runners can read each other.

    """

    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    pythonpath: Sequence[str] = ()
    account: Account | None = None

    def start(self, request: RunnerRequest) -> "RunnerProcess":
        """Start the runner of a claimed attempt.

        Raises:
            InvalidInputError: If the interpreter cannot be started.
        """
        home, env = self._prepare(copies_key=self.account is not None)
        self._hand_over(home)
        try:
            process = subprocess.Popen(  # noqa: S603  the arguments are ours
                [*self._run(request), "--parent-pid", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                text=True,
                bufsize=1,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                **self._switch(),
            )
        except OSError as error:
            _remove(home)
            raise self._no_interpreter(error) from error
        return RunnerProcess(process, home)

    def start_detached(self, request: RunnerRequest) -> IO[str]:
        """Start a runner that outlives this process: many follow it, whoever started it.

        Returns:
            Its output, to be read while it is written, from a directory that the runner removes at its
            end. Opened here: a runner with an account of its own could lead us elsewhere by its name.

        Raises:
            InvalidInputError: If the interpreter cannot be started.
        """
        # whoever made the key's file may remove it when we are gone
        home, env = self._prepare(copies_key=True)
        output = home / "output.log"
        with output.open("xb") as out:
            shown = output.open(encoding="utf-8", errors="replace")
            self._hand_over(home)
            try:
                subprocess.Popen(  # noqa: S603  the arguments are ours
                    [*self._run(request), "--home", home.as_posix()],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=env,
                    start_new_session=True,
                    **self._switch(),
                )
            except OSError as error:
                shown.close()
                _remove(home)
                raise self._no_interpreter(error) from error
        return shown

    def _run(self, request: RunnerRequest) -> list[str]:
        key = layout.request_key(request.restore_id, request.trial_id, request.attempt)
        command = ["run", "--experiment", request.experiment, "--request", key]
        return [self.python, "-m", f"{_PACKAGE}.runner", *command]

    def check(
        self,
        *,
        experiment: str,
        trainable: str,
        trainable_name: str,
        param_space: str | None = None,
        search_alg: str | None = None,
        imports: Sequence[str] = (),
        ignore_tuner: bool = False,
    ) -> None:
        """Ask the interpreter whether a trainable fits an experiment. Starts no Ray.

        Raises:
            InvalidInputError: If it does not fit, in one sentence.
            RunnerError: If the question could not be answered.
        """
        command = [
            "check",
            *("--experiment", experiment),
            *("--trainable", trainable),
            *("--trainable-name", trainable_name),
            *(("--param-space", param_space) if param_space else ()),
            *(("--search-alg", search_alg) if search_alg else ()),
            *(argument for module in imports for argument in ("--import", module)),
            *(("--ignore-tuner",) if ignore_tuner else ()),
        ]
        home, env = self._prepare(copies_key=self.account is not None)
        self._hand_over(home)
        try:
            done = subprocess.run(  # noqa: S603  the arguments are ours
                [self.python, "-m", f"{_PACKAGE}.runner", *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=env,
                encoding="utf-8",
                errors="replace",
                timeout=CHECK_TIMEOUT_SECONDS,
                check=False,
                **self._switch(),
            )
        except OSError as error:
            raise self._no_interpreter(error) from error
        except subprocess.TimeoutExpired as error:
            raise RunnerError(
                f"Importing {trainable} took more than {CHECK_TIMEOUT_SECONDS:.0f} s; "
                "does its module do work when it is imported?"
            ) from error
        finally:
            _remove(home)
        if done.returncode != 0:
            raise _refusal(trainable, done)

    def _prepare(self, *, copies_key: bool) -> tuple[Path, dict[str, str]]:
        """Make the runner's directory, and return it with the runner's variables.

        Only we may look into it until `_hand_over`. Our package is there alone: our own site-packages are
        never put on its path, for the runner's interpreter may be another one, and Airflow's packages
        would shadow Ray's.

        Raises:
            InvalidInputError: If a key file cannot be copied there.
        """
        home = Path(tempfile.mkdtemp(prefix=_PREFIX))
        (home / _PACKAGE).symlink_to(Path(airflow_tune_restore.__path__[0]).resolve())
        env = {key: value for key, value in os.environ.items() if not key.startswith(_AIRFLOW)}
        if self.account is not None:
            env.update(self.account.variables(home.as_posix()))
        env.update(self.env)
        if copies_key and (key_file := self.env.get(_KEY_FILE)):
            key = home / "credentials.json"
            try:
                shutil.copy(key_file, key)
            except OSError as error:
                _remove(home)
                raise InvalidInputError(f"Cannot read {key_file}: {error.strerror}.") from error
            env[_KEY_FILE] = key.as_posix()
        paths = [*self.pythonpath, env.get("PYTHONPATH", ""), home.as_posix()]
        env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        env["PYTHONUNBUFFERED"] = "1"
        return home, env

    def _hand_over(self, home: Path) -> None:
        """Give the account the runner's directory, where it needs one.

        The last thing done there by name: from here on, a runner of that account that is at work already
        may put a link in the place of anything in it. What we write or read there is opened before.
        """
        if self.account is not None:
            for path in (*home.glob("*.json"), home):
                os.chown(path, self.account.uid, self.account.gid)

    def _switch(self) -> dict[str, Any]:
        """Return the arguments of `Popen` that say whom the process runs as."""
        if self.account is None:
            return {}
        groups = list(self.account.groups)
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": groups}

    def _no_interpreter(self, error: OSError) -> InvalidInputError:
        told = f"Cannot start {self.python}"
        if self.account is None:
            return InvalidInputError(f"{told}: {error.strerror}.")
        name = self.account.name
        return InvalidInputError(
            f"{told} as {name}: {error.strerror}. {name} must be able to read and run it, and to walk "
            "every directory above it; or name another interpreter (python=)."
        )


def _remove(home: Path) -> None:
    """Remove the directory of a runner, as far as it can be; no link is followed.

    `TemporaryDirectory` would change the modes of what it cannot remove, by name (Python 3.11): where the
    runner had an account of its own, it could put links to other files there.
    """
    shutil.rmtree(home, ignore_errors=True)


class RunnerProcess:
    """A runner at work. Its output is drained always, so that it never waits for a reader."""

    def __init__(self, process: "subprocess.Popen[str]", home: Path) -> None:
        self._process = process
        self._home = home
        # no lock of ours: a signal handler that stops the runner may interrupt whoever reads, and the
        # runner must not wait then
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._left_out = 0
        # an event, not the thread's end: a Ctrl-C in Thread.join makes it forget that it waits (3.11)
        self._ended = threading.Event()
        threading.Thread(target=self._drain, name="runner-output", daemon=True).start()
        threading.Thread(target=self._see_off, name="runner-end", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id, and the id of its session."""
        return self._process.pid

    def lines(self) -> Iterator[str]:
        """Yield what it prints, stdout and stderr merged, without line ends, until it has ended.

        If it prints faster than that, the oldest lines are left out, and counted; results are not.
        """
        told = 0
        while True:
            line = self._lines.get()
            if (missing := self._left_out - told) > 0:
                told += missing
                yield f"… {missing:,} lines left out here: it prints faster than they are shown"
            while not self._results.empty():
                yield self._results.get()
            if line is None:
                break
            yield line
        self._lines.put(None)  # for the next reader

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for its end and return the exit code; negative if a signal ended it.

        Raises:
            TimeoutError: If it still runs.
        """
        if not self._ended.wait(timeout_seconds):
            raise TimeoutError(f"runner {self.pid} still runs")
        return self._process.wait()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Ask it to save a snapshot and end; kill it and all it started if it does not in time."""
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)  # not its group: Ray must live until the snapshot
        try:
            return self.wait(grace_seconds)
        except TimeoutError:
            _kill_session(self.pid)
            return self.wait()

    def _drain(self) -> None:
        with contextlib.closing(self._process.stdout) as output:  # type: ignore[type-var]
            while line := output.readline(_LONGEST_LINE):  # type: ignore[union-attr]
                self._keep(line.rstrip("\n"))
        self._lines.put(None)

    def _keep(self, line: str) -> None:
        """Keep a line for the reader; of too many that wait, let the oldest go."""
        self._lines.put(line if _is_result(line) else line[:LONGEST_LINE])
        if self._lines.qsize() <= BACKLOG_LINES:
            return
        with contextlib.suppress(queue.Empty):  # the reader was faster
            oldest = self._lines.get_nowait()
            if oldest and _is_result(oldest) and self._results.qsize() < BACKLOG_LINES:
                self._results.put(oldest)
            else:
                self._left_out += 1

    def _see_off(self) -> None:
        """Wait for the end and take along what it left behind: a killed runner cannot stop its Ray.

        The process is reaped last; until then its id, which names the session, cannot be reused.
        """
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            _kill_session(self.pid)
            self._process.wait()
            _remove(self._home)
        finally:
            self._ended.set()


def _is_result(line: str) -> bool:
    return line.startswith(PROGRESS_PREFIX)


def _refusal(trainable: str, done: "subprocess.CompletedProcess[str]") -> TuneRestoreError:
    """Return the sentence a `check` ended with; Ray may have printed anything around it."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if done.returncode == EXIT_REFUSED and errors:
        return InvalidInputError(errors[-1])
    last = lines[-1] if lines else "It said nothing."
    return RunnerError(
        f"Could not check trainable {trainable}: {done.args[0]} ended with exit code "
        f"{done.returncode}. {last}"
    )


def _kill_session(session: int) -> None:
    """Kill every process of a session and see them gone; those of Ray's workers start others."""
    deadline = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGKILL)
    while (alive := _members(session)) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _members(session: int) -> list[int]:
    """Return the living processes of a session; nothing where there is no /proc (macOS)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid pgrp session …; the name may hold anything
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found
