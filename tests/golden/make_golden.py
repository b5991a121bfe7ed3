"""Makes `tests/golden/ray-<version>/`: a real experiment whose driver was killed with `kill -9`.

Run with an interpreter that has the Ray version wanted:

    RAY_AUTH_MODE=disabled python tests/golden/make_golden.py

One trial finished, one errored, two were running (one of them never reported), one was never started.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def train(config):
    from ray import train, tune

    checkpoint = train.get_checkpoint() if not hasattr(tune, "get_checkpoint") else None
    checkpoint = checkpoint or (tune.get_checkpoint() if hasattr(tune, "get_checkpoint") else None)
    start = 0
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["iteration"]
    if config["role"] == "silent":
        time.sleep(3600)
    for iteration in range(start + 1, 5):
        if config["role"] == "fails" and iteration == 3:
            raise RuntimeError("out of luck at iteration 3")
        if config["role"] == "hangs" and iteration == 3:
            time.sleep(3600)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"iteration": iteration}))
            report = getattr(tune, "report", None)
            made = (tune if hasattr(tune, "Checkpoint") else train).Checkpoint.from_directory(
                directory
            )
            metrics = {"score": iteration * config["factor"]}
            try:
                report(metrics, checkpoint=made)
            except TypeError:  # ray < 2.43: tune.report is the old API
                train.report(metrics, checkpoint=made)


def drive(storage: str) -> None:
    import ray
    from ray import train as ray_train
    from ray import tune

    ray.init(address="local", num_cpus=2, include_dashboard=False)
    run_config = getattr(tune, "RunConfig", None) or ray_train.RunConfig
    tune.Tuner(
        train,
        param_space={
            "role": tune.grid_search(["finishes", "fails", "hangs", "silent", "waits"]),
            "factor": 2,
        },
        tune_config=tune.TuneConfig(metric="score", mode="max"),
        run_config=run_config(name="killed", storage_path=storage),
    ).fit()


def is_ready(experiment: Path) -> bool:
    """Whether the saved state shows the mix we want."""
    states = sorted(experiment.glob("experiment_state-*.json"))
    if not states:
        return False
    try:
        rows = json.loads(states[-1].read_text())["trial_data"]
    except ValueError:
        return False
    seen = {}
    for trial, run in ((json.loads(a), json.loads(b)) for a, b in rows):
        seen[trial["config"]["role"]] = (trial["status"], run["last_result"].get("score"))
    return (
        seen.get("finishes", ("",))[0] == "TERMINATED"
        and seen.get("fails", ("",))[0] == "ERROR"
        and seen.get("hangs") == ("RUNNING", 4)
        and seen.get("silent", ("",))[0] == "RUNNING"
    )


def main() -> None:
    import ray

    target = Path(__file__).parent / f"ray-{ray.__version__}"
    with tempfile.TemporaryDirectory() as scratch:
        driver = subprocess.Popen(
            [sys.executable, __file__, "drive", scratch],
            env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "1"},
            start_new_session=True,
        )
        experiment = Path(scratch, "killed")
        deadline = time.monotonic() + 900  # PATIENCE_SECONDS; this imports nothing of ours
        while not is_ready(experiment) and time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.5)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        if not is_ready(experiment):
            sys.exit("the experiment did not get to the state wanted")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(
            experiment, target / "killed", ignore=shutil.ignore_patterns("events.out.tfevents*")
        )
    print(f"made {target}")


if __name__ == "__main__":
    drive(sys.argv[2]) if sys.argv[1:2] == ["drive"] else main()
