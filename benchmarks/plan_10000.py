"""Plan of a large experiment, as a whole process, beside Ray's own loader of the same directory.

    uv run python benchmarks/plan_10000.py [--trials 10000] [--every 50] [--runs 3]

On a real S3 server (SeaweedFS), then on a disk. All are started in turn (A B A B …) from nothing:
interpreter, imports, reading, result. Wall time of the whole process is measured outside; peak memory is
what the kernel accounts to the finished process. The load time is measured inside, after the imports:
what reads the state, looks at checkpoints and makes the plan, beside what Ray's loader takes to make its
analysis (on S3 it gets the results of one trial after the other); wall and processor time, all threads
included. `Tuner.restore` loads that analysis, too, and its `fit` then makes a TuneController, which loads
all of it once more before it knows what is resumed: what our plan says, Ray knows only then.
The experiment is made of real rows (tests/golden); one trial in fifty ended with ERROR, to be resumed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.storage.servers import s3_server  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "ray-2.60.0" / "killed"


def _swap(old: str, new: str) -> Callable[[str], str]:
    """Return what puts one trial id in the place of another, which is as long, in pickles, too."""
    return lambda text: text.replace(old, new).replace(old.encode().hex(), new.encode().hex())


def make_experiment(directory: Path, trials: int, every: int) -> None:
    """Write an experiment in which every n-th trial ended with ERROR."""
    state_path = next(GOLDEN.glob("experiment_state-*.json"))
    state = json.loads(state_path.read_text())
    rows = {json.loads(row[0])["config"]["role"]: row for row in state["trial_data"]}
    made = []
    for number in range(trials):
        pair = rows["fails" if number % every == 0 else "finishes"]
        trial = json.loads(pair[0])
        old_dir, trial_id = trial["relative_logdir"], f"{number:05x}_{number:05d}"
        swap = _swap(trial["trial_id"], trial_id)
        new_dir = swap(old_dir)
        made.append([swap(text) for text in pair])
        trial_dir = directory / new_dir
        (trial_dir / "checkpoint_000001").mkdir(parents=True)
        (trial_dir / "checkpoint_000001" / "state.json").write_text("{}")
        (trial_dir / "result.json").write_text(swap((GOLDEN / old_dir / "result.json").read_text()))
    state["trial_data"] = made
    (directory / state_path.name).write_text(json.dumps(state))
    for name in ("tuner.pkl", next(GOLDEN.glob("basic-variant-state-*")).name):
        (directory / name).write_bytes((GOLDEN / name).read_bytes())


MAKE = """
import pathlib, sys
from benchmarks.plan_10000 import make_experiment
make_experiment(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""
UPLOAD = """
import os, pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from obstore.store import S3Store
bucket, _, root = sys.argv[2].removeprefix("s3://").partition("/")
client = S3Store(
    bucket, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True},
    virtual_hosted_style_request=False,
)
directory = pathlib.Path(sys.argv[1])
files = [path for path in directory.rglob("*") if path.is_file()]
with ThreadPoolExecutor(32) as threads:
    put = lambda path: client.put(f"{root}/{path.relative_to(directory)}", path.read_bytes())
    list(threads.map(put, files))
"""
"""In processes of their own: a child's peak memory counts from what its parent held at the fork."""

OURS = """
import gc, sys, time
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.prepare import plan_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.storage.fs import open_store
gc.disable()  # as the command line does
flags = ResumeFlags.from_flags(resume_unfinished=True, resume_errored=True, restart_errored=False)
wall, cpu = time.perf_counter(), time.process_time()
store = open_store(sys.argv[1], in_bulk=True)  # as it does, too
plan = plan_restore(store, "preview", PrepareOptions(choices=PlanChoices(flags=flags))).plan
print(time.perf_counter() - wall, time.process_time() - cpu)
assert plan.to_run and len(plan.trials) == int(sys.argv[2])
"""
RAYS = """
import sys, time
from ray.tune import ExperimentAnalysis
wall, cpu = time.perf_counter(), time.process_time()
analysis = ExperimentAnalysis(sys.argv[1])
print(time.perf_counter() - wall, time.process_time() - cpu)
assert len(analysis.trials) == int(sys.argv[2])
"""
RESTORES = """
import os, sys, time
os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "8"  # else it asks a cluster
from ray import tune
from ray.train._internal import storage
from ray.tune import ExperimentAnalysis
from ray.tune.execution.tune_controller import TuneController
storage._get_ray_train_session_dir = lambda: sys.argv[1] + "-staging"  # else it asks a node
tune.register_trainable("train", lambda config: None)
parent, _, name = sys.argv[1].rpartition("/")
wall, cpu = time.perf_counter(), time.process_time()
ExperimentAnalysis(sys.argv[1])
config = tune.ResumeConfig(errored=tune.ResumeConfig.ResumeType.RESUME)
where = storage.StorageContext(parent, name)
controller = TuneController(resume_config=config, storage=where, fail_fast=True)
print(time.perf_counter() - wall, time.process_time() - cpu)
assert len(controller.get_trials()) == int(sys.argv[2])
"""
"""What is timed inside: all end with seconds of wall and processor time."""


def measure(command: list[str]) -> tuple[float, ...]:
    """Return wall seconds and peak memory in MiB of one run, and what it printed of numbers."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # both start from compiled modules
    started = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.DEVNULL, env=environment
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - started
        if status:
            sys.exit(f"{' '.join(command)} failed")
        printed.seek(0)
        inside = map(float, printed.read().split()) if "-c" in command else ()
        return wall, usage.ru_maxrss / 1024, *inside


def compare(place: str, loaders: dict[str, str], trials: int, runs: int) -> None:
    """Run the command, then our plan and Ray's loaders from the inside; print medians and ratios."""
    commands = {
        "tune-restore plan": [
            *(sys.executable, "-m", "airflow_tune_restore.cli.app", "plan"),
            *(place, "--resume-errored", "--json"),
        ],
        **{
            name: [sys.executable, "-c", code, place, str(trials)]
            for name, code in {"plan, inside": OURS, **loaders}.items()
        },
    }
    figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in commands}
    for run in range(runs + 1):
        for name, command in commands.items():
            figure = measure(command)
            if run:  # the first one warms the page cache
                figures[name].append(figure)
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in figures.items()
    }
    for name, (wall, memory, *inside) in medians.items():
        loaded = f", load {inside[0]:.2f} s ({inside[1]:.2f} s cpu)" if inside else ""
        print(f"{name:20} {wall:6.2f} s {memory:7.0f} MiB{loaded}")
    whole, ours = medians["tune-restore plan"], medians["plan, inside"]
    for name in loaders:
        rays = medians[name]
        print(
            f"beside {name}: load {rays[2] / ours[2]:.1f} times faster "
            f"({rays[3] / ours[3]:.1f} by processor time), whole process {rays[0] / whole[0]:.1f} "
            f"times faster, {whole[1] / rays[1]:.0%} of the memory"
        )


def main() -> None:
    """Run the benchmark on both places."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=50, help="every n-th trial errored")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    counts = [str(options.trials), str(options.every)]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "experiment")
        subprocess.run([sys.executable, "-c", MAKE, str(directory), *counts], check=True, cwd=ROOT)
        size = next(directory.glob("experiment_state-*.json")).stat().st_size
        print(f"{options.trials} trials, state file of {size / 1e6:.0f} MB")
        with s3_server() as server:
            os.environ.update(server.env)
            url = f"{server.url}/experiment"
            subprocess.run([sys.executable, "-c", UPLOAD, str(directory), url], check=True)
            print("SeaweedFS (S3):")
            compare(url, {"ExperimentAnalysis": RAYS}, options.trials, options.runs)
        print("Disk:")
        loaders = {"ExperimentAnalysis": RAYS, "Tuner.restore": RESTORES}
        compare(str(directory), loaders, options.trials, options.runs)
    print(f"load average {os.getloadavg()[0]:.1f}; medians of {options.runs}")


if __name__ == "__main__":
    main()
