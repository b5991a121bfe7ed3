"""The sweep of benchmarks/recovery.py: all of its trials fail after five of ten iterations.

    python -m benchmarks.recovery_sweep make DIRECTORY NAME TRIALS REPAIRED
    python -m benchmarks.recovery_sweep restore EXPERIMENT      `Tuner.restore(…).fit()`, and nothing else
    python -m benchmarks.recovery_sweep submit DASHBOARD EXPERIMENT      the same as one Ray job; waits

REPAIRED is a file. If it exists, no trial fails, and each iteration sleeps for the seconds that it holds.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ITERATIONS, FAILS_AFTER = 10, 5


def train(config: dict[str, Any]) -> None:
    """Run all iterations, save a checkpoint after each, and continue from a given checkpoint."""
    from ray import tune

    start = 0
    if (given := tune.get_checkpoint()) is not None:
        with given.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["iteration"]
    repaired = Path(config["repaired"])
    seconds = float(repaired.read_text()) if repaired.exists() else 0.0
    for iteration in range(start + 1, ITERATIONS + 1):
        if iteration > FAILS_AFTER and not repaired.exists():
            raise RuntimeError("out of luck")
        time.sleep(seconds)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"iteration": iteration}))
            checkpoint = tune.Checkpoint.from_directory(directory)
            tune.report({"score": iteration * config["number"]}, checkpoint=checkpoint)


def make(directory: str, name: str, trials: int, repaired: str) -> None:
    """Run the sweep, several trials at a time."""
    from ray import tune

    from airflow_tune_restore.runner.ray_session import start  # tries again on a busy machine

    start(address="local", num_cpus=8, include_dashboard=False)
    tune.Tuner(
        train,
        param_space={"number": tune.grid_search(list(range(trials))), "repaired": repaired},
        run_config=tune.RunConfig(storage_path=directory, name=name, verbose=0),
    ).fit()


def restore(experiment: str) -> None:
    """Restore it as Ray does: on the cluster of a Ray job, else with a Ray of this machine."""
    from ray import tune

    results = tune.Tuner.restore(experiment, train, resume_errored=True).fit()
    if results.errors:
        sys.exit(f"{len(results.errors)} trials failed")


def submit(dashboard: str, experiment: str) -> None:
    """Submit `restore` as one job, and wait for its end; the token is in RAY_AUTH_TOKEN."""
    from tests.support import rest

    token = os.environ["RAY_AUTH_TOKEN"]
    command = shlex.join([sys.executable, "-m", "benchmarks.recovery_sweep", "restore", experiment])
    body = {"entrypoint": f"exec {command}"}
    job = rest.call(f"{dashboard}/api/jobs/", token, method="POST", body=body)["submission_id"]
    while (status := rest.call(f"{dashboard}/api/jobs/{job}", token)["status"]) not in (
        "SUCCEEDED",
        "FAILED",
        "STOPPED",
    ):
        time.sleep(0.2)
    if status != "SUCCEEDED":
        sys.exit(rest.call(f"{dashboard}/api/jobs/{job}/logs", token)["logs"][-3000:])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from benchmarks import recovery_sweep  # Ray then finds `train` by its module

    command, *arguments = sys.argv[1:]
    if command == "make":
        place, name, count, file = arguments
        recovery_sweep.make(place, name, int(count), file)
    else:
        {"restore": recovery_sweep.restore, "submit": recovery_sweep.submit}[command](*arguments)
