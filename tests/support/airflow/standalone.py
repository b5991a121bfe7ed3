"""A real Airflow (`airflow standalone`) of our own: scheduler, triggerer, API server, DAG processor.

And an API server that we alone speak to. One that gets requests from tasks, too, can hang on SQLite
(Airflow 3.3.2): its event loop waits for the database, to write the audit log of a request of ours, while
a task's request that has the database's lock waits for the event loop.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support import ROOT, rest
from tests.support.storage.servers import free_port
from tests.support.waiting import PATIENCE_SECONDS


class Airflow:
    """A running Airflow, spoken to through its REST API.

    Args:
        home: Its AIRFLOW_HOME.
        dags: The folder of its DAGs.
        url: Where the API server for us listens.
        process: The `airflow standalone` process.
        env: What all its processes have in their environment.
        python: The interpreter that has Airflow.
        admin: Name and password of an admin; None where everybody is one.
    """

    parts: tuple[str, ...] = ("scheduler", "triggerer", "dag_processor")
    """What must be healthy before it is up, beside its database."""

    def __init__(
        self,
        home: Path,
        dags: Path,
        url: str,
        process: "subprocess.Popen[bytes]",
        env: dict[str, str],
        python: str = sys.executable,
        admin: tuple[str, str] | None = None,
    ) -> None:
        self.home = home
        self.dags = dags
        self.url = url
        self.process = process
        self._env = env
        self._python = python
        self._admin = admin
        self.started: list[subprocess.Popen[bytes]] = []
        self._token = ""

    @property
    def base(self) -> str:
        """Its base URL, of the server that its tasks use, too: the UI's links lead there."""
        return self._env["AIRFLOW__API__BASE_URL"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the REST API (v2) and return the decoded answer."""
        return rest.call(f"{self.url}{path}", self._token, method=method, body=body)

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start another part of it, as the leader of a session."""
        with (self.home / "standalone.log").open("ab") as log:  # all its parts append to it
            part = subprocess.Popen(
                [self._python, "-m", "airflow", *command],
                env=self._env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(part)
        return part

    def wait_for_database(self) -> None:
        """Block until `standalone` has made its tables."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "Database ready" not in (self.home / "standalone.log").read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Airflow did not come up:\n{self.log_tail()}")
            time.sleep(0.5)

    def wait_until_up(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Block until all components are healthy and a token was given out."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, KeyError, ValueError):
                for server in (self.base, self.url):
                    rest.call(f"{server}/api/v2/version", patience=0)
                if all(self.is_healthy(part) for part in ("metadatabase", *self.parts)):
                    self._token = self._log_in()
                    return
            time.sleep(0.5)
        raise RuntimeError(f"Airflow did not come up:\n{self.log_tail()}")

    def is_healthy(self, part: str) -> bool:
        """Return whether a part's last heartbeat is recent."""
        return self.call("GET", "/api/v2/monitor/health")[part]["status"] == "healthy"

    def token_of(self, name: str, password: str) -> str:
        """Return the token of a user."""
        return self.call("POST", "/auth/token", {"username": name, "password": password})[
            "access_token"
        ]

    def _log_in(self) -> str:
        if self._admin is not None:
            return self.token_of(*self._admin)
        return self.call("GET", "/auth/token")["access_token"]

    def connect(self, conn_id: str, connection: Mapping[str, Any]) -> None:
        """Add a connection, or change it, as a user would: its secrets lie encrypted in the database."""
        body = {"connection_id": conn_id, **connection}
        if "extra" in body:
            body["extra"] = json.dumps(body["extra"])
        try:
            self.call("POST", "/api/v2/connections", body)
        except urllib.error.HTTPError as error:
            if error.code != 409:  # noqa: PLR2004
                raise
            self.call("PATCH", f"/api/v2/connections/{conn_id}", body)

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Unpause a DAG, start a run, and return its id."""
        self.unpause(dag_id)
        run = self.call(
            "POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf or {}}
        )
        return run["dag_run_id"]

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run, mapped ones one by one."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?order_by=id&offset="
        found: list[dict[str, Any]] = []
        while page := self.call("GET", f"{path}{len(found)}")["task_instances"]:
            found += page
        return found

    def states(self, dag_id: str, run_id: str) -> dict[str, list[str]]:
        """Return the states of a run's tasks, one for each task that was mapped."""
        found: dict[str, list[str]] = {}
        for task in self.tasks(dag_id, run_id):
            found.setdefault(task["task_id"], []).append(task["state"])
        return found

    def finish(self, dag_id: str, run_id: str) -> str:
        """Wait for a run's end and return its state."""

        def end() -> str | None:
            state = self.state(dag_id, run_id)
            return state if state in ("success", "failed") else None

        return self.eventually(end)

    def request(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Wait until a task asks a person, and return what Airflow's UI gets to show."""

        def asked() -> dict[str, Any] | None:
            state = self.states(dag_id, run_id).get(task_id)
            path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/hitlDetails?response_received=false"
            if state not in (["awaiting_input"], ["deferred"]):  # the latter before 3.3
                assert state not in (["failed"], ["skipped"], ["upstream_failed"]), state
                return None
            found = self.call("GET", path)["hitl_details"]
            return next(
                (each for each in found if each["task_instance"]["task_id"] == task_id), None
            )

        return self.eventually(asked)

    def answer(self, dag_id: str, run_id: str, task_id: str, choice: str) -> None:
        """Answer as the UI does, and again if Airflow lost the answer and tries the task again.

        Airflow 3.3.2 fails a task that is answered before its scheduler knows that the worker is done.
        """
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"

        def answered() -> bool:
            if self.states(dag_id, run_id)[task_id] in (["awaiting_input"], ["deferred"]):
                with contextlib.suppress(urllib.error.HTTPError):  # it has the answer
                    self.call("PATCH", path, {"chosen_options": [choice], "params_input": {}})
            return self.states(dag_id, run_id)[task_id] in (["success"], ["failed"])

        self.request(dag_id, run_id, task_id)
        self.eventually(answered)

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear a task with its downstream tasks."""
        body = {
            "dry_run": False, "only_failed": False, "reset_dag_runs": True, "dag_run_id": run_id,
            "task_ids": [task_id], "include_downstream": True,
        }  # fmt: skip
        self.call("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)

    def mark_failed(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark a task failed, as a user does in the UI."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.call("PATCH", path, {"new_state": "failed"})

    def shown_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """Return the log of a try as the UI gets it, one event a line."""
        task = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        events = self.call("GET", f"{task}/logs/{try_number}?full_content=true")["content"]
        return "\n".join(str(event.get("event", "")) for event in events)

    def state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run."""
        return self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str) -> Any:
        """Return what a task has pushed under a key."""
        task = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        return self.call("GET", f"{task}/xcomEntries/{key}?stringify=false")["value"]

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Return the log of a task's last try, one event a line."""
        newest = max(self._logs(dag_id, run_id, task_id, map_index).glob("attempt=*.log"))
        events = (json.loads(line) for line in newest.read_text().splitlines() if line)
        return "\n".join(str(event.get("event", "")) for event in events)

    def whole_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Return what all tries of a task have logged, in workers and in triggerers."""
        files = sorted(self._logs(dag_id, run_id, task_id, map_index).glob("attempt=*"))
        return "\n".join(path.read_text() for path in files)

    def _logs(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> Path:
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return folder / f"map_index={map_index}" if map_index >= 0 else folder

    def kill_triggerer(self) -> None:
        """Kill the triggerer, whoever started it, and the process that runs its triggers."""
        for pid in self._triggerers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _triggerers(self) -> list[int]:
        """Return its processes, the oldest first: the one that is started, then what it forks."""
        groups = {process.pid for process in (self.process, *self.started)}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if "triggerer" in command and os.getpgid(int(entry.name)) in groups:
                    found.append(int(entry.name))
        return sorted(found)

    def restart_triggerer(self, number: int = signal.SIGKILL) -> None:
        """End the triggerer, and start another one, as its supervisor would.

        SIGKILL ends all its processes at once; another signal is sent to the first one, which ends the
        others in good order.
        """
        if number == signal.SIGKILL:
            self.kill_triggerer()
        else:
            os.kill(self._triggerers()[0], number)
            self.eventually(lambda: not self._triggerers())
        self.start_triggerer()

    def start_triggerer(self) -> None:
        """Start a triggerer beside `standalone`, which restarts none of its parts."""
        self.start("triggerer")

    def pause(self, dag_id: str) -> None:
        """Pause a DAG: its assets are no longer watched."""
        self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": True})

    def unpause(self, dag_id: str) -> None:
        """Unpause a DAG, as soon as the DAG processor has got to it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
            except urllib.error.HTTPError as error:
                if error.code != 404 or time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def parse(self, dag_id: str) -> None:
        """Have a DAG's file parsed now: only then are assets of one that was unpaused watched."""
        token = self.call("GET", f"/api/v2/dags/{dag_id}")["file_token"]
        self.call("PUT", f"/api/v2/parseDagFile/{token}")

    def asset_events(self, asset: str) -> list[dict[str, Any]]:
        """Return all events of an asset."""
        found = self.call("GET", "/api/v2/assets/events?limit=100")["asset_events"]
        return [event for event in found if event["name"] == asset]

    def remembered(self, asset: str) -> list[dict[str, Any]]:
        """Return what a watcher remembers with its asset."""
        found = self.call("GET", "/api/v2/assets?limit=100")["assets"]
        ids = [each["id"] for each in found if each["name"] == asset]
        return self.call("GET", f"/api/v2/assets/{ids[0]}/state-store")["asset_state_store"]

    def polls(self, place: str) -> int:
        """Return how often its triggerers have looked at a place, as they say."""
        return (self.home / "standalone.log").read_text(errors="replace").count(f"@{place}: ")

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return all runs of a DAG."""
        return self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=1000")["dag_runs"]

    def eventually(self, condition: Callable[[], Any], *, every: float = 1.0) -> Any:
        """Wait until a condition is true, and return what it returned; else show what was printed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            assert time.monotonic() < deadline, self.log_tail()
            time.sleep(every)
        return found

    def log_tail(self) -> str:
        """Return the end of what its processes printed."""
        return (self.home / "standalone.log").read_text(errors="replace")[-6000:]


def environment(
    home: Path, dags: Path, url: str, python: str, *, is_open: bool = True, **extra: str
) -> dict[str, str]:
    """Return the variables of all processes of an Airflow whose API server listens at a base URL.

    Where it is open, everybody is an admin.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return env | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": str(is_open),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # SQLite gives up a lock after 5 s, and none of the processes would ask again
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db?timeout=120",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "2",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(urlsplit(url).port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        # the folder is listed often, but a file that has not changed is parsed once
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        # a dead triggerer's triggers are given to another one sooner than after 30 s
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
        "AIRFLOW__TRIGGERER__RUNNER_HEALTH_CHECK_THRESHOLD": "300",
        # a busy machine takes longer to answer than 5 s, and to import a DAG than 30 s
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "360",
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
        **extra,
    }


@contextlib.contextmanager
def airflow(
    home: Path,
    dags: Path = ROOT / "dags",
    *,
    python: str = sys.executable,
    path: str = "",
    admin: tuple[str, str] | None = None,
    **extra: str,
) -> Iterator[Airflow]:
    """Run Airflow in `home` with the DAGs of a folder, and end it.

    `path` is that of its base URL. The rest is as in `Airflow`; `extra` goes into the environment.
    """
    home.mkdir(parents=True, exist_ok=True)
    url = f"http://localhost:{free_port()}{path}"
    for_us = free_port()
    env = environment(home, dags, url, python, is_open=admin is None, **extra)
    with (home / "standalone.log").open("ab") as log:
        process = subprocess.Popen(
            [python, "-m", "airflow", "standalone"],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # a background job of a shell ignores SIGINT, and so would its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        ours = f"http://localhost:{for_us}{path}"
        running = Airflow(home, dags, ours, process, env, python, admin)
        try:
            running.wait_for_database()
            running.start("api-server", "--apps", "core", "--port", str(for_us))
            running.wait_until_up()
            yield running
        finally:
            for part in running.started:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(part.pid, signal.SIGKILL)
                part.wait()
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """SIGINT ends standalone cleanly; SIGTERM would leave its API server and triggerer behind."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
