"""The experiments of the simulation, in Ray's format: rows, states, result rows and checkpoints.

Small on purpose, and made without Ray. A trial reports `score = 10 * iteration`, so that its rows show
whether they are its own, and saves a checkpoint at every second iteration.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

STATE_NAME = "experiment_state-2026-11-29_01-00-00.json"
SEARCHER_NAME = "basic-variant-state-2026-11-29_01-00-00.json"
STARTED_AT = 1_795_914_000.0
"""Unix seconds at which the driver of the failed sweep started: 2026-11-29 01:00 UTC.

An hour before the first night, so that a store whose clock is hours behind commits before the start.
"""

CHECKPOINT_EVERY = 2
TRAINABLE = "train"


@dataclass(frozen=True)
class TrialFiles:
    """A trial: what its row says, and what it has reported.

    Args:
        iteration: Of its last result.
        checkpoint: Directory name and iteration of its latest checkpoint; None before the first.
    """

    trial_id: str
    status: str = "PENDING"
    iteration: int = 0
    checkpoint: tuple[str, int] | None = None

    @property
    def trial_dir(self) -> str:
        """Its directory."""
        return f"train_{self.trial_id}"

    def row(self) -> list[str]:
        """Return its row in a state: `[trial_json, metadata_json]`."""
        return list(_row(self))

    @staticmethod
    def from_row(row: list[str]) -> "TrialFiles":
        """Read a row that `row` made."""
        return _read_row(*row)


@lru_cache(maxsize=4096)
def _read_row(head: str, metadata: str) -> TrialFiles:
    trial, run = json.loads(head), json.loads(metadata)
    checkpoint = run["simulated_checkpoint"]
    return TrialFiles(
        trial["trial_id"],
        trial["status"],
        run["last_result"].get("training_iteration", 0),
        checkpoint and (checkpoint[0], checkpoint[1]),
    )


@lru_cache(maxsize=4096)  # restarted trials get ids that no other world has
def _row(trial: TrialFiles) -> tuple[str, str]:
    result = {"training_iteration": trial.iteration, "score": 10 * trial.iteration}
    result["done"] = trial.status == "TERMINATED"
    is_error = trial.status == "ERROR"
    head = {
        "trial_id": trial.trial_id,
        "trainable_name": TRAINABLE,
        "status": trial.status,
        "relative_logdir": trial.trial_dir,
        "config": {"lr": 0.1},
        "evaluated_params": {"lr": 0.1},
        "max_failures": 0,
    }
    run = {
        "last_result": result if trial.iteration else {},
        "last_result_time": STARTED_AT + 60.0 * trial.iteration if trial.iteration else None,
        "start_time": STARTED_AT,
        "num_failures": int(is_error),
        "error_filename": "error.txt" if is_error else None,
        "checkpoint_manager": _manager(*trial.checkpoint).hex() if trial.checkpoint else None,
        "simulated_checkpoint": trial.checkpoint,
    }
    return json.dumps(head), json.dumps(run)


def _manager(name: str, iteration: int) -> bytes:
    """Return a pickle as of Ray's checkpoint manager, which only its reader knows."""
    checkpoint = _pickled("Checkpoint", {"path": _text(f"sweeps/one/{name}")})
    metrics = b"}(" + _text("training_iteration") + b"K" + bytes([iteration]) + b"u"
    latest = _pickled("_TrainingResult", {"checkpoint": checkpoint, "metrics": metrics})
    return (
        b"\x80\x04" + _pickled("_CheckpointManager", {"_latest_checkpoint_result": latest}) + b"."
    )


def _pickled(name: str, fields: Mapping[str, bytes]) -> bytes:
    state = b"".join(_text(key) + value for key, value in fields.items())
    return b"cray.tune\n" + name.encode() + b"\n)\x81}(" + state + b"ub"


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@cache
def result_row(iteration: int, checkpoint: str | None) -> str:
    """Return one line of result.json."""
    row = {
        "training_iteration": iteration,
        "score": 10 * iteration,
        "checkpoint_dir_name": checkpoint,
    }
    return json.dumps(row) + "\n"


@cache
def checkpoint_body(iteration: int) -> bytes:
    """Return the one file of a checkpoint."""
    return json.dumps({"iteration": iteration}).encode()


def state_body(rows: list[list[str]], *, start_time: float = STARTED_AT, **stats: Any) -> bytes:
    """Return a state."""
    state = {
        "trial_data": rows,
        "runner_data": {"checkpoint_period": "auto"},
        "stats": {"start_time": start_time, **stats},
    }
    return json.dumps(state).encode()


@dataclass(frozen=True)
class Sweep:
    """An experiment as its dead driver left it.

    Args:
        trials: Its trials as its newest state has them.
        targets: At which iteration each ends.
        unsaved: Iterations that a trial reported after the state, by trial id.
        broken: Trials that always raise after this iteration, by trial id.
        strategy: How it is restored.
        restarts: Whether trials with an error start over, in place of being resumed.
        pace: Seconds that an iteration takes at most.
        samples: How many samples its search draws in all; None if all are drawn.
        slots: How many trials a shared driver has room for at the same time.
    """

    name: str
    trials: tuple[TrialFiles, ...]
    targets: Mapping[str, int]
    unsaved: Mapping[str, int] = field(default_factory=dict)
    broken: Mapping[str, int] = field(default_factory=dict)
    strategy: str = "auto"
    restarts: bool = False
    pace: float = 7.0
    samples: int | None = None
    slots: int = 4

    def target(self, trial_id: str) -> int:
        """Return the iteration at which a trial ends; samples and restarted trials have one, too."""
        return self.targets.get(trial_id, 4)

    @property
    def total(self) -> int:
        """How many samples its search draws in all."""
        return len(self.trials) if self.samples is None else self.samples

    @property
    def draws(self) -> int:
        """How many samples were never drawn."""
        return self.total - len(self.trials)

    def files(self) -> dict[str, bytes]:
        """Return all files of the experiment directory."""
        return dict(_files(self.name))


@cache
def searcher_body(drawn: int) -> bytes:
    """Return the state of a searcher, as `BasicVariantGenerator.save_to_dir` pickles its `__dict__`."""
    return pickle.dumps({"_total_samples": drawn, "_finished": False, "_live_trials": set()})


@cache
def _files(name: str) -> tuple[tuple[str, bytes], ...]:
    sweep = SWEEPS[name]
    files = {STATE_NAME: state_body([trial.row() for trial in sweep.trials])}
    files[SEARCHER_NAME] = searcher_body(sweep.total)
    for trial in sweep.trials:
        reported = sweep.unsaved.get(trial.trial_id, trial.iteration)
        lines = []
        for iteration in range(1, reported + 1):
            checkpoint = None
            if iteration % CHECKPOINT_EVERY == 0:
                checkpoint = checkpoint_name(iteration // CHECKPOINT_EVERY - 1)
                key = f"{trial.trial_dir}/{checkpoint}/state.json"
                files[key] = checkpoint_body(iteration)
            lines.append(result_row(iteration, checkpoint))
        if lines:
            files[f"{trial.trial_dir}/result.json"] = "".join(lines).encode()
        if trial.status == "ERROR":
            files[f"{trial.trial_dir}/error.txt"] = b"RuntimeError: of the first driver\n"
    return tuple(files.items())


def checkpoint_name(number: int) -> str:
    """Return the name of a checkpoint directory."""
    return f"checkpoint_{number:06d}"


def _trial(trial_id: str, status: str, iteration: int = 0) -> TrialFiles:
    number = iteration // CHECKPOINT_EVERY
    checkpoint = (checkpoint_name(number - 1), number * CHECKPOINT_EVERY) if number else None
    return TrialFiles(trial_id, status, iteration, checkpoint)


_SMALL = Sweep(
    "small",
    (_trial("done", "TERMINATED", 4), _trial("bad", "ERROR", 3), _trial("hung", "RUNNING", 2)),
    {"done": 4, "bad": 5, "hung": 4},
    unsaved={"hung": 3},
)
_SHARED = replace(_SMALL, name="shared", strategy="shared_driver")
_MANY = tuple(
    _trial(f"t{number}", "RUNNING" if number % 2 else "ERROR", number % 4) for number in range(7)
)
SWEEPS = {
    sweep.name: sweep
    for sweep in (
        _SMALL,
        Sweep("one", (_trial("only", "RUNNING", 1),), {"only": 4}),
        replace(_SMALL, name="broken", broken={"bad": 4}),
        replace(_SMALL, name="restarted", restarts=True),
        replace(_SMALL, name="slow", pace=200.0),
        replace(_SMALL, name="slow-whole", pace=200.0, strategy="whole_experiment"),
        replace(_SMALL, name="whole", strategy="whole_experiment"),
        replace(_SMALL, name="whole-broken", strategy="whole_experiment", broken={"bad": 4}),
        replace(_SMALL, name="search", samples=5),
        replace(_SMALL, name="search-whole", samples=4, strategy="whole_experiment"),
        _SHARED,
        replace(_SHARED, name="shared-broken", broken={"bad": 4}),
        replace(_SHARED, name="shared-restarted", restarts=True),
        replace(_SHARED, name="shared-slow", pace=200.0),
        replace(_SHARED, name="shared-many", trials=_MANY, targets={}, unsaved={}, slots=1),
    )
}
