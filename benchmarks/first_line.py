"""How soon a resumed trainable runs on a cluster, beside a bare Ray job that imports Tune and connects.

    uv run python benchmarks/first_line.py [--runs 5]

Both are submitted to the same head in turn (A B A B …), after one of each that does not count. The clock
starts before the job is posted (ours: before code is delivered and the attempt claimed) and stops at the
first line of user code: in the bare job after `import ray.tune` and `ray.init()`; ours in the trainable
itself, in a process of its own, with state and checkpoint restored. Two more show what is possible. The
least actor: a job that connects and at once starts an actor, where Tune is imported while the driver
imports it, too. Tune's own least: a job that runs one trial of an empty trainable. One clock for all,
CLOCK_MONOTONIC.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.airflow import home as airflow_home  # noqa: E402, F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook  # noqa: E402
from airflow_tune_restore.launch.ray.job_log import JobLog  # noqa: E402
from airflow_tune_restore.launch.ray.jobs_api import RayJobs  # noqa: E402
from airflow_tune_restore.operators.build_restore_plan import (  # noqa: E402
    BuildRestorePlanOperator,
)
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator  # noqa: E402
from tests.support.airflow.context import make_context  # noqa: E402
from tests.support.airflow.names import TaskDeferred  # noqa: E402
from tests.support.experiments.failed import make_errored_experiment  # noqa: E402
from tests.support.ray.cluster import ray_cluster  # noqa: E402

CONNECTS = "import time, ray.tune, ray; ray.init(); print('AT', time.monotonic(), flush=True)"
ACTOR = """
import time
import ray
ray.init()
@ray.remote(num_cpus=1)
class Trial:
    def first_line(self):
        import ray.tune
        return time.monotonic()
line = Trial.remote().first_line.remote()
import ray.tune
print("AT", ray.get(line), flush=True)
"""
LEAST = """
import time
from ray import tune
import ray
ray.init()
def f(config):
    print("AT", time.monotonic(), flush=True)
    tune.report({"a": 1})
tune.Tuner(f, run_config=tune.RunConfig(storage_path="/tmp/first-line-least", verbose=0)).fit()
"""


def run_plain(code: str, number: int) -> float:
    """Run a job of Python code and return the seconds to its line."""
    jobs = RayJobsHook("ray_bench").jobs()
    name = f"plain-{number}-{abs(hash(code)) % 10000}"
    begun = time.monotonic()
    jobs.submit(
        {"entrypoint": f"exec python -c {json.dumps(code)}", "submission_id": name,
         "entrypoint_memory": 512 * 1024**2} if "\n" not in code else
        {"entrypoint": f"exec python - <<'END'\n{code}\nEND", "submission_id": name,
         "entrypoint_memory": 512 * 1024**2}
    )  # fmt: skip
    wait(name)
    (line,) = [line for line in printed(jobs, name) if "AT " in line and "echo" not in line
               and "python" not in line and "print(" not in line]  # fmt: skip
    return float(line.rpartition("AT ")[2]) - begun


def wait(name: str) -> None:
    """Wait for a job's end."""
    jobs = RayJobsHook("ray_bench").jobs()
    while (job := jobs.find(name)) is None or not job.is_over:
        time.sleep(0.2)
    assert job.status == "SUCCEEDED", printed(jobs, name)[-30:]


def printed(jobs: RayJobs, name: str) -> list[str]:
    """Return the lines that a job has printed."""
    log = JobLog(results=0)
    jobs.read_log(name, log)
    log.end()
    return log.newest.take("")


def run_ours(experiment: Path, scratch: Path, number: int) -> float:
    """Resume a trial and return the seconds to the first line of its trainable."""
    copy = shutil.copytree(experiment, scratch / f"copy-{number}")
    journal = scratch / f"journal-{number}"
    (item,) = BuildRestorePlanOperator(
        task_id="plan", experiments=str(copy), resume_errored=True, stale_after=0, launcher="ray"
    ).execute(make_context(run_id=f"run-{number}"))
    operator = RestoreTrialOperator(
        task_id="trial",
        trial=item,
        trainable="tests.trainables:counting",
        launcher="ray",
        ray_conn_id="ray_bench",
        runtime_env={"py_modules": [str(ROOT / "tests")]},
        env={"TUNE_TEST_HEALED": "1", "TUNE_TEST_JOURNAL": str(journal)},
    )
    begun = time.monotonic()
    try:
        operator.execute(make_context())
    except TaskDeferred as deferred:
        wait(deferred.trigger.submission_id)
    return float(json.loads(journal.read_text().splitlines()[0])["at"]) - begun


def main() -> None:
    """Run both in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ray_cluster({}, num_cpus=2) as cluster:
        os.environ["AIRFLOW_CONN_RAY_BENCH"] = json.dumps(cluster.connection)
        scratch = Path(directory)
        experiment = make_errored_experiment(scratch)
        kinds: dict[str, Callable[[int], float]] = {
            "bare job": lambda number: run_plain(CONNECTS, number),
            "ours": lambda number: run_ours(experiment, scratch, number),
            "least actor job": lambda number: run_plain(ACTOR, number),
            "least Tune job": lambda number: run_plain(LEAST, number),
        }
        took: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(options.runs + 1):
            for name, run in kinds.items():
                seconds = run(number)
                print(f"{name:15} {seconds:6.2f} s{'' if number else '  (does not count)'}")
                if number:
                    took[name].append(seconds)
        medians = {name: statistics.median(values) for name, values in took.items()}
        for name, median in medians.items():
            print(
                f"{name}: median {median:.2f} s, {median / medians['bare job']:.2f} of a bare job"
            )


if __name__ == "__main__":
    main()
