"""Real failed experiments, made by Ray itself in a process of its own, then copied for every test.

    make_experiments(directory, ["errored", "retries"])     one Ray makes all of them
    make_killed_experiment(directory)                       its driver dies by kill -9

Builders need Ray in this interpreter; the tests that use the experiments talk to storage only.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE = "tests.trainables"
TRAINABLES = {
    "errored": f"{MODULE}:counting",
    "two_errored": f"{MODULE}:counting",
    "sparse": f"{MODULE}:counting",
    "retries": f"{MODULE}:counting",
    "extras": f"{MODULE}:counting",
    "kept": f"{MODULE}:counting",
    "killed": f"{MODULE}:counting",
    "class": f"{MODULE}:Counter",
    "registered": "counting_by_name",
    "with_parameters": f"{MODULE}:counting_with_parameters",
    "with_resources": f"{MODULE}:counting_with_resources",
    "trainer": f"{MODULE}:trainer",
}
"""What each experiment was made with, as a request names it."""


def environment(**extra: str) -> dict[str, str]:
    """Return the variables every Ray of a test runs with."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [ROOT.as_posix(), os.environ.get("PYTHONPATH")])
        ),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        **extra,
    }


def make_experiments(
    directory: Path, kinds: Sequence[str], python: str = sys.executable
) -> dict[str, Path]:
    """Run sweeps that fail, one after another in one Ray, and return their directories."""
    command = [python, "-m", "tests.experiments", directory.as_posix(), *kinds]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return {kind: directory / kind for kind in kinds}


def make_errored_experiment(directory: Path) -> Path:
    """Two trials: one finished; one raised at iteration 4, with checkpoints of 1, 2 and 3."""
    return make_experiments(directory, ["errored"])["errored"]


def make_killed_experiment(directory: Path) -> Path:
    """Three trials when the driver was killed: finished, hanging after iteration 2, never started."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.experiments", directory.as_posix(), "killed"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    experiment = directory / "killed"
    deadline = time.monotonic() + 120
    while (
        not _is_ready_to_die(experiment) and time.monotonic() < deadline and driver.poll() is None
    ):
        time.sleep(0.3)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert _is_ready_to_die(experiment), "the experiment did not get to the state wanted"
    return experiment


def rows(experiment: Path) -> list[tuple[dict, dict]]:
    """Return the decoded rows of the newest state."""
    newest = max(experiment.glob("experiment_state-*.json"))
    return [(json.loads(a), json.loads(b)) for a, b in json.loads(newest.read_text())["trial_data"]]


def _is_ready_to_die(experiment: Path) -> bool:
    try:
        seen = {t["config"]["role"]: (t["status"], r["last_result"]) for t, r in rows(experiment)}
    except (ValueError, OSError):
        return False
    return (
        seen.get("finishes", ("",))[0] == "TERMINATED"
        and seen.get("hangs", ("", {}))[1].get("training_iteration") == 2
        and len(list(experiment.glob("*hangs*/result.json"))) == 1
        and "waits" in seen
    )


def _recipe(kind: str) -> dict:
    """Return what `Tuner` is given, but for the name and the place."""
    from ray import tune

    from tests import trainables as t

    fails = {"role": "fails", "fails_at": 4}
    both = {
        "role": tune.grid_search(["finishes", "fails"]),
        "fails_at": tune.sample_from(_fails_at),
    }
    plain = {"trainable": t.counting, "param_space": fails, "run": {}}
    return {
        "errored": {**plain, "param_space": {**both, "factor": 2}},
        "two_errored": {
            **plain,
            "param_space": {
                "role": tune.grid_search(["finishes", "fails", "fails sparsely"]),
                "fails_at": tune.sample_from(_fails_at),
                "checkpoint_every": tune.sample_from(_checkpoint_every),
            },
        },
        "sparse": {**plain, "param_space": {**fails, "checkpoint_every": 2}},
        "retries": {**plain, "run": {"failure_config": t.FailureConfig(max_failures=1)}},
        "extras": {**plain, "run": {"callbacks": [t.Recorder()], "stop": t.StopAtFive()}},
        "kept": {**plain, "run": {"checkpoint_config": t.CheckpointConfig(num_to_keep=1)}},
        "killed": {
            **plain,
            "param_space": {
                "role": tune.grid_search(["finishes", "hangs", "waits"]),
                "hangs_at": tune.sample_from(_hangs_at),
            },
            # one at a time, so that the third is drawn but never started
            "trainable": tune.with_resources(t.counting, {"cpu": 2}),
        },
        "class": {
            **plain,
            "trainable": t.Counter,
            "run": {"checkpoint_config": t.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2)},
        },
        "registered": {**plain, "trainable": "counting_by_name"},
        "with_parameters": {**plain, "trainable": t.counting_with_parameters},
        "with_resources": {**plain, "trainable": t.counting_with_resources},
        "trainer": {**plain, "trainable": None, "param_space": {"train_loop_config": fails}},
    }[kind]


def _fails_at(spec) -> int | None:
    return 4 if spec["role"].startswith("fails") else None


def _checkpoint_every(spec) -> int:
    return 2 if spec["role"] == "fails sparsely" else 1


def _hangs_at(spec) -> int | None:
    return 3 if spec["role"] == "hangs" else None


def _run(directory: Path, kind: str) -> None:
    from ray import tune

    from tests import trainables as t

    recipe = _recipe(kind)
    tune.Tuner(
        recipe["trainable"] or t.make_trainer(),
        param_space=recipe["param_space"],
        tune_config=tune.TuneConfig(metric="score", mode="max"),
        run_config=t.RunConfig(
            name=kind, storage_path=directory.as_posix(), verbose=0, **recipe["run"]
        ),
    ).fit()


def main(directory: str, *kinds: str) -> None:
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2
    )
    for kind in kinds:
        _run(Path(directory), kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
