"""A real Airflow whose parts are processes of their own: its scheduler can die alone."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_tune_restore.launch.process import kill_session
from tests.support.airflow.standalone import Airflow, environment
from tests.support.storage.servers import free_port
from tests.support.waiting import PATIENCE_SECONDS


class AirflowInParts(Airflow):
    """A running Airflow of an API server, a DAG processor and a scheduler.

    And an API server for us alone; `standalone` has the reason. A triggerer is started by
    `start_triggerer`.
    """

    parts = ("scheduler", "dag_processor")

    def begin(self) -> None:
        """Start all parts, and wait until they are healthy."""
        api_server = ("api-server", "--apps", "core", "--port", self.url.rpartition(":")[2])
        self.process = self.start("api-server")
        self.start(*api_server)
        self.start("dag-processor")
        self.start_scheduler()
        self.wait_until_up()

    def start_scheduler(self) -> None:
        """Start a scheduler, once the one before it has ended."""
        self.scheduler = self.start("scheduler")

    def kill_scheduler(self) -> None:
        """Kill the scheduler, and with it all that LocalExecutor runs."""
        self._kill(self.scheduler)

    def terminate_scheduler(self) -> None:
        """End the scheduler as a new release does, by SIGTERM, and wait for its end."""
        self.scheduler.send_signal(signal.SIGTERM)
        self.scheduler.wait(PATIENCE_SECONDS)
        self._kill(self.scheduler)

    def end(self) -> None:
        """Kill all parts."""
        while self.started:
            self._kill(self.started[-1])

    def scheduler_with(self, **variables: str) -> "contextlib.AbstractContextManager[None]":
        """Run the scheduler with other variables for a while; an empty one is taken away."""
        return self._changed(variables, self.terminate_scheduler, self.start_scheduler)

    def all_with(self, **variables: str) -> "contextlib.AbstractContextManager[None]":
        """Run all parts with other variables for a while; an empty one is taken away."""
        return self._changed(variables, self.end, self.begin)

    @contextlib.contextmanager
    def _changed(
        self, variables: dict[str, str], end: Callable[[], None], begin: Callable[[], None]
    ) -> Iterator[None]:
        before = self._env
        changed = {name: value for name, value in {**before, **variables}.items() if value}
        for env in (changed, before):
            end()
            self._env = env
            begin()
            if env is changed:
                yield

    def scheduler_of(self, dag_id: str, run_id: str, task_id: str) -> int:
        """Return the id of the scheduler that has queued or adopted a task, which no API shows."""
        query = (
            "SELECT queued_by_job_id FROM task_instance WHERE (dag_id, run_id, task_id) = (?, ?, ?)"
        )
        with contextlib.closing(sqlite3.connect(self.home / "airflow.db", timeout=120)) as database:
            return database.execute(query, (dag_id, run_id, task_id)).fetchone()[0]

    def log(self) -> str:
        """Return all that its processes have printed."""
        return (self.home / "standalone.log").read_text(errors="replace")

    def _kill(self, part: "subprocess.Popen[bytes]") -> None:
        kill_session(part.pid)
        part.wait()
        self.started.remove(part)


@contextlib.contextmanager
def airflow_in_parts(
    home: Path, dags: Path, *, python: str = sys.executable, **extra: str
) -> Iterator[AirflowInParts]:
    """Run Airflow in `home` with the DAGs of a folder, and end it; `extra` goes into the environment.

    What a scheduler that died has left is taken over within half a minute.
    """
    home.mkdir(parents=True, exist_ok=True)
    url = f"http://localhost:{free_port()}"
    settings = {
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "12",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        **extra,
    }
    env = environment(home, dags, url, python, **settings)
    with (home / "standalone.log").open("ab") as log:
        migrate = [python, "-m", "airflow", "db", "migrate"]
        process = subprocess.Popen(migrate, env=env, stdout=log, stderr=log)
        assert process.wait() == 0, (home / "standalone.log").read_text()[-3000:]
    running = AirflowInParts(home, dags, f"http://localhost:{free_port()}", process, env, python)
    try:
        running.begin()
        yield running
    finally:
        running.end()
