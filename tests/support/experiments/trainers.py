"""Experiments of real trainers, made where Ray is. Their trials fail as long as `cause` exists.

Torch and RLlib are installed for the whole matrix only; each is imported by what needs it.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ray import train as ray_train  # noqa: TID253  only hosts and Ray's workers import this
from ray import tune  # noqa: TID253

from tests import trainables as t

ITERATIONS = 4
FAILS_AT = 3


def _fail_if_due(config: dict, iteration: int) -> None:
    if iteration == FAILS_AT and Path(config["cause"]).exists():
        raise RuntimeError("out of luck")


def _tuner(directory: str, name: str, trainable: Any, space: dict, **run: Any) -> tune.Tuner:
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(metric="score", mode="max"),
        run_config=t.RunConfig(name=name, storage_path=directory, verbose=0, **run),
    )


# --- Ray Train of today: a function trainable that starts a trainer (RAY_TRAIN_V2_ENABLED=1) ---


def launch(config: dict) -> None:
    """Start a Train run that is named after the trial, so that a resumed trial goes on with it."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    _launch(DataParallelTrainer, loop, config)


def launch_torch(config: dict) -> None:
    from ray.train.torch import TorchTrainer

    _launch(TorchTrainer, torch_loop, config)


def _launch(trainer: Any, train_loop: Any, config: dict) -> None:
    from ray.tune.integration.ray_train import TuneReportCallback

    trainer(
        train_loop_per_worker=train_loop,
        train_loop_config=config,
        scaling_config=ray_train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray_train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=config["runs"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def loop(config: dict) -> None:
    start, checkpoint = 0, ray_train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())
    for iteration in range(start + 1, ITERATIONS + 1):
        _fail_if_due(config, iteration)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps(iteration))
            ray_train.report(
                {"score": iteration, "started_from": start},
                checkpoint=ray_train.Checkpoint.from_directory(directory),
            )


def torch_loop(config: dict) -> None:
    """Fit y = 2x + 1 with a linear model: a real model and a real optimizer, saved and loaded."""
    import torch

    torch.manual_seed(1)
    model = ray_train.torch.prepare_model(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)
    start, checkpoint = 0, ray_train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            saved = torch.load(Path(directory, "model.pt"))
        start = saved["iteration"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    x = torch.linspace(-1, 1, 32).unsqueeze(1)
    for iteration in range(start + 1, ITERATIONS + 1):
        _fail_if_due(config, iteration)
        loss = torch.nn.functional.mse_loss(model(x), 2 * x + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with tempfile.TemporaryDirectory() as directory:
            saved = {"iteration": iteration, "model": model.state_dict(),
                     "optimizer": optimizer.state_dict()}  # fmt: skip
            torch.save(saved, Path(directory, "model.pt"))
            ray_train.report(
                {"score": -loss.item(), "started_from": start},
                checkpoint=ray_train.Checkpoint.from_directory(directory),
            )


def launching(directory: str, name: str, cause: str, runs: str) -> tune.Tuner:
    return _tuner(directory, name, launch, {"cause": cause, "runs": runs})


def launching_torch(directory: str, name: str, cause: str, runs: str) -> tune.Tuner:
    return _tuner(directory, name, launch_torch, {"cause": cause, "runs": runs, "lr": 0.1})


# --- the older Tuner(trainer) (RAY_TRAIN_V2_ENABLED=0) ---


def make_torch_trainer() -> Any:
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        train_loop_per_worker=torch_loop,
        scaling_config=ray_train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
    )


def torch_trainer_tuner(directory: str, name: str, cause: str) -> tune.Tuner:
    space = {"train_loop_config": {"cause": cause, "lr": 0.1}}
    return _tuner(directory, name, make_torch_trainer(), space)


def __getattr__(name: str) -> Any:
    if name == "torch_trainer":  # made when asked for: Ray Train of today cannot make it
        return make_torch_trainer()
    raise AttributeError(name)


# --- LightGBM with its Tune callback ---


def boost(config: dict) -> None:
    """Boost a tree an iteration; go on from the saved booster."""
    import lightgbm
    import numpy
    from ray.tune.integration.lightgbm import TuneReportCheckpointCallback

    def fail(env: Any) -> None:
        _fail_if_due(config, env.iteration + 1)

    random = numpy.random.default_rng(1)
    x = random.random((64, 3))
    data = lightgbm.Dataset(x, label=x @ [1, 2, 3])
    done, checkpoint = None, tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            done = lightgbm.Booster(model_file=str(Path(directory, "model.txt")))
    fail.order = 0
    lightgbm.train(
        {"objective": "regression", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 4},
        data,
        num_boost_round=ITERATIONS - (done.current_iteration() if done else 0),
        valid_sets=[data],
        valid_names=["eval"],
        init_model=done,
        callbacks=[fail, TuneReportCheckpointCallback(
            {"loss": "eval-l2"}, frequency=1,
            results_postprocessing_fn=lambda metrics: {**metrics, "score": -metrics["loss"]},
        )],
    )  # fmt: skip


def boosting(directory: str, name: str, cause: str) -> tune.Tuner:
    return _tuner(directory, name, boost, {"cause": cause})


# --- an RLlib algorithm by its registered name ---


def reinforced(directory: str, name: str) -> tune.Tuner:
    """PPO on CartPole, saved at every iteration, stopped after four."""
    from ray.rllib.algorithms.ppo import PPOConfig

    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
    )
    return tune.Tuner(
        "PPO",
        param_space=config,
        run_config=t.RunConfig(
            name=name, storage_path=directory, verbose=0,
            stop={"training_iteration": ITERATIONS},
            checkpoint_config=t.CheckpointConfig(checkpoint_frequency=1),
        ),
    )  # fmt: skip
