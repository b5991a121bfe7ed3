"""A sweep whose trials stand still where a test wants to kill their driver, and its trainable."""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

GATES = "where the gates are"  # the fixture `dags` puts their directory here
ITERATIONS = 6


def train(config: dict[str, Any]) -> None:
    """Run six iterations with a checkpoint after each; wait before one whose gate is closed."""
    from ray import tune

    start, name = 0, tune.get_context().get_experiment_name()
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["iteration"]
    for iteration in range(start + 1, ITERATIONS + 1):
        while Path(GATES, f"{name}.{iteration}").exists():
            time.sleep(0.05)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"iteration": iteration}))
            score = config["lr"] * iteration
            tune.report({"score": score}, checkpoint=tune.Checkpoint.from_directory(directory))


def main() -> None:
    """Run the sweep where the operator wants it."""
    import dying_sweep  # Ray then finds `train` by its module
    import ray
    from ray import tune

    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:
        ray.init(address="local", num_cpus=2, include_dashboard=False)
    tune.Tuner(
        dying_sweep.train,
        param_space={"lr": tune.grid_search([0.5, 2.0])},
        tune_config=tune.TuneConfig(metric="score", mode="max"),
        run_config=tune.RunConfig(
            name=os.environ["TUNE_RESTORE_NAME"],
            storage_path=os.environ["TUNE_RESTORE_STORAGE_PATH"],
        ),
    ).fit()


if __name__ == "__main__":
    main()
