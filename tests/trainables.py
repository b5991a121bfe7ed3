"""Trainables of every kind, importable by runners and Ray's workers, for Ray 2.40 and newest.

A trial whose config says `fails_at` raises there, and one that says `hangs_at` sleeps there, unless
`TUNE_TEST_HEALED` is set in the environment: the night after, the cause is gone.
"""

import json
import os
import re
import tempfile
import time
from pathlib import Path

from ray import train as ray_train  # noqa: TID253  only runners and Ray's workers import this
from ray import tune  # noqa: TID253

ITERATIONS = 6
Checkpoint = getattr(tune, "Checkpoint", ray_train.Checkpoint)
RunConfig = getattr(tune, "RunConfig", ray_train.RunConfig)
CheckpointConfig = getattr(tune, "CheckpointConfig", ray_train.CheckpointConfig)
FailureConfig = getattr(tune, "FailureConfig", ray_train.FailureConfig)
_session = tune if hasattr(tune, "Checkpoint") else ray_train


def healed() -> bool:
    return os.environ.get("TUNE_TEST_HEALED") == "1"


def misfortune(config: dict, iteration: int) -> None:
    """Fail or hang, if this is where it happens."""
    once = os.environ.get("TUNE_TEST_FAILS_ONCE")
    if once and iteration == 5 and not Path(once).exists():
        Path(once).touch()
        raise RuntimeError("out of luck once")
    role = config.get("role", "none")
    if role == os.environ.get("TUNE_TEST_FAILING_ROLE", ""):
        raise RuntimeError(f"out of luck again at iteration {iteration}")
    if role == os.environ.get("TUNE_TEST_DYING_ROLE", ""):
        os._exit(7)
    if healed():
        time.sleep(float(os.environ.get("TUNE_TEST_STEP_SECONDS", "0")))
        _wait_at_gate(iteration)
        return
    if config.get("fails_at") == iteration:
        raise RuntimeError(f"out of luck at iteration {iteration}")
    if config.get("hangs_at") == iteration or (
        config.get("second_hangs") and iteration == 3 and _is_second_drawn()
    ):
        time.sleep(3600)


def _wait_at_gate(iteration: int) -> None:
    before, _, path = os.environ.get("TUNE_TEST_GATE", "").partition(":")
    while path and iteration >= int(before) and not Path(path).exists():
        time.sleep(0.05)


def _is_second_drawn() -> bool:
    """Whether this trial's directory says that it was the second sample of its searcher."""
    name = Path(_session.get_context().get_trial_dir()).name
    return re.match(r"counting_([0-9a-f]{8}_2_|[0-9a-f]{5}_00001_)", name) is not None


def memory_asked() -> float:
    """Return the memory of the placement group we run in, in bytes."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    bundles = group.bundle_specs if group is not None else []
    return sum(bundle.get("memory", 0.0) for bundle in bundles)


def team() -> dict:
    """Return whose environment we run in, if somebody gave us one."""
    name = os.environ.get("TUNE_TEST_TEAM")
    return {"team": name} if name else {}


def journal(config: dict, iteration: int, event: str) -> None:
    """Write down which process trains which trial when; one clock for all processes of a machine."""
    if path := os.environ.get("TUNE_TEST_JOURNAL"):
        entry = {"trial": config["role"], "iteration": iteration, "event": event}
        line = json.dumps({**entry, "pid": os.getpid(), "at": time.monotonic()}) + "\n"
        with Path(path).open("ab", buffering=0) as file:
            file.write(line.encode())


def counting(config: dict) -> None:
    """Count to `iterations`, a checkpoint at every `checkpoint_every`-th."""
    start, checkpoint = 0, _session.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["iteration"]
    for iteration in range(start + 1, config.get("iterations", ITERATIONS) + 1):
        journal(config, iteration, "begins")
        misfortune(config, iteration)
        journal(config, iteration, "ends")
        if os.environ.get("TUNE_TEST_PRINTS"):
            print(f"{config['role']} has done {iteration}", flush=True)
        metrics = {
            "score": iteration * config.get("factor", 1),
            "started_from": start,
            "pid_of_worker": os.getpid(),
            "memory_asked": memory_asked(),
            **team(),
        }
        if iteration % config.get("checkpoint_every", 1):
            _session.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"iteration": iteration}))
            _session.report(metrics, checkpoint=Checkpoint.from_directory(directory))


def other(config: dict) -> None:
    """Not the trainable any experiment was made with."""


def with_table(config: dict, table: list) -> None:
    assert table == [1, 2, 3]
    counting(config)


counting_with_parameters = tune.with_parameters(with_table, table=[1, 2, 3])
counting_with_resources = tune.with_resources(counting, {"cpu": 1})
tune.register_trainable("counting_by_name", counting)


class Counter(tune.Trainable):
    """The same as a class; Tune decides when to checkpoint."""

    def setup(self, config: dict) -> None:
        self.count = self.started_from = 0

    def step(self) -> dict:
        misfortune(self.config, self.count + 1)
        self.count += 1
        done = self.count >= self.config.get("iterations", ITERATIONS)
        return {"score": self.count, "started_from": self.started_from, "done": done, **team()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "count.json").write_text(json.dumps(self.count))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.count = self.started_from = json.loads(Path(checkpoint_dir, "count.json").read_text())


class ScaledCounter(Counter):
    """The same, with a score that differs between trials: a scheduler stops some of them."""

    def step(self) -> dict:
        result = super().step()
        return {**result, "score": result["score"] * self.config["factor"]}


class Recorder(tune.Callback):
    """A user's callback, pickled into tuner.pkl: counts results, in a file beside the experiment too."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.seen = 0

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        self.seen += 1
        if os.environ.get("TUNE_TEST_RECORD"):
            Path(os.environ["TUNE_TEST_RECORD"]).write_text(str(self.seen))

    def get_state(self) -> dict:
        return {"seen": self.seen}

    def set_state(self, state: dict) -> None:
        self.seen = state["seen"]


class StopAtFive(tune.Stopper):
    """A user's stopper, pickled into tuner.pkl."""

    def __call__(self, trial_id: str, result: dict) -> bool:
        return result["training_iteration"] >= 5

    def stop_all(self) -> bool:
        return False


def fitting_param_space() -> dict:
    return {"role": "x", "fails_at": 4}


def limited_space() -> dict:
    return {"role": "fails", "fails_at": 4, "factor": tune.uniform(1, 2)}


UNFITTING_PARAM_SPACE = {"learning_rate": 0.1}


def make_trainer():
    """One of Ray Train's trainers that Tune takes (`RAY_TRAIN_V2_ENABLED=0`)."""
    from ray.train.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer(
        train_loop_per_worker=train_loop,
        scaling_config=ray_train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
    )


def train_loop(config: dict) -> None:
    start, checkpoint = 0, ray_train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["iteration"]
    for iteration in range(start + 1, ITERATIONS + 1):
        misfortune(config, iteration)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"iteration": iteration}))
            ray_train.report(
                {"score": iteration, "started_from": start},
                checkpoint=ray_train.Checkpoint.from_directory(directory),
            )


def __getattr__(name: str):
    if name == "trainer":  # made when asked for: Ray Train V2 cannot make it
        return make_trainer()
    raise AttributeError(name)
