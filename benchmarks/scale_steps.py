"""One step of benchmarks/scale.py, in a process of its own; it leaves figures and XComs in a directory.

    SCALE_PACKAGE=CHECKOUT python benchmarks/scale_steps.py STEP DIRECTORY ADDRESS…

The package is that of CHECKOUT. Experiments and what stands in for runners are those of this checkout, so
that two versions of the package get the same to do.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, os.environ["SCALE_PACKAGE"])
import airflow_tune_restore  # noqa: E402, F401  all its rooms come from there, whatever is found first later

sys.path.insert(0, str(ROOT))

from tests.support.airflow import home as airflow_home  # noqa: E402, F401  imported before any of Airflow

# isort: split
from benchmarks.plan_10000 import GOLDEN, make_experiment  # noqa: E402
from tests.support.finished_runs import finished_runs  # noqa: E402

STATE = next(GOLDEN.glob("experiment_state-*.json")).name
_UPLOADS = 32


def make(addresses: list[str], trials: int, every: int) -> None:
    """Upload the same experiment to each address; every n-th of its trials ended with ERROR.

    The states go last and later, as a driver writes them: a tuner.pkl that is older is not read so often.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "experiment")
        make_experiment(directory, trials, every)
        paths = {path for path in directory.rglob("*") if path.is_file()}
        for files in (paths - {directory / STATE}, {directory / STATE}):
            _upload(
                (f"{address}/{path.relative_to(directory).as_posix()}", path.read_bytes())
                for address in addresses
                for path in files
            )
            time.sleep(2.0)  # times of a store are whole seconds


def leave_runs(directory: Path) -> None:
    """Write what the runners of all resumed trials leave when their trials finish."""
    items = trials_of(json.loads((directory / "plan.json").read_text()))
    client = open_bucket()
    for address, of_one in groupby(items, lambda item: item["experiment"]):
        state = bytes(client.get(key_of(f"{address}/{STATE}")).bytes())
        _upload(
            (f"{address}/{key}", body)
            for run in finished_runs(state, list(of_one))
            for key, body in run.items()
        )


def measure(directory: Path, step: str, addresses: list[str]) -> None:
    """Take a step of a restore, as its Airflow task does; write its seconds and its XComs."""
    from tests.support.airflow import steps

    plan = {} if step == "plan" else json.loads((directory / "plan.json").read_text())
    take: Callable[[], Any] = {
        "plan": lambda: steps.run_plan(addresses),
        "task": lambda: steps.begin_trial(trials_of(plan)[0]),
        "commit": lambda: steps.run_commit(plan["outcomes"]),
        "undo": lambda: steps.run_undo(addresses[0]),
    }[step]
    pushed = write_figures(directory, step, take)
    check(step, pushed, len(addresses))


def write_figures(directory: Path, step: str, take: Callable[[], Any]) -> Any:
    """Take a step; write its seconds, and what it pushed. Return the latter."""
    wall, cpu = time.perf_counter(), time.process_time()
    pushed = take()
    figures = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    (directory / f"{step}.json").write_text(json.dumps(pushed))
    (directory / "figures.json").write_text(json.dumps(figures))
    return pushed


def trials_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the trials that a plan task returned; a long list of it holds references (docs/dag.md)."""
    items = plan["return_value"]
    if isinstance(items[0], dict):
        return items
    from airflow_tune_restore.operators.outcome_list import OutcomeList
    from airflow_tune_restore.operators.trial_items import find_trial

    outcomes = OutcomeList.resolve(plan["outcomes"], {})
    return [find_trial(item, outcomes).to_xcom() for item in items]


def check(step: str, pushed: dict[str, Any], experiments: int) -> None:
    """Stop if the step did something else than what it is measured for."""
    if step == "plan":
        assert len({trial["experiment"] for trial in trials_of(pushed)}) == experiments
    if step == "commit":  # with very many experiments, the last ones are not listed
        assert {line["outcome"] for line in pushed["experiments"]} == {"restored"}


def open_bucket() -> Any:
    """Return a client of the bucket, as its maker has it: none of the package's."""
    from obstore.store import S3Store

    return S3Store(
        "experiments",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )


def _upload(files: Iterable[tuple[str, bytes]]) -> None:
    client = open_bucket()
    with ThreadPoolExecutor(_UPLOADS) as threads:
        list(threads.map(lambda file: client.put(key_of(file[0]), file[1]), files))


def key_of(address: str) -> str:
    """Return the key of an address in the bucket."""
    return address.removeprefix("s3://experiments/")


def main() -> None:
    """Take the step that the arguments name."""
    os.environ["AIRFLOW__CORE__MAX_MAP_LENGTH"] = "1000000"
    step, directory, *addresses = sys.argv[1:]
    match step.split(":"):
        case ["make", trials, every]:
            make(addresses, int(trials), int(every))
        case ["runs"]:
            leave_runs(Path(directory))
        case _:
            measure(Path(directory), step, addresses)


if __name__ == "__main__":
    main()
