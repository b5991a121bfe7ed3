"""Small experiments by recipe, for tests that draw them: trainables, and the Tuner that a host makes.

A trial is told all it does by its config: how many iterations, where a checkpoint, where it fails. It
fails while the file `cause` exists; the night after, somebody has removed it.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ray import tune  # noqa: TID253  only hosts and Ray's workers import this

from tests import trainables as t


def fail_if_due(config: dict, iteration: int) -> None:
    if config.get("fails_at") == iteration and Path(config["cause"]).exists():
        raise RuntimeError(f"out of luck at iteration {iteration}")


def function(config: dict) -> None:
    """A function trainable, by the trial's recipe."""
    trial = config["trial"]
    start, checkpoint = 0, t._session.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())
    for iteration in range(start + 1, trial["iterations"] + 1):
        fail_if_due(trial, iteration)
        metrics = {"score": score(trial, iteration), "started_from": start}
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
        fail_if_due(trial, self.count + 1)
        self.count += 1
        return {
            "score": score(trial, self.count),
            "started_from": self.started_from,
            "done": self.count >= trial["iterations"],
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "state.json").write_text(json.dumps(self.count))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.count = self.started_from = json.loads(Path(checkpoint_dir, "state.json").read_text())


def score(trial: dict, iteration: int) -> int:
    """Up and down, so that the best checkpoint is not always the newest."""
    return iteration * trial["factor"] % 7


TRAINABLES: dict[str, Any] = {"function": function, "class": Class}


def make_tuner(directory: str, name: str, recipe: dict[str, Any]) -> tune.Tuner:
    """Make the Tuner of a recipe; tests.support.ray.generated_restores draws them."""
    is_class = recipe["kind"] == "class"
    kept = {"num_to_keep": recipe["num_to_keep"]}
    if recipe["by_score"]:
        kept |= {"checkpoint_score_attribute": "score", "checkpoint_score_order": "max"}
    if is_class:
        kept |= {
            "checkpoint_frequency": recipe["frequency"],
            "checkpoint_at_end": recipe["checkpoint_at_end"],
        }
    return tune.Tuner(
        tune.with_resources(TRAINABLES[recipe["kind"]], {"cpu": recipe["cpus"]}),
        param_space={"trial": tune.grid_search(recipe["trials"])},
        tune_config=tune.TuneConfig(
            metric="score", mode="max", max_concurrent_trials=recipe["concurrent"],
        ),
        run_config=t.RunConfig(
            name=name, storage_path=directory, verbose=0,
            failure_config=t.FailureConfig(max_failures=recipe["max_failures"]),
            checkpoint_config=t.CheckpointConfig(**kept),
        ),
    )  # fmt: skip
