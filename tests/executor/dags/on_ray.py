"""Tasks on a Ray cluster. Each adds a line to a file of the test's directory whenever its code runs."""

import os
import time
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, task

ON_RAY = {"executor": "RayExecutor", "retries": 0}
NEEDED = {"num_cpus": 0.25, "memory": 200 * 1024**2, "resources": {"node:__internal_head__": 0.001}}
PARAMS = {"place": ""}


def add_line(params: dict[str, str], name: str, line: str = "ran") -> None:
    """Leave a trace of a run."""
    with Path(params["place"], name).open("a") as file:
        file.write(f"{line}\n")


def wait_for_test(params: dict[str, str]) -> None:
    """Print a line a second until the test goes on."""
    for second in count():
        if Path(params["place"], "go").exists():
            return
        print("tick", second, flush=True)
        time.sleep(1)


class Deferring(BaseOperator):
    """Leaves its process for a second."""

    def execute(self, context: Any) -> None:
        add_line(context["params"], "deferring")
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="resume")

    def resume(self, context: Any, event: Any) -> None:
        add_line(context["params"], "resumed", str(event))


with DAG("beside", schedule=None, params=PARAMS):

    @task(**ON_RAY, executor_config={**NEEDED, "runtime_env": {"env_vars": {"GREETING": "Hello"}}})
    def on_ray(params: dict[str, str] | None = None) -> str:
        add_line(params, "on_ray")
        return os.environ["GREETING"]

    @task
    def local(greeting: str, params: dict[str, str] | None = None) -> str:
        add_line(params, "local")
        return greeting

    @task(**ON_RAY)
    def fails(params: dict[str, str] | None = None) -> None:
        add_line(params, "fails")
        raise ValueError("as the test wants it")

    local(on_ray())
    fails()

with DAG("waits", schedule=None, params=PARAMS):

    @task(**ON_RAY)
    def waiting(params: dict[str, str] | None = None) -> None:
        add_line(params, "waiting")
        wait_for_test(params)

    waiting()

with DAG("needs_a_node", schedule=None, params=PARAMS):

    @task(**ON_RAY, executor_config={"resources": {"late": 1}})
    def placed(params: dict[str, str] | None = None) -> None:
        add_line(params, "placed")

    placed()

with DAG("wrong_key", schedule=None, params=PARAMS):

    @task(**ON_RAY, executor_config={"cpus": 1})
    def wrong(params: dict[str, str] | None = None) -> None:
        add_line(params, "wrong")

    wrong()

with DAG("mapped", schedule=None, params=PARAMS):

    @task(**ON_RAY, executor_config={"num_cpus": 0.25})
    def square(number: int, params: dict[str, str] | None = None) -> int:
        begun = time.monotonic()
        time.sleep(1)
        add_line(params, "square", f"{begun} {time.monotonic()}")
        return number**2

    square.expand(number=list(range(6)))

with DAG("defers", schedule=None, params=PARAMS):
    Deferring(task_id="deferring", **ON_RAY)

with DAG("only_local", schedule=None, params=PARAMS):

    @task
    def beside_the_cluster(params: dict[str, str] | None = None) -> None:
        add_line(params, "beside_the_cluster")

    beside_the_cluster()
