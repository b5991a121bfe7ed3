"""Two processes that have Ray, kept for all tests of a session, and restores that run in them.

One makes experiments and asks Ray itself what it makes of them; the other runs our runner's command line
on the same Ray. Around it everything is the shell's: preparation, lease, plan, claims, commit. Only the
runner's interpreter and its Ray are not started anew each time.
"""

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from airflow_tune_restore.cli import restore as shell
from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.cli.trainables import RunOptions
from airflow_tune_restore.launch.base import RunState
from airflow_tune_restore.launch.check_output import CheckOutput
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.process import kill_session
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.check import CheckAnswer, CheckRequest
from airflow_tune_restore.protocol.request import RunnerExit, RunnerRequest
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.recipes import Recipes
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import environment
from tests.support.ray.kept_process import ENDED
from tests.support.waiting import PATIENCE_SECONDS

TTL_SECONDS = 1800.0
"""Of the leases of restores that run in the kept runner."""


class HostError(Exception):
    """A call failed in the host; with its output."""


class Host:
    """One process; calls are answered in their order."""

    def __init__(self, log: Path, **env: str) -> None:
        self._log = log
        self.was_stopped = False
        self._is_at_work = False
        variables = environment(TUNE_RESULT_DIR="", **env)
        # workers of a cluster learn the path from their driver's working directory; a PYTHONPATH would
        # make the runner ask for a runtime environment of its own
        variables.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ray.kept_process"],
            cwd=ROOT,
            env={**variables, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        with self._log.open("a") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    @property
    def is_fit(self) -> bool:
        """Whether it lives, never hung, and has answered whatever it was told."""
        return self._process.poll() is None and not self.was_stopped and not self._is_at_work

    def tell(self, do: str, argument: Any = None, **env: str) -> None:
        """Begin a call; `lines` and `answer` are its output and its end.

        It and the trials that it starts have the variables `env`; nothing that comes later has them.
        """
        self._is_at_work = True
        self._process.stdin.write(json.dumps({"do": do, "argument": argument, "env": env}) + "\n")
        self._process.stdin.flush()

    def lines(self) -> Iterator[str]:
        """Yield the output of the call; the answer comes last, marked."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                if self.was_stopped:
                    self.end()
                    raise HostError(f"the host hangs; see {self._log}") from None
                self.was_stopped = True
                self.terminate()  # a runner that is told to stop says how far it came
                continue
            if line is None:
                raise HostError(f"the host ended; see {self._log}")
            self._is_at_work = not line.startswith(ENDED)
            yield line
            if not self._is_at_work:
                return

    def call(self, do: str, argument: Any = None, **env: str) -> Any:
        """Make a call and return its answer.

        Raises:
            HostError: If it raised there.
        """
        self.tell(do, argument, **env)
        *output, last = self.lines()
        return self.answer(last, output)

    def answer(self, last: str, output: list[str]) -> Any:
        answer = json.loads(last.removeprefix(ENDED))
        if "error" in answer:
            raise HostError("\n".join([*output[-60:], answer["error"]]))
        return answer["value"]

    def terminate(self) -> None:
        """Tell the runner in it to stop, as a launcher would."""
        os.kill(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        kill_session(self._process.pid)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


@dataclass(frozen=True)
class Hosts:
    """Ray, and a runner beside it."""

    ray: Host
    runner: Host
    address: str

    @contextlib.contextmanager
    def fresh(self, directory: Path, **env: str) -> Iterator["Hosts"]:
        """Give processes that have imported and registered nothing yet, on the same Ray.

        Where it matters: what a module decides when it is imported, names in Tune's registry.
        """
        ray = Host(directory / "fresh-ray.log", **env)
        runner = Host(directory / "fresh-runner.log", **env)
        try:
            runner.call("prepare_runner")
            ray.call("join_ray", self.address)
            yield Hosts(ray, runner, self.address)
        finally:
            runner.end()
            ray.end()

    def restore_by_us(
        self, uri: str, trainable: str | Recipes, *, flags: ResumeFlags, strategy: str = "auto",
        env: dict[str, str] | None = None, param_space: str | None = None,
        search_alg: str | None = None, imports: tuple[str, ...] = (), **choices: Any,
    ) -> CommitSummary | None:  # fmt: skip
        """Do what `tune-restore restore` does, with runners in the host."""
        is_one = isinstance(trainable, str)
        chosen = shell.RestoreOptions(
            prepare=PrepareOptions(
                choices=PlanChoices(flags=flags, strategy=strategy, **choices),
                stale_after=timedelta(0),
                can_start=param_space is not None, can_search=search_alg is not None,
                recipes=Recipes.parse(trainable) if is_one else trainable,
            ),
            run=RunOptions(param_space=param_space, search_alg=search_alg, imports=list(imports)),
            address=self.address,
        )  # fmt: skip
        launcher = HostLauncher(self.runner, env or {})
        # a runner that ends itself because it was silent for too long ends its host
        with mock.patch.object(shell, "TTL_SECONDS", TTL_SECONDS):
            done = shell.restore_experiment(
                open_store(uri), lambda _: launcher, chosen, Progress(quiet=True)
            )
        return done if isinstance(done, CommitSummary) else None


class HostLauncher:
    """Stands for `LocalLauncher`: the runner's command line runs in the host."""

    def __init__(self, runner: Host, env: dict[str, str]) -> None:
        self._runner = runner
        self._env = env

    def check(self, request: CheckRequest, timeout: timedelta) -> list[CheckAnswer]:
        self._runner.tell("check", request.to_json().decode(), **self._env)
        *lines, last = self._runner.lines()
        code = self._runner.answer(last, lines)["exit_code"]
        output = io.BytesIO("\n".join(lines).encode())  # stdout and stderr are one stream
        return CheckOutput.read(output, output).answers_to(
            request, python=sys.executable, exit_code=code, timeout=timeout
        )

    def settings(self, settings: RunnerSettings) -> RunnerSettings:
        return LocalLauncher().settings(settings)

    def find(self, request: RunnerRequest) -> None:
        """No run of another process can be found."""

    def stop_command(self, request: RunnerRequest) -> str:
        return "end the tests"

    def start(self, request: RunnerRequest) -> "HostRun":
        key = layout.request_key(request.restore_id, request.trial_id, request.attempt)
        command = ["run", "--experiment", request.experiment, "--request", key]
        self._runner.tell("run", command, **self._env)
        return HostRun(self._runner)


class HostRun:
    """Stands for `RunnerProcess`."""

    def __init__(self, runner: Host) -> None:
        self._runner = runner
        self._code: int | None = None
        self._reading = self.lines()
        self._read: list[str] = []

    def poll(self) -> RunState:
        line = next(self._reading, None)
        if line is None:
            return RunState.ENDED
        self._read.append(line)
        return RunState.RUNNING

    def output(self) -> Iterator[str]:
        read, self._read = self._read, []
        return iter(read)

    def exit(self) -> RunnerExit:
        return RunnerExit(exit_code=self._code)

    def lines(self) -> Iterator[str]:
        output = []
        for line in self._runner.lines():
            if line.startswith(ENDED):
                self._code = self._runner.answer(line, output)["exit_code"]
                return
            output.append(line)
            yield line

    def stop(self) -> None:
        self._runner.terminate()

    def wait(self) -> int:
        if self._code is None:
            list(self.lines())
        return self._code


class KeptHosts:
    """The hosts of a session: started when they are first asked for, and anew once they are not fit."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._hosts: Hosts | None = None
        self._started = 0

    def get(self) -> Hosts:
        """Return hosts that are fit."""
        if self._hosts is not None and not self._hosts.ray.is_fit:
            self.end()
        if self._hosts is None:
            self._hosts = self._start()
        elif not self._hosts.runner.is_fit:
            self._hosts.runner.end()
            runner = self._start_runner()
            list(runner.lines())
            self._hosts = replace(self._hosts, runner=runner)
        return self._hosts

    def end(self) -> None:
        """End both, and all they started."""
        if self._hosts is not None:
            self._hosts.runner.end()
            self._hosts.ray.end()
            self._hosts = None

    def _start(self) -> Hosts:
        runner = self._start_runner()
        ray = Host(self._log("ray"))
        try:
            address = ray.call("start_ray")["address"]
            list(runner.lines())
        except HostError:
            runner.end()
            ray.end()
            raise
        return Hosts(ray, runner, address)

    def _start_runner(self) -> Host:
        """Start one; it answers when it has imported what it needs."""
        runner = Host(self._log("runner"))
        runner.tell("prepare_runner")
        return runner

    def _log(self, name: str) -> Path:
        self._started += 1
        directory = Path(os.environ.get("KEPT_LOGS", self._directory))
        return directory / f"{self._started:02}-{name}.log"
