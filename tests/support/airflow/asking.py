"""A DAG that asks a person before it restores, its runs under a real Airflow, and what they leave."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.airflow.canary import files, objects
from tests.support.airflow.standalone import Airflow
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state
from tests.support.storage.servers import Server

CODE = '''
"""Asks a person before it restores experiments."""

from airflow.sdk import DAG

from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from tests.support.airflow import recorded

recorded.install()

WAYS = {
    "asks": {},
    "asks_briefly": {"approval_timeout": 1, "approval_default": "Reject"},
    "asks_in_vain": {"approval_timeout": 1},
}
for dag_id, approval in WAYS.items():
    with DAG(dag_id, schedule=None) as dag:
        TuneRestoreTaskGroup(
            "restore",
            prefix="{{ dag_run.conf['prefix'] }}",
            wait=False,
            stale_after=0,
            trainable="m:train",
            resume_errored=True,
            repeat=True,
            require_approval=True,
            **approval,
        )
    globals()[dag_id] = dag
'''
APPROVE = "restore.approve"
_INDEX = re.compile(r"^(object |)[^.]*/\.tune_restore/index")


def make_sweep(directory: Path) -> Path:
    """Make a sweep with a trial that failed, after two of eight iterations of an hour each."""
    last = {"training_iteration": 2, "time_total_s": 7200.0}
    stop = {"training_iteration": 8}
    rows = [
        make_row("failed", status="ERROR", last_result=last, stopping_criterion=stop),
        make_row("done", last_result={"training_iteration": 8, "done": True}),
    ]
    return make_experiment(directory, rows)


@dataclass
class Night:
    """One DAG run that asks.

    Args:
        running: The Airflow that it runs in.
        dag_id: Its DAG.
        prefix: Where it looks for sweeps.
        look: Returns all that lies below the prefix.
        run: Its id.
        shown: What Airflow showed to the person.
        before: All that lay below the prefix when the DAG run began.
        asked: The same, when the person was asked.
    """

    running: Airflow
    dag_id: str
    prefix: str
    look: Callable[[], dict[str, bytes]]
    run: str = ""
    shown: dict[str, Any] = field(default_factory=dict)
    before: dict[str, bytes] = field(default_factory=dict)
    asked: dict[str, bytes] = field(default_factory=dict)

    def begin(self) -> None:
        self.before = self.look()
        self.run = self.running.trigger(self.dag_id, {"prefix": self.prefix})

    def wait(self) -> None:
        self.shown = self.running.request(self.dag_id, self.run, APPROVE)
        self.asked = self.look()

    def answer(self, choice: str) -> None:
        self.running.answer(self.dag_id, self.run, APPROVE, choice)

    def finish(self) -> str:
        return self.running.finish(self.dag_id, self.run)

    @property
    def states(self) -> dict[str, list[str]]:
        found = self.running.states(self.dag_id, self.run)
        return {name.removeprefix("restore."): states for name, states in found.items()}

    def log(self, task: str) -> str:
        return self.running.whole_log(self.dag_id, self.run, f"restore.{task}")

    def table(self) -> dict[str, str]:
        lines = self.running.xcom(self.dag_id, self.run, "restore.commit", "experiments")
        return {line["experiment"].rpartition("/")[2]: line["outcome"] for line in lines}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """Return what differs, but for the index that the search of `find` keeps below the prefix."""
    differing = {key for key, _ in before.items() ^ after.items()}
    return {key for key in differing if not _INDEX.search(key)}


def night_on_disk(running: Airflow, directory: Path) -> Night:
    """Return a night over one sweep on this disk."""
    make_sweep(directory / "one")
    return Night(running, "asks", str(directory), lambda: files(directory))


def night_on_s3(running: Airflow, server: Server, made: Path, dag_id: str = "asks") -> Night:
    """Return a night over two sweeps in a bucket."""
    name = made.name
    for sweep in ("one", "two"):
        server.upload(make_sweep(made / sweep), f"{name}/{sweep}")
    prefix = f"s3://seaweed@{server.bucket}/{name}"
    return Night(running, dag_id, prefix, lambda: objects(server, f"{server.bucket}/{name}"))


def write_state(server: Server, night: Night, sweep: str) -> None:
    """Let a driver write another state of a sweep, under the same name, as Ray does."""
    place = f"{server.bucket}/{night.prefix.rpartition('/')[2]}/{sweep}/{STATE_NAME}"
    server.filesystem().pipe_file(place, make_state([make_row("failed", status="RUNNING")]))
    night.asked = night.look()
