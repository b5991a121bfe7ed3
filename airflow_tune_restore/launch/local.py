"""Runs attempts as child processes of this machine."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import airflow_tune_restore
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.account import Account, runner_account
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.launch.check_output import CheckOutput
from airflow_tune_restore.launch.process import RunnerProcess, remove_home
from airflow_tune_restore.launch.waiting import WaitingRunner
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT, CheckAnswer, CheckRequest
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings

_PACKAGE = "airflow_tune_restore"
_HOME_PREFIX = "tune-restore-"
"""Short: the paths of Ray's sockets below it may have 107 bytes."""

_KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_AIRFLOW = ("AIRFLOW", "_AIRFLOW")
"""Prefixes of variables that no runner gets: connections, database, fernet key, tokens."""

_PACKAGE_DIRS = frozenset({"site-packages", "dist-packages"})


def build_launcher(
    name: str,
    *,
    python: str | None = None,
    env: Mapping[str, str] | None = None,
    runner_user: str | None = None,
) -> "LocalLauncher":
    """Return the local launcher of an operator.

    Args:
        name: The operator's `launcher`.
        python: Interpreter that has Ray and the user's code; the worker's own by default.
        env: Variables for the runner: credentials, and those that the user sets.
        runner_user: Account of the runners; by default that of this process.

    Raises:
        InvalidInputError: If the name is not `local`, or if this process may not switch to that user.
    """
    if name == LauncherName.KUBERNETES:
        raise InvalidInputError(
            f"This operator does not run pods (launcher={str(name)!r}). Use "
            "RestoreTrialKubernetesOperator, ContinueSearchKubernetesOperator or "
            "RunTuneSweepKubernetesOperator."
        )
    if name != LauncherName.LOCAL:
        raise InvalidInputError(f"launcher={name!r} is not known. Give one of: local, ray.")
    return LocalLauncher(
        python=python or sys.executable,
        env=dict(env or {}),
        pythonpath=user_code_paths(),
        account=runner_account(runner_user, name),
    )


def user_code_paths() -> list[str]:
    """Return the entries of sys.path that Airflow or the user added, such as the DAG bundle and plugins.

    Entries of this interpreter are left out: the runner's may be another one.
    """
    # `scripts` is the first entry if `airflow` itself was started
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    own = {Path(sysconfig.get_path(name)).resolve() for name in names}
    paths: list[str] = []
    for entry in sys.path:
        path = Path(entry or os.curdir).resolve()
        of_interpreter = _PACKAGE_DIRS & set(path.parts) or any(path.is_relative_to(o) for o in own)
        if path.is_dir() and not of_interpreter and str(path) not in paths:
            paths.append(str(path))
    return paths


@dataclass(frozen=True, kw_only=True)
class LocalLauncher:
    """Starts runners as child processes.

    As a context manager it keeps the process of a check for the next attempt, which then imports nothing
    again; at the end of the block, it ends one that waits in vain.

    Args:
        python: Interpreter that has Ray and the user's code; it need not have Airflow.
        env: Variables for the runner, in addition to those of this process without Airflow's. Credentials
            go here.
        pythonpath: Directories from which the runner and Ray's workers import the user's code.
        account: Account of the runners. None: that of this process, whose memory, files and first
            environment they can then read. The account must be able to read interpreter and code, and to
            write to experiments on a disk. Its runners can read each other.

    """

    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    pythonpath: Sequence[str] = ()
    account: Account | None = None
    _started: dict[AttemptId, RunnerProcess] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _kept: "_KeptCheck" = field(
        default_factory=lambda: _KeptCheck(), init=False, repr=False, compare=False
    )

    def __enter__(self) -> Self:
        """Keep the process of a check from now on."""
        self._kept.is_wanted = True
        return self

    def __exit__(self, *_error: object) -> None:
        """End the process of a check that no attempt has followed."""
        self._kept.is_wanted = False
        self._kept.end()

    def settings(self, settings: RunnerSettings) -> RunnerSettings:
        """Return the settings with those of this launcher: a private Ray is as large as its machine."""
        return replace(settings, can_grow=settings.address is not None)

    def start(self, request: RunnerRequest) -> RunnerProcess:
        """Start the runner of a claimed attempt, or return it if this launcher has started it.

        Raises:
            InvalidInputError: If the interpreter cannot be started.
        """
        if (started := self.find(request)) is not None:
            return started
        arguments = [*_run_arguments(request), "--parent-pid", str(os.getpid())]
        run = self._kept.run(arguments) or self._start(arguments)
        self._started[_attempt_id(request)] = run
        return run

    def _start(self, arguments: Sequence[str]) -> RunnerProcess:
        home, env = self._prepare(copies_key=self.account is not None)
        self._hand_over(home)
        try:
            process = subprocess.Popen(  # noqa: S603  the arguments are fixed
                self._command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                text=True,
                bufsize=1,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                **self._account_arguments(),
            )
        except OSError as error:
            remove_home(home)
            raise self._cannot_start(error) from error
        return RunnerProcess(process, home)

    def find(self, request: RunnerRequest) -> RunnerProcess | None:
        """Return the runner of an attempt if this launcher has started it; others cannot be found."""
        return self._started.get(_attempt_id(request))

    def stop_command(self, request: RunnerRequest) -> str:
        """Return the command that stops the runner; it also exits by itself when this process has."""
        run = self.find(request)
        return f"kill {run.pid}" if run is not None else "it was not started"

    def start_detached(self, request: RunnerRequest, *, outlives: bool = True) -> IO[str]:
        """Start a runner that several tasks follow, which may outlive this process.

        If it must not, it saves a snapshot and ends once this process has.

        Returns:
            Its output, to be read while it is written. The file lies in a directory that the runner
            removes at its end. It is opened here, before the runner's account can replace it with a link.

        Raises:
            InvalidInputError: If the interpreter cannot be started.
        """
        # the process that made the key file may remove it when it exits
        home, env = self._prepare(copies_key=True)
        arguments = [*_run_arguments(request), "--home", home.as_posix()]
        if not outlives:
            arguments += ["--parent-pid", str(os.getpid())]
        output = home / "output.log"
        with output.open("xb") as out:
            shown = output.open(encoding="utf-8", errors="replace")
            self._hand_over(home)
            try:
                subprocess.Popen(  # noqa: S603  the arguments are fixed
                    self._command(arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=env,
                    start_new_session=True,
                    **self._account_arguments(),
                )
            except OSError as error:
                shown.close()
                remove_home(home)
                raise self._cannot_start(error) from error
        return shown

    def check(
        self, request: CheckRequest, timeout: timedelta = DEFAULT_CHECK_TIMEOUT
    ) -> list[CheckAnswer]:
        """Check in one process of the interpreter whether a trainable fits experiments. Starts no Ray.

        Returns:
            One answer per experiment. Those that were not reached in time have `Problem.FAILED`.

        Raises:
            InvalidInputError: If the trainable or the param_space cannot be used for any experiment.
            RunnerError: If no experiment could be checked.
        """
        home, env = self._prepare(copies_key=self.account is not None)
        self._hand_over(home)
        # files, not pipes: a process that the user's module leaves behind may keep a pipe open
        with TemporaryFile() as question, TemporaryFile() as answers, TemporaryFile() as errors:
            question.write(request.to_json())
            question.seek(0)
            streams = {"stdin": question, "stdout": answers, "stderr": errors, "env": env}
            limit = timeout.total_seconds()
            runner: WaitingRunner | None = None
            if self._kept.is_wanted and _only_imports(request):
                runner, exit_code = self._check_and_wait(streams, home, limit)
            else:
                exit_code = self._check(streams, home, limit)
            output = CheckOutput.read(answers, errors)
        try:
            found = output.answers_to(
                request, python=self.python, exit_code=exit_code, timeout=timeout
            )
        finally:
            if runner is not None:
                self._kept.keep(runner, output.others)
        return found

    def _check(self, streams: Mapping[str, Any], home: Path, limit: float) -> int | None:
        """Check in a process that then exits. Returns its exit code, or None if the time is over."""
        try:
            return subprocess.run(  # noqa: S603  the arguments are fixed
                self._command(["check"]),
                timeout=limit,
                check=False,
                **streams,
                **self._account_arguments(),
            ).returncode
        except OSError as error:
            raise self._cannot_start(error) from error
        except subprocess.TimeoutExpired:
            return None
        finally:
            remove_home(home)

    def _check_and_wait(
        self, streams: Mapping[str, Any], home: Path, limit: float
    ) -> tuple[WaitingRunner | None, int | None]:
        """Check in a process that then waits for an attempt.

        Returns the process, if it waits, and what `_check` returns.
        """

        def start(arguments: list[str], descriptors: Sequence[int]) -> "subprocess.Popen[str]":
            return subprocess.Popen(  # noqa: S603  the arguments are fixed
                self._command(["check", *arguments]),
                pass_fds=descriptors,
                text=True,
                start_new_session=True,
                **streams,
                **self._account_arguments(),
            )

        try:
            runner = WaitingRunner(start, home)
        except OSError as error:
            remove_home(home)
            raise self._cannot_start(error) from error
        try:
            exit_code = runner.wait(limit)
        except BaseException:  # Ctrl-C does not reach a session of its own
            runner.end()
            raise
        if runner.is_waiting:
            return runner, exit_code
        runner.end()
        return None, exit_code

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [self.python, "-m", f"{_PACKAGE}.runner", *arguments]

    def _prepare(self, *, copies_key: bool) -> tuple[Path, dict[str, str]]:
        """Make the runner's directory, and return it with the runner's variables.

        Until `_hand_over` only this process can read it. It holds this package and no other: this
        interpreter's site-packages are never on the runner's path, because the runner's interpreter may
        be another one, and Airflow's packages would shadow Ray's.

        Raises:
            InvalidInputError: If a key file cannot be copied there.
        """
        home = Path(tempfile.mkdtemp(prefix=_HOME_PREFIX))
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
                remove_home(home)
                raise InvalidInputError(f"Cannot read {key_file}: {error.strerror}.") from error
            env[_KEY_FILE] = key.as_posix()
        paths = [*self.pythonpath, env.get("PYTHONPATH", ""), home.as_posix()]
        env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        env["PYTHONUNBUFFERED"] = "1"
        return home, env

    def _hand_over(self, home: Path) -> None:
        """Make the account, if there is one, the owner of the runner's directory.

        This is the last access by name: from then on, a running runner of that account may replace
        anything there with a link. Files that are written or read later are opened before.
        """
        if self.account is not None:
            for path in (*home.glob("*.json"), home):
                os.chown(path, self.account.uid, self.account.gid)

    def _account_arguments(self) -> dict[str, Any]:
        """Return the arguments of `Popen` that set the account of the process."""
        if self.account is None:
            return {}
        groups = list(self.account.groups)
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": groups}

    def _cannot_start(self, error: OSError) -> InvalidInputError:
        if self.account is None:
            return InvalidInputError(f"Cannot start {self.python}: {error.strerror}.")
        name = self.account.name
        return InvalidInputError(
            f"Cannot start {self.python} as {name}: {error.strerror}. {name} must be able to read and "
            "run it, and to walk every directory above it. Or give another interpreter (python=)."
        )


class _KeptCheck:
    """The process of a check that waits for the next attempt of a launcher."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._waiting: list[tuple[WaitingRunner, list[str]]] = []

    def keep(self, runner: WaitingRunner, printed: Iterable[str]) -> None:
        """Keep a check, with what it has printed, in place of an older one."""
        self.end()
        self._waiting.append((runner, list(printed)))

    def run(self, arguments: Sequence[str]) -> RunnerProcess | None:
        """Let it run an attempt; None if none waits, or if another thread was first."""
        try:
            runner, printed = self._waiting.pop()
        except IndexError:
            return None
        return runner.run(arguments, printed)

    def end(self) -> None:
        """End it, if it waits."""
        while self._waiting:
            self._waiting.pop()[0].end()


def _only_imports(request: CheckRequest) -> bool:
    """Whether a check calls no function of the user: a run must find his modules as they are imported."""
    searchers = (experiment.search_alg for experiment in request.experiments)
    return request.param_space is None and not any(searchers)


def _run_arguments(request: RunnerRequest) -> list[str]:
    key = layout.request_key(*_attempt_id(request))
    return ["run", "--experiment", request.experiment, "--request", key]


def _attempt_id(request: RunnerRequest) -> AttemptId:
    return AttemptId(request.restore_id, request.trial_id, request.attempt)
