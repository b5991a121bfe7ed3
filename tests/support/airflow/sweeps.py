"""Sweeps of `tests/airflow/dags/sweeps_that_die.py`: killed where they stand still, and compared."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.airflow.standalone import Airflow
from tests.support.experiments.sweeps import Gates
from tests.support.ray.tuner_restore import ask_ray
from tests.support.storage.servers import Server

TASK = "sweep"
FIRST, SECOND = 3, 5
"""The trials stand still before these iterations."""

SCRIPT, RUNNER = "dying_sweep.py", "airflow_tune_restore.runner"


@dataclass
class DyingSweep:
    """A DAG run of a sweep.

    Args:
        launcher: Where it runs.
        name: Of its experiment.
    """

    running: Airflow
    s3: Server
    gates: Gates
    launcher: str
    name: str
    run_id: str = ""

    @property
    def dag_id(self) -> str:
        """Its DAG."""
        return f"sweep_that_dies_{self.launcher}"

    @property
    def url(self) -> str:
        """Its experiment, for Ray."""
        return f"{self.s3.url}/sweeps/{self.name}"

    def begin(self) -> None:
        """Start the DAG run."""
        address = f"s3://seaweed@{self.s3.bucket}/sweeps/{self.name}"
        self.run_id = self.running.trigger(self.dag_id, {"experiment": address})

    def close(self, *iterations: int) -> None:
        """Let no trial begin these iterations."""
        for iteration in iterations:
            self.gates.close(f"{self.name}.{iteration}")

    def open(self, iteration: int) -> None:
        """Let trials begin it."""
        self.gates.open(f"{self.name}.{iteration}")

    def stands_before(self, iteration: int) -> bool:
        """Whether both trials have saved all before it, so that their rows are in the storage, too."""
        store, place = self.s3.filesystem(), f"{self.s3.bucket}/sweeps/{self.name}"
        done = f"checkpoint_{iteration - 2:06d}/state.json"
        if len(store.glob(f"{place}/train_*/{done}")) < 2:  # noqa: PLR2004
            return False
        rows = [store.cat(path).splitlines() for path in store.glob(f"{place}/train_*/result.json")]
        return [len(lines) for lines in rows] == [iteration - 1] * 2

    def wait_before(self, iteration: int) -> None:
        """Wait until both trials stand still."""
        self.running.eventually(lambda: self.stands_before(iteration), every=0.3)

    def kill(self, program: str) -> int:
        """Kill the script or the runner of this sweep with `kill -9`, and return its process id."""
        (pid,) = self.running.eventually(lambda: list(self._find(program)), every=0.2)
        os.kill(pid, signal.SIGKILL)
        return pid

    def tries(self) -> int:
        """Return the number of tries of its task."""
        (task,) = self.running.tasks(self.dag_id, self.run_id)
        return task["try_number"]

    def finish(self) -> None:
        """Wait for the end of the DAG run, which succeeds."""
        state = self.running.finish(self.dag_id, self.run_id)
        assert state == "success", self.log()[-6000:] + self.running.log_tail()

    def log(self) -> str:
        """Return what all its tries have logged."""
        return self.running.whole_log(self.dag_id, self.run_id, TASK)

    def _find(self, program: str) -> Iterator[int]:
        """Yield the processes that run a Python program for this experiment."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if not any("python" in Path(word).name for word in command[:1]):
                    continue
                if program == RUNNER:
                    is_it = RUNNER in command and any(w.endswith(f"/{self.name}") for w in command)
                else:
                    variables = (
                        (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                    )
                    is_script = len(command) > 1 and command[1].endswith(SCRIPT)
                    is_it = is_script and f"TUNE_RESTORE_NAME={self.name}" in variables
                if is_it:
                    yield int(entry.name)


def result_tables(*sweeps: DyingSweep) -> list[list[dict[str, Any]]]:
    """Return what Ray reads of each sweep, one row a trial, without what differs between two runs."""
    described = ask_ray("describe", *(sweep.url for sweep in sweeps), **sweeps[0].s3.env)
    return [[_row(trial) for trial in each["trials"]] for each in described]


def _row(trial: dict[str, Any]) -> dict[str, Any]:
    for result in (trial["last_result"], *trial["rows"]):
        del result["checkpoint_dir_name"]  # a trial that was stopped numbers its checkpoints on
    return {name: trial[name] for name in ("config", "status", "last_result", "rows")}
