"""How long a task waits from queued to started: on the RayExecutor, beside the LocalExecutor.

    python benchmarks/executor_start.py     # a real Airflow and a real Ray head, five tasks of each

A first task of each is not counted: it fills caches. No other task is on the cluster meanwhile.
"""

import statistics
import tempfile
from datetime import datetime
from os import getloadavg
from pathlib import Path

from tests.support.airflow.on_ray import Run, airflow_on_ray

TIMES = 5


def main() -> None:
    """Print the seconds of each task, and their medians."""
    seconds: dict[str, list[float]] = {"RayExecutor": [], "LocalExecutor": []}
    with tempfile.TemporaryDirectory() as scratch, airflow_on_ray(Path(scratch, "airflow")) as site:
        for number in range(TIMES + 1):
            on_ray = site.begin("waits", Path(scratch, f"waits{number}"))
            on_ray.go_on()
            on_ray.finish()
            beside = site.begin("beside", Path(scratch, f"beside{number}"))
            beside.finish()
            site.wait_for_ends(site.jobs())
            seconds["RayExecutor"].append(queued_to_started(on_ray, "waiting"))
            seconds["LocalExecutor"].append(queued_to_started(beside, "local"))
    for executor, (_, *counted) in seconds.items():
        each = ", ".join(f"{one:.2f}" for one in counted)
        print(f"{executor}: median {statistics.median(counted):.2f} s ({each})")
    print(f"load average {getloadavg()[0]:.1f}")


def queued_to_started(run: Run, task_id: str) -> float:
    """Return the seconds between two times that Airflow has recorded."""
    task = run.task(task_id)
    queued, started = (datetime.fromisoformat(task[name]) for name in ("queued_when", "start_date"))
    return (started - queued).total_seconds()


if __name__ == "__main__":
    main()
