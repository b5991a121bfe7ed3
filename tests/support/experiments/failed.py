"""Real failed experiments: how Ray itself makes them, in a process of its own.

    make_experiments(directory, ["errored", "retries"])     one Ray makes all of them
    make_killed_experiment(directory)                       its driver dies by kill -9

Tests copy those that were made once: `tests/golden/failed`, by `tests/golden/make_failed.py`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import NO_SPARE_WORKERS, ROOT
from tests.support.waiting import PATIENCE_SECONDS

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
    "asha": f"{MODULE}:counting",
    "asha_class": f"{MODULE}:ScaledCounter",
    "pbt": f"{MODULE}:Counter",
    "left": f"{MODULE}:counting",
    "optuna": f"{MODULE}:counting",
    "hyperopt": f"{MODULE}:counting",
    "limited": f"{MODULE}:counting",
    "hyperband": f"{MODULE}:Counter",
    "hopeless": f"{MODULE}:counting",
    "median": f"{MODULE}:counting",
}
"""What each experiment was made with, as a request names it."""

BATCHES = (
    (
        "errored",
        "two_errored",
        "sparse",
        "retries",
        "extras",
        "kept",
        "class",
        "registered",
        "with_parameters",
        "with_resources",
        "trainer",
    ),
    ("asha", "asha_class", "pbt", "limited"),
    ("hyperband", "hopeless", "median"),
    ("killed",),
    ("left",),
    ("optuna",),
    ("hyperopt",),
)
"""The kinds that one Ray makes, together."""

KILLED = frozenset({"killed", "left", "optuna", "hyperopt"})
"""The kinds whose driver is killed; each is a batch of its own."""

TRIAL_FILES = ("params.json", "params.pkl", "progress.csv", "result.json")
"""What Ray writes of a trial that has reported something, beside its checkpoints."""

_LEARNED = ("searcher-state-*.pkl", "search_gen_state-*.json")
_SEARCHER_FILES = {"optuna": _LEARNED, "hyperopt": _LEARNED}


class Gate:
    """No healed trial begins an iteration before a file is there: what is done to it is never late.

    Attributes:
        path: The file.
        before: The iteration.
        env: What the trials are to find in their environment.
    """

    def __init__(self, path: Path, before: int) -> None:
        self.path = path
        self.before = before
        self.env = {"TUNE_TEST_GATE": f"{before}:{path.as_posix()}"}

    def open(self) -> None:
        """Let them all go on."""
        self.path.touch()

    def close(self) -> None:
        """Let none go on any more."""
        self.path.unlink(missing_ok=True)


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
        **NO_SPARE_WORKERS,
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        **extra,
    }


def make_experiments(
    directory: Path, kinds: Sequence[str], python: str = sys.executable
) -> dict[str, Path]:
    """Run sweeps that fail, one after another in one Ray, and return their directories."""
    command = [python, "-m", "tests.support.experiments.failed", directory.as_posix(), *kinds]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return {kind: directory / kind for kind in kinds}


def make_batch(directory: Path, kinds: Sequence[str]) -> None:
    """Make kinds of one batch."""
    if KILLED.isdisjoint(kinds):
        make_experiments(directory, kinds)
    else:
        make_killed_experiment(directory, *kinds)


def make_errored_experiment(directory: Path) -> Path:
    """Two trials: one finished; one raised at iteration 4, with checkpoints of 1, 2 and 3."""
    return make_experiments(directory, ["errored"])["errored"]


def make_killed_experiment(directory: Path, kind: str = "killed") -> Path:
    """Kill a driver while one trial hangs after iteration 2.

    `killed`: of three trials one finished and one never started. `left`, `optuna`, `hyperopt`: one
    finished, and the others were never drawn.
    """
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.support.experiments.failed", directory.as_posix(), kind],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    experiment = directory / kind
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and driver.poll() is None:
        if _is_ready_to_die(experiment):
            os.killpg(driver.pid, signal.SIGSTOP)  # not in the middle of writing its state
            if _is_ready_to_die(experiment):
                break
            os.killpg(driver.pid, signal.SIGCONT)
        time.sleep(0.3)
    with contextlib.suppress(ProcessLookupError):  # a driver that crashed
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert _is_ready_to_die(experiment), "the experiment did not get to the state wanted"
    return experiment


def rows(experiment: Path) -> list[tuple[dict, dict]]:
    """Return the decoded rows of the newest state."""
    newest = max(experiment.glob("experiment_state-*.json"))
    return [(json.loads(a), json.loads(b)) for a, b in json.loads(newest.read_text())["trial_data"]]


def has(directory: Path, *patterns: str) -> bool:
    """Whether there is a file of each name, and something in it.

    Ray copies its files to the storage one after another, in the background; pyarrow empties each first.
    """
    found = [list(directory.glob(pattern)) for pattern in patterns]
    return all(paths and all(path.stat().st_size for path in paths) for paths in found)


def save_rarely(experiment: Path) -> None:
    """Let whoever restores the experiment save snapshots every ten minutes, not every second."""
    (state,) = experiment.glob("experiment_state-*.json")
    body = state.read_text()
    rare = body.replace('"_checkpoint_period": "1"', '"_checkpoint_period": "600"')
    assert rare != body
    state.write_text(rare)


def _is_ready_to_die(experiment: Path) -> bool:
    """Whether it has come to where it is killed, and all that Ray writes until then is in the storage."""
    try:
        trials = rows(experiment)
        begun = {
            (t["status"], r["last_result"]["training_iteration"]): experiment / t["relative_logdir"]
            for t, r in trials
            if "training_iteration" in r["last_result"]
        }
        return (
            begun.keys() == {("TERMINATED", 6), ("RUNNING", 2)}
            and (experiment.name != "killed" or len(trials) == 3)
            and all(has(directory, *TRIAL_FILES) for directory in begun.values())
            and has(
                experiment,
                "tuner.pkl",
                "experiment_state-*.json",
                *_SEARCHER_FILES.get(experiment.name, ("basic-variant-state-*.json",)),
            )
        )
    except (ValueError, OSError):
        return False


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
        **_searches(t.counting, fails),
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


def _searches(counting, fails: dict) -> dict:
    """Return recipes with a scheduler or a searcher of their own."""
    from ray import tune
    from ray.tune.schedulers import (
        ASHAScheduler,
        HyperBandScheduler,
        MedianStoppingRule,
        PopulationBasedTraining,
    )

    from tests import trainables as t

    every = {"trainable": counting, "run": {}}
    factor = {"factor": tune.grid_search([4, 3, 2, 1])}
    drawn = {"factor": tune.uniform(1, 2), "second_hangs": True}
    asha = ASHAScheduler(max_t=6, grace_period=2, reduction_factor=2)
    median = MedianStoppingRule(
        time_attr="training_iteration", grace_period=2, min_samples_required=2
    )
    worst = {"param_space": {**factor, "fails_at": tune.sample_from(_worst_fails)}}
    one_by_one = {"num_samples": 5, "max_concurrent_trials": 1}
    return {
        "asha": {
            **every,
            "param_space": {**factor, "fails_at": tune.sample_from(_best_fails)},
            "tune": {
                "scheduler": asha,
                "max_concurrent_trials": 1,
            },
        },
        "asha_class": {
            "trainable": t.ScaledCounter,
            "param_space": {**factor, "fails_at": tune.sample_from(_best_fails)},
            "tune": {"scheduler": asha},
            "run": {"checkpoint_config": t.CheckpointConfig(checkpoint_frequency=1)},
        },
        "hopeless": {**every, **worst, "tune": {"scheduler": asha, "max_concurrent_trials": 1}},
        "median": {**every, **worst, "tune": {"scheduler": median, "max_concurrent_trials": 1}},
        "hyperband": {
            "trainable": t.Counter,
            "param_space": {**factor, "fails_at": tune.sample_from(_best_fails)},
            "tune": {"scheduler": HyperBandScheduler(max_t=6, reduction_factor=2)},
            "run": {"checkpoint_config": t.CheckpointConfig(checkpoint_frequency=1)},
        },
        "pbt": {
            "trainable": t.Counter,
            "param_space": {**factor, "fails_at": tune.sample_from(_best_fails)},
            "tune": {
                "scheduler": PopulationBasedTraining(
                    time_attr="training_iteration",
                    perturbation_interval=2,
                    hyperparam_mutations={"factor": [1, 2, 3, 4]},
                )
            },
            "run": {"checkpoint_config": t.CheckpointConfig(checkpoint_frequency=1)},
        },
        "left": {**every, "param_space": {**drawn, "i": tune.grid_search([1, 2, 3, 4])},
                 "tune": {"max_concurrent_trials": 1}},
        "optuna": {**every, "param_space": drawn, "tune": one_by_one, "searcher": "optuna"},
        "hyperopt": {**every, "param_space": drawn, "tune": one_by_one, "searcher": "hyperopt"},
        "limited": {**every, "param_space": {**fails, "factor": tune.uniform(1, 2)},
                    "tune": {"num_samples": 3}},
    }  # fmt: skip


def _searcher(name: str):
    """Make a searcher that learns; imported when wanted, not every Ray environment has them."""
    if name == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(sampler=optuna.samplers.TPESampler(n_startup_trials=1, seed=1))
    from ray.tune.search.hyperopt import HyperOptSearch

    return HyperOptSearch(n_initial_points=1, random_state_seed=1)


def _best_fails(spec) -> int | None:
    return 4 if spec["config"]["factor"] == 4 else None


def _worst_fails(spec) -> int | None:
    return 2 if spec["config"]["factor"] == 1 else None


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
    options = dict(recipe.get("tune", {}))
    if "searcher" in recipe:
        options["search_alg"] = _searcher(recipe["searcher"])
    tune.Tuner(
        recipe["trainable"] or t.make_trainer(),
        param_space=recipe["param_space"],
        tune_config=tune.TuneConfig(metric="score", mode="max", **options),
        run_config=t.RunConfig(
            name=kind, storage_path=directory.as_posix(), verbose=0, **recipe["run"]
        ),
    ).fit()


def main(directory: str, *kinds: str) -> None:
    from airflow_tune_restore.runner import ray_session

    ray_session.start(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2
    )
    for kind in kinds:
        _run(Path(directory), kind)


if __name__ == "__main__":
    # by its name, so that Ray pickles the functions above by reference: the next Python reads them, too
    from tests.support.experiments import failed

    failed.main(*sys.argv[1:])
