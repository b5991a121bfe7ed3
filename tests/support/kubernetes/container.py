"""One container of the emulated node: its command really runs, as a process of this machine."""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_tune_restore.launch.process import (
    _members,
    kill_session,  # a container ends with its first process
)
from tests.support.waiting import PATIENCE_SECONDS, eventually

START_ERROR = 128
_REFERENCE = re.compile(r"\$\$|\$\(([^()]*)\)")


class NotStartable(Exception):  # noqa: N818
    """Why a container cannot be started; Kubernetes tries again for ever."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Container:
    """A container and its state, as Kubernetes' JSON has it."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.said: list[tuple[float, str]] = []
        self.state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self.was_started = False
        self.over = threading.Event()
        self.oom_killed = False
        self._process: subprocess.Popen[str] | None = None

    def status(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": self.spec["image"] if self.was_started else "",
            "ready": "running" in self.state,
            "started": "running" in self.state,
            "restartCount": 0,
            "state": self.state,
            "lastState": {},
        }

    def wait_with(self, error: NotStartable) -> None:
        told = {} if error.reason == "ContainerCreating" else {"message": str(error)}
        self.state = {"waiting": {"reason": error.reason, **told}}

    def start(self, env: Mapping[str, str], cwd: Path) -> None:
        """Start its command; one that is not in the image ends it at once, with a StartError."""
        command = [
            expand(part, env)
            for part in (*self.spec.get("command", ()), *self.spec.get("args", ()))
        ]
        try:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError:
            said = (
                "failed to create containerd task: failed to create shim task: OCI runtime create "
                "failed: runc create failed: unable to start container process: error during "
                f'container init: exec: "{command[0]}": executable file not found in $PATH: unknown'
            )
            self._end(START_ERROR, "StartError", said, started_at="1970-01-01T00:00:00Z")
            return
        self.was_started = True
        self.state = {"running": {"startedAt": timestamp()}}

    def wait(self) -> None:
        """Wait for its end."""
        process = self._process
        if process is None:
            return
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        kill_session(process.pid)
        code = process.wait()
        reader.join(PATIENCE_SECONDS)
        code = 128 - code if code < 0 else code
        said = ""
        if code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            said = "\n".join(line for _, line in self.said[-80:])[-2048:]
        # containerd: once the kernel killed any process of it for its memory, that is the reason,
        # whatever its first process made of that
        reason = "OOMKilled" if self.oom_killed else "Error" if code else "Completed"
        self._end(code, reason, said, started_at=self.state["running"]["startedAt"])

    def terminate(self) -> None:
        if self._process is not None and not self.over.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None and not self.over.is_set():
            kill_session(self._process.pid)

    def oom_kill_worker(self) -> None:
        """Kill the process that trains, as a kernel does that kills one process and not the cgroup."""
        assert self._process is not None
        session = self._process.pid
        victim = eventually(lambda: _training_process(session))
        self.oom_killed = True
        os.kill(victim, signal.SIGKILL)

    def _end(self, code: int, reason: str, said: str, *, started_at: str) -> None:
        ended = {"exitCode": code, "reason": reason, "startedAt": started_at}
        ended |= {"finishedAt": timestamp(), "containerID": "containerd://emulated"}
        self.state = {"terminated": {**ended, **({"message": said} if said else {})}}
        self.over.set()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with contextlib.closing(process.stdout) as output:
            for line in output:
                self.said.append((datetime.now(UTC).timestamp(), line.rstrip("\n")))


def expand(text: str, env: Mapping[str, str]) -> str:
    """Expand `$(NAME)` and `$$`, as a kubelet does; a name that is not known stays as it is."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else env.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _training_process(session: int) -> int | None:
    for pid in _members(session):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            if command.startswith("ray::") and not command.startswith("ray::IDLE"):
                return pid
    return None
