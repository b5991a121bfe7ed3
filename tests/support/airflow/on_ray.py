"""An Airflow in parts whose tasks run on a Ray cluster, which has neither its database nor its logs."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from airflow_tune_restore.launch.process import kill_session
from tests.support import ROOT
from tests.support.airflow.parts import AirflowInParts, airflow_in_parts
from tests.support.ray.cluster import RayCluster, ray_cluster

DAGS = ROOT / "tests" / "executor" / "dags"
CLASS = "airflow_tune_restore.executors.ray_executor.RayExecutor"
ALIAS = "RayExecutor"
CPUS = 4


@dataclass(frozen=True)
class Run:
    """A run of a DAG of `tests/executor/dags`.

    Args:
        place: The directory in which its tasks leave lines, and wait for files.
        earlier: The ids of jobs that are older.
    """

    site: "OnRay"
    dag_id: str
    id: str
    place: Path
    earlier: frozenset[str]

    def task(self, task_id: str) -> dict[str, Any]:
        """Return one of its task instances."""
        found = self.site.airflow.tasks(self.dag_id, self.id)
        return next(each for each in found if each["task_id"] == task_id)

    def wait_for_line(self, name: str) -> None:
        """Wait until the code of a task runs."""
        self.site.airflow.eventually(lambda: self.lines(name), every=0.2)

    def wait_for_job(self, status: str) -> str:
        """Wait until a job since it began has a status, and return its id."""
        return self.site.airflow.eventually(
            lambda: next((id_ for id_, each in self.jobs().items() if each == status), None)
        )

    def lines(self, name: str) -> list[str]:
        """Return a line for each time that the code of a task has run."""
        file = self.place / name
        return file.read_text().splitlines() if file.exists() else []

    def go_on(self) -> None:
        """Let a task that waits for the test go on."""
        (self.place / "go").touch()

    def finish(self) -> dict[str, list[str]]:
        """Wait for its end, and return the states of its tasks."""
        self.site.airflow.finish(self.dag_id, self.id)
        return self.site.airflow.states(self.dag_id, self.id)

    def jobs(self) -> dict[str, str]:
        """Return the status of each job since it began."""
        found = self.site.jobs()
        return {id_: found[id_] for id_ in found if id_ not in self.earlier}

    def log(self, task_id: str) -> str:
        """Return the log of a task's first try, as the UI gets it."""
        return self.site.airflow.shown_log(self.dag_id, self.id, task_id)

    def scheduler(self, task_id: str) -> int:
        """Return the id of the scheduler that has queued or adopted a task."""
        return self.site.airflow.scheduler_of(self.dag_id, self.id, task_id)


@dataclass(frozen=True)
class OnRay:
    """A running Airflow, and its cluster."""

    airflow: AirflowInParts
    cluster: RayCluster

    def begin(self, dag_id: str, place: Path, earlier: Collection[str] | None = None) -> Run:
        """Start a run of a DAG whose tasks leave lines in a directory.

        `earlier` has the jobs that are older, where the cluster cannot be asked.
        """
        place.mkdir()
        older = frozenset(self.jobs() if earlier is None else earlier)
        return Run(self, dag_id, self.airflow.trigger(dag_id, {"place": str(place)}), place, older)

    def jobs(self) -> dict[str, str]:
        """Return the status of each job of an Airflow task."""
        found = {job["submission_id"]: job for job in self.cluster.call("/api/jobs/")}
        return {id_: job["status"] for id_, job in found.items() if str(id_).startswith("airflow-")}

    def restart_head(self) -> None:
        """Start the head that was ended anew."""
        self.cluster.start_head(num_cpus=CPUS)

    def wait_for_ends(self, jobs: Collection[str]) -> None:
        """Wait until no job of these waits or runs."""
        self.airflow.eventually(
            lambda: not {"PENDING", "RUNNING"} & {self.jobs().get(id_) for id_ in jobs}
        )

    @contextlib.contextmanager
    def late_node(self) -> Iterator[None]:
        """Add the node that `needs_a_node` needs, for a while."""
        nodes: list[subprocess.Popen[bytes]] = []

        def is_there() -> bool:
            if not nodes or nodes[-1].poll() is not None:  # a raylet on a busy machine may give up
                resources = json.dumps({"late": CPUS})
                nodes.append(self.cluster.add_node(num_cpus=CPUS, resources=resources))
            return self._alive() > 1

        try:
            self.airflow.eventually(is_there)
            yield
        finally:
            for node in nodes:
                kill_session(node.pid)
                node.wait()
                self.cluster.nodes.remove(node)
        # Ray starts jobs on a node that has died until it has missed it
        self.airflow.eventually(lambda: self._alive() == 1)

    def _alive(self) -> int:
        found = self.cluster.call("/api/v0/nodes")["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in found)

    @contextlib.contextmanager
    def adoption(self, *tasks: tuple[Run, str]) -> Iterator[None]:
        """Take a scheduler away, start another one, and wait until it has adopted running tasks."""
        before = [run.scheduler(task_id) for run, task_id in tasks]
        yield
        self.airflow.start_scheduler()
        for (run, task_id), scheduler in zip(tasks, before, strict=True):
            adopted = partial(run.scheduler, task_id)
            self.airflow.eventually(lambda of=adopted, old=scheduler: of() not in (None, old))


@contextlib.contextmanager
def airflow_on_ray(home: Path, *, python: str = sys.executable, **extra: str) -> Iterator[OnRay]:
    """Run both; the nodes have the same Airflow, and an AIRFLOW_HOME of their own."""
    image = {
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_HOME": str(home / "on_ray"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nonexistent/none.db",
    }
    with ray_cluster(image, CPUS, python) as cluster:
        settings = {
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__CORE__EXECUTOR": f"LocalExecutor,{ALIAS}:{CLASS}",
            "AIRFLOW__RAY_EXECUTOR__ADDRESS": cluster.address,
            "AIRFLOW__RAY_EXECUTOR__TOKEN": cluster.token,
            "AIRFLOW__RAY_EXECUTOR__NUM_CPUS": "0.5",
            "AIRFLOW__RAY_EXECUTOR__POLL_INTERVAL": "1",
            **extra,
        }
        with airflow_in_parts(home, DAGS, python=python, **settings) as running:
            yield OnRay(running, cluster)
