"""A real Ray cluster on this machine: a head with token authentication, and more nodes at will."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_tune_restore.launch.process import _members, kill_session
from airflow_tune_restore.runner.ray_session import STARTS
from tests.support import NO_SPARE_WORKERS, rest
from tests.support.storage.servers import free_port
from tests.support.waiting import PATIENCE_SECONDS


@dataclass
class RayCluster:
    """A running cluster.

    Args:
        address: Of its dashboard.
        gcs: Of its GCS, for more nodes.
        token: Its authentication token.
        env: What its processes were started with.
        ports: Of the head.
        scratch: Where everything of it lies.
        python: The interpreter of its nodes, and of jobs.
    """

    address: str
    gcs: str
    token: str
    env: dict[str, str] = field(repr=False)
    ports: dict[str, int]
    scratch: Path
    python: str = sys.executable
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def connection(self) -> dict[str, object]:
        """Return what AIRFLOW_CONN_… holds."""
        return {"conn_type": "ray_jobs", "host": self.address, "password": self.token}

    def call(self, path: str, method: str = "GET") -> Any:
        """Call the API of the head, and return the decoded answer."""
        return rest.call(self.address + path, self.token, method=method)

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Let the head answer nothing for a while: whoever asks it waits."""
        pids = [pid for pid in _members(self.nodes[0].pid) if b"/dashboard.py" in _command(pid)]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def start_head(self, **options: object) -> None:
        """Start the head node, or start it anew: it then knows of no job."""
        for _ in range(STARTS):
            if self._try_head(**options):
                return
            self.end()
        raise RuntimeError((self.scratch / "nodes.log").read_text(errors="replace")[-3000:])

    def _try_head(self, **options: object) -> bool:
        temp = tempfile.mkdtemp(prefix="h", dir=self.scratch)
        head = self._start(
            "--head",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            "--node-ip-address=127.0.0.1",
            f"--temp-dir={temp}",
            *(f"--{name}={port}" for name, port in self.ports.items()),
            **options,
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        headers = {"Authorization": f"Bearer {self.token}"}
        while time.monotonic() < deadline and head.poll() is None:
            request = urllib.request.Request(f"{self.address}/api/jobs/", headers=headers)
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
                return True
            time.sleep(0.3)
        return False

    def add_node(self, **options: object) -> "subprocess.Popen[bytes]":
        """Start another node: its own raylet, object store and agent."""
        port = f"--dashboard-agent-listen-port={free_port()}"
        address = "127.0.0.1"  # all nodes of this machine
        return self._start(f"--address={self.gcs}", f"--node-ip-address={address}", port, **options)

    def end(self) -> None:
        """End all nodes, by their sessions."""
        while self.nodes:
            node = self.nodes.pop()
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGKILL)
            kill_session(node.pid)
            node.wait()

    def _start(self, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        with (self.scratch / "nodes.log").open("ab") as log:
            node = subprocess.Popen(
                [Path(self.python).with_name("ray").as_posix(), "start", "--block",
                 "--disable-usage-stats", f"--object-store-memory={100 * 1024**2}",
                 *arguments, *flags],
                env=self.env, cwd=self.scratch, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.nodes.append(node)
        return node


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


@contextlib.contextmanager
def ray_cluster(
    env: Mapping[str, str], num_cpus: int = 2, python: str = sys.executable
) -> Iterator[RayCluster]:
    """Start a head with authentication on; `env` is what its processes, and so jobs, find."""
    scratch = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # short: sockets lie below it
    token = secrets.token_hex(32)
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = {name: free_port() for name in names}
    own = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "AWS", "RAY_"))}
    own.pop("PYTHONPATH", None)
    own |= {
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        **NO_SPARE_WORKERS,
        **env,
    }
    cluster = RayCluster(
        address=f"http://127.0.0.1:{ports['dashboard-port']}",
        gcs=f"127.0.0.1:{ports['port']}",
        token=token,
        env=own,
        ports=ports,
        scratch=scratch,
        python=python,
    )
    try:
        cluster.start_head(num_cpus=num_cpus)
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(scratch, ignore_errors=True)
