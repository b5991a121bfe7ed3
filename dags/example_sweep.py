"""A small Ray Tune sweep that fails, and its trainable. The example DAGs restore it.

    python dags/example_sweep.py --storage-path /tmp/tune --name sweep

One of its four trials raises at iteration 4, unless EXAMPLE_SWEEP_REPAIRED=1 is set. That stands for a
bug that is fixed, or for a node with more memory. `--seconds` makes the sweep slow enough to kill its
driver. `RunTuneSweepOperator` sets variables with the place of the experiment. In a Ray job, it joins
the cluster. A DAG processor can import this file without Ray.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ITERATIONS = 6
FAILS_AT = 4


def train(config: dict[str, Any]) -> None:
    """Run `ITERATIONS` iterations, save a checkpoint after each, and continue from a given checkpoint."""
    from ray import tune

    start = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["iteration"]
    for iteration in range(start + 1, ITERATIONS + 1):
        if config["fragile"] and iteration == FAILS_AT and not is_repaired():
            raise MemoryError(f"lr={config['lr']} needs more memory than this node has")
        time.sleep(config["seconds"])
        score = 1 - 0.5 ** (iteration * config["lr"] * 10)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"iteration": iteration}))
            tune.report({"score": score}, checkpoint=tune.Checkpoint.from_directory(directory))


def is_repaired() -> bool:
    """Return whether the cause of the failure is gone."""
    return os.environ.get("EXAMPLE_SWEEP_REPAIRED") == "1"


def main() -> int:
    """Run the sweep and return its exit code: 0 if all trials finished, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--storage-path",
        default=os.environ.get("TUNE_RESTORE_STORAGE_PATH"),
        required="TUNE_RESTORE_STORAGE_PATH" not in os.environ,
        help="local directory or s3:// URL",
    )
    parser.add_argument(
        "--name",
        default=os.environ.get("TUNE_RESTORE_NAME", "sweep"),
        help="name of the experiment",
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="length of an iteration")
    options = parser.parse_args()

    import ray
    from ray import tune

    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:
        ray.init(address="local", num_cpus=2, include_dashboard=False)
    results = tune.Tuner(
        train,
        param_space={
            "lr": tune.grid_search([0.01, 0.03, 0.1, 0.3]),
            "fragile": tune.sample_from(lambda spec: spec["lr"] == 0.1),  # noqa: PLR2004
            "seconds": options.seconds,
        },
        tune_config=tune.TuneConfig(metric="score", mode="max"),
        run_config=tune.RunConfig(name=options.name, storage_path=options.storage_path),
    ).fit()
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from example_sweep import main as importable_main  # Ray then finds `train` by its module

    sys.exit(importable_main())
