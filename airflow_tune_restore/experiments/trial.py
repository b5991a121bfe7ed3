"""What one row of an experiment says, as frozen values."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class TrialStatus(StrEnum):
    """Ray's status words, unchanged (ray.tune.experiment.trial.Trial, 2.60)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"


UNFINISHED = frozenset({TrialStatus.PENDING, TrialStatus.RUNNING, TrialStatus.PAUSED})
"""What `resume_unfinished` speaks of: all that is neither TERMINATED nor ERROR (Ray 2.60)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One row of the experiment state.

    Args:
        trial_id: Ray's id.
        trainable_name: The name under which the trainable is registered with Tune.
        status: Status as stored. After `kill -9` of a driver it is up to one snapshot behind.
        trial_dir: Directory name inside the experiment directory; None for one never started.
        experiment_tag: Ray's tag, as `3_x=4`.
        config: The full config; values JSON cannot hold appear as Ray wrote them.
        evaluated_params: The sampled part of the config.
        max_failures: Failures Ray retries by itself; negative means without limit.
        num_failures: Failures so far.
        error_file: Name of the error text in the trial directory, if the last attempt failed.
        iteration: `training_iteration` of the last result; 0 if it never reported.
        last_result: The last reported result; empty if it never reported.
        last_result_time: Unix seconds of the last result; `-inf` if it never reported.
        start_time: Unix seconds of the start; None if it never started.
        resources: Total resources it asks for, as `{"CPU": 1.0}`; empty if not readable.
        recorded_checkpoint: Directory name of the checkpoint Ray would resume from, if any.

    """

    trial_id: str
    trainable_name: str
    status: TrialStatus
    trial_dir: str | None
    experiment_tag: str
    config: dict[str, Any]
    evaluated_params: dict[str, Any]
    max_failures: int
    num_failures: int
    error_file: str | None
    iteration: int
    last_result: dict[str, Any]
    last_result_time: float
    start_time: float | None
    resources: dict[str, float]
    recorded_checkpoint: str | None

    @property
    def is_finished(self) -> bool:
        """Whether Ray would call it finished: TERMINATED or ERROR."""
        return self.status not in UNFINISHED
