"""The experiment's own driver: one that is not dead yet, or one that a user starts between two nights.

It trains the unfinished trials of the newest state, as `Tuner.restore` does, and writes its own state.
"""

import contextlib
import json
from dataclasses import dataclass, replace

from airflow_tune_restore.exceptions import KeyNotFoundError, StorageError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.checkpoints import checkpoint_index
from airflow_tune_restore.storage.base import ObjectStore
from tests.simulation.sweeps import (
    CHECKPOINT_EVERY,
    STATE_NAME,
    Sweep,
    TrialFiles,
    checkpoint_body,
    checkpoint_name,
    result_row,
    state_body,
)
from tests.simulation.world import World

STATE_SECONDS = 30.0
"""It writes its state this often, and when a trial ends."""


@dataclass(frozen=True)
class DriverLife:
    """A driver.

    Args:
        starts: When a user starts it; None if it is the first driver, which has not died yet.
        ends: When it is killed, if it has not ended before.
        pause: Seconds between two iterations of a trial.
    """

    starts: float | None
    ends: float
    pause: float


def run_driver(world: World, store: ObjectStore, sweep: Sweep, life: DriverLife) -> None:
    """Train the unfinished trials until all have ended, or the store cannot be reached."""
    with contextlib.suppress(StorageError):
        _train(world, store, sweep, life)


def _train(world: World, store: ObjectStore, sweep: Sweep, life: DriverLife) -> None:
    names = [entry.name for entry in store.list_dir() if layout.is_state_file(entry.name)]
    state = json.loads(store.get(max(names)))
    trials = [TrialFiles.from_row(row) for row in state["trial_data"]]
    name, start_time = STATE_NAME, state["stats"]["start_time"]
    if life.starts is not None:
        now = world.wall(0.0)
        name, start_time = f"experiment_state-{now:%Y-%m-%d_%H-%M-%S}.json", now.timestamp()

    def save() -> None:
        store.put(name, state_body([trial.row() for trial in trials], start_time=start_time))

    trials = [_resumed(trial) for trial in trials]
    save()
    saved_at = world.now
    while any(trial.status == "RUNNING" for trial in trials):
        for number, trial in enumerate(trials):
            if trial.status == "RUNNING":
                world.sleep(min(life.pause, STATE_SECONDS))
                trials[number] = _iterate(store, sweep, trial)
        has_ended = all(trial.status != "RUNNING" for trial in trials)
        if has_ended or world.now - saved_at > STATE_SECONDS:
            save()
            saved_at = world.now


def _resumed(trial: TrialFiles) -> TrialFiles:
    if trial.status in ("TERMINATED", "ERROR"):
        return trial
    iteration = trial.checkpoint[1] if trial.checkpoint else 0
    return replace(trial, status="RUNNING", iteration=iteration)


def _iterate(store: ObjectStore, sweep: Sweep, trial: TrialFiles) -> TrialFiles:
    iteration, name = trial.iteration + 1, None
    if iteration % CHECKPOINT_EVERY == 0:
        present = [entry.name for entry in store.list_dir(trial.trial_dir)]
        name = checkpoint_name(max(map(checkpoint_index, present), default=-1) + 1)
        store.put(f"{trial.trial_dir}/{name}/state.json", checkpoint_body(iteration))
    key = f"{trial.trial_dir}/{layout.RESULT_FILE}"
    try:
        rows = store.get(key).decode()
    except KeyNotFoundError:
        rows = ""
    store.put(key, (rows + result_row(iteration, name)).encode())
    status = "TERMINATED" if iteration >= sweep.target(trial.trial_id) else "RUNNING"
    checkpoint = (name, iteration) if name else trial.checkpoint
    return replace(trial, status=status, iteration=iteration, checkpoint=checkpoint)
