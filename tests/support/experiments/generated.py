"""Small experiments by recipe, for tests that draw them: trainables, and the Tuner that a host makes.

The config of a trial has all that it does: how many iterations, where a checkpoint, where it fails, which
metrics it reports. It fails while the file `cause` exists; the night after, somebody has removed it.

A recipe is JSON. A value that JSON does not have stands in it as `{"is": …, "of": …}`; see `decoded`.
"""

import json
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune  # noqa: TID253  only hosts and Ray's workers import this
from ray.tune.schedulers import ASHAScheduler  # noqa: TID253
from ray.tune.search import ConcurrencyLimiter, Searcher  # noqa: TID253

from tests import trainables as t


def fail_if_due(config: dict, iteration: int, started_from: int = 0) -> None:
    """Fail where the recipe says so; with `fails_once`, only in a trial that began from scratch."""
    spared = config.get("fails_once") and started_from
    if config.get("fails_at") == iteration and not spared and Path(config["cause"]).exists():
        raise RuntimeError(f"out of luck at iteration {iteration}")


def function(config: dict) -> None:
    """A function trainable, by the trial's recipe."""
    trial = config["trial"]
    start, checkpoint = 0, t._session.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())
    for iteration in range(start + 1, trial["iterations"] + 1):
        fail_if_due(trial, iteration, start)
        metrics = reported(trial, iteration, start)
        if not trial["checkpoint_every"] or iteration % trial["checkpoint_every"]:
            t._session.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps(iteration))
            t._session.report(metrics, checkpoint=t.Checkpoint.from_directory(directory))


class Class(tune.Trainable):
    """The same as a class; Tune decides when it saves. It may fail in `setup`: iteration 0."""

    def setup(self, config: dict) -> None:
        fail_if_due(config["trial"], 0)
        self.count = self.started_from = 0

    def step(self) -> dict:
        trial = self.config["trial"]
        fail_if_due(trial, self.count + 1, self.started_from)
        self.count += 1
        ends = {"done": self.count >= trial["iterations"]}
        return ends | reported(trial, self.count, self.started_from)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "state.json").write_text(json.dumps(self.count))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.count = self.started_from = json.loads(Path(checkpoint_dir, "state.json").read_text())


def score(trial: dict, iteration: int) -> int:
    """Up and down, so that the best checkpoint is not always the newest."""
    return iteration * trial["factor"] % 7


def reported(trial: dict, iteration: int, started_from: int) -> dict[str, Any]:
    """Return the metrics of one result: those of every trial, and those of its recipe.

    `reports` of the recipe has the values of each metric, which take turns.
    """
    own = {
        name: values[iteration % len(values)] for name, values in trial.get("reports", {}).items()
    }
    return {
        "score": score(trial, iteration),
        "started_from": started_from,
        "cpus": cpus_asked(),
        **{name: decoded(value) for name, value in own.items() if value != MISSING},
    }


def cpus_asked() -> list[float]:
    """Return the CPUs of each bundle of the placement group we run in."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    return [bundle.get("CPU", 0.0) for bundle in group.bundle_specs] if group else []


# --- values that JSON does not have ---

MISSING = {"is": "missing", "of": None}
"""Stands for a metric that a result does not have."""

MAKERS: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "int64": np.int64,
    "bool_": np.bool_,
    "tuple": tuple,
    "function": lambda _: score,
    "sampled": lambda value: tune.sample_from(lambda _: value),
    "many": lambda number: {f"layer_{n:03}.width": n / 7 for n in range(number)},
}


def decoded(value: Any) -> Any:
    """Return what a value of a recipe stands for."""
    if isinstance(value, dict) and value.keys() == {"is", "of"}:
        return MAKERS[value["is"]](decoded(value["of"]))
    if isinstance(value, dict):
        return {name: decoded(each) for name, each in value.items()}
    return [decoded(each) for each in value] if isinstance(value, list) else value


class Named:
    """Names trials or their directories: a text, in which `TRIAL_ID` stands for the id."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, trial: Any) -> str:
        return self.text.replace("TRIAL_ID", trial.trial_id)


# --- resources, at first and at a restore ---

RESOURCES: dict[str, Any] = {
    "default": None,
    "one": {"cpu": 1},
    "two": {"cpu": 2},
    "all": {"cpu": 4},
    "bundles": tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 2}]),
    "by_config": lambda config: tune.PlacementGroupFactory([{"CPU": 1 + len(config["trial"]) % 2}]),
}
"""Of a Ray that has four CPUs: all of it, or less."""


def _with_resources(trainable: Any, resources: Any) -> Any:
    if not isinstance(trainable, type):  # Tune would write into the function itself
        trainable = types.FunctionType(
            trainable.__code__, trainable.__globals__, trainable.__name__
        )
    return trainable if resources is None else tune.with_resources(trainable, resources)


TRAINABLES: dict[str, Any] = {"function": function, "class": Class}
function_asking, class_asking = (
    types.SimpleNamespace(**{name: _with_resources(each, r) for name, r in RESOURCES.items()})
    for each in TRAINABLES.values()
)


# --- searchers with a memory ---


class Learner(Searcher):
    """Chooses among the trials of its recipe by what it has learned; its state is all it knows."""

    def __init__(self, trials: list[dict] | None = None, *, learns: bool = True) -> None:
        super().__init__(metric="score", mode="max")
        self.state = {"left": trials or [], "learned": 0, "learns": learns}

    def suggest(self, trial_id: str) -> dict | str:
        left = self.state["left"]
        return {"trial": left.pop(self.state["learned"] % len(left))} if left else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        if self.state["learns"]:
            self.state["learned"] += 1 + (result or {}).get("training_iteration", 0)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps(self.state))

    def restore(self, checkpoint_path: str) -> None:
        self.state = json.loads(Path(checkpoint_path).read_text())


def optuna() -> Searcher:
    """Make Optuna's searcher, with a seed."""
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(sampler=TPESampler(n_startup_trials=1, seed=1), metric="score", mode="max")


def positioned() -> Searcher:
    """Make the searcher that a user names at a restore without tuner.pkl; its state has the rest."""
    return Learner(learns=False)


def limited_learner() -> Searcher:
    """Make the searcher that a user names at a restore without tuner.pkl."""
    return ConcurrencyLimiter(Learner(), max_concurrent=1)


def limited_optuna() -> Searcher:
    """Make the searcher that a user names at a restore without tuner.pkl."""
    return ConcurrencyLimiter(optuna(), max_concurrent=1)


def _search(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return searcher, samples and space, as Tune's entry points name them."""
    trials = recipe["trials"]
    match recipe["search"]:
        case "grid":
            return {"space": {"trial": tune.grid_search(trials)}}
        case "position":
            return {"search_alg": Learner(trials, learns=False), "num_samples": len(trials)}
        case "learner":
            searcher = ConcurrencyLimiter(Learner(trials), max_concurrent=1)
            return {"search_alg": searcher, "num_samples": len(trials)}
        case "optuna":
            return {
                "search_alg": limited_optuna(), "num_samples": len(trials),
                "space": {"trial": tune.choice(trials), "rate": tune.uniform(0, 1)},
            }  # fmt: skip
        case other:
            raise AssertionError(other)


# --- the two ways to run an experiment ---


def make_tuner(directory: str, name: str, recipe: dict[str, Any]) -> tune.Tuner:
    """Make the Tuner of a recipe; tests.support.ray.generated_recipes draws them."""
    made = _settings(recipe)
    creators = made["creators"]
    return tune.Tuner(
        made["trainable"],
        param_space=made["config"],
        tune_config=tune.TuneConfig(
            metric="score", mode="max", max_concurrent_trials=recipe["concurrent"],
            scheduler=made["scheduler"], **creators, **made["search"],
        ),
        run_config=t.RunConfig(
            name=name, storage_path=directory, verbose=0,
            failure_config=t.FailureConfig(max_failures=recipe["max_failures"]),
            checkpoint_config=made["checkpoints"],
        ),
    )  # fmt: skip


class Run:
    """An experiment made by `tune.run`, which writes no tuner.pkl; `fit` is the call."""

    def __init__(self, directory: str, name: str, recipe: dict[str, Any]) -> None:
        made = _settings(recipe)
        self._arguments = {
            "run_or_experiment": made["trainable"], "config": made["config"],
            "name": name, "storage_path": directory, "verbose": 0, "raise_on_failed_trial": False,
            "metric": "score", "mode": "max", "max_concurrent_trials": recipe["concurrent"],
            "max_failures": recipe["max_failures"], "checkpoint_config": made["checkpoints"],
            **made["creators"], **made["search"],
        }  # fmt: skip

    def fit(self) -> None:
        tune.run(**self._arguments)


def _settings(recipe: dict[str, Any]) -> dict[str, Any]:
    search = _search(recipe)
    kept = {"num_to_keep": recipe["num_to_keep"]}
    if recipe["by_score"]:
        kept |= {"checkpoint_score_attribute": "score", "checkpoint_score_order": "max"}
    if recipe["kind"] == "class":
        kept |= {
            "checkpoint_frequency": recipe["frequency"],
            "checkpoint_at_end": recipe["checkpoint_at_end"],
        }
    asking = {"function": function_asking, "class": class_asking}[recipe["kind"]]
    return {
        "trainable": getattr(asking, recipe["resources"]),
        "config": {**decoded(recipe["config"]), **search.pop("space", {})},
        "search": search,
        "scheduler": ASHAScheduler(max_t=4, reduction_factor=2) if recipe["asha"] else None,
        "creators": {name: Named(text) for name, text in recipe["creators"].items()},
        "checkpoints": t.CheckpointConfig(**kept),
    }
