"""What one row of an experiment says, as frozen values."""

import math
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

import msgspec

from airflow_tune_restore.protocol.checkpoints import RecordedCheckpoint


class TrialStatus(StrEnum):
    """Ray's status words, unchanged (ray.tune.experiment.trial.Trial, 2.60)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"


UNFINISHED = frozenset({TrialStatus.PENDING, TrialStatus.RUNNING, TrialStatus.PAUSED})
"""What `resume_unfinished` speaks of: all that is neither TERMINATED nor ERROR (Ray 2.60)."""


class TrialEnd(StrEnum):
    """By what a TERMINATED trial came to its end, as far as its row shows."""

    ITSELF = "itself"  # its function returned
    CRITERION = "criterion"  # a `stop` criterion was met
    RESULT = "result"  # a function's, with a result: a scheduler's or a stopper's decision
    DONE = "done"  # a class's, with a result: its own, a scheduler's or a stopper's decision
    UNMARKED = "unmarked"  # its row is older than its end: it returned, or was stopped while paused
    OUTSIDE = "outside"  # it was not done: a budget, a stopper, another trial's failure, a restore


def follow_metric(result: Any, name: str) -> Any:
    """Return a metric by Ray's flat name, `a/b` for `{"a": {"b": …}}`; None if it is not there."""
    for part in [name] if name in result else name.split("/"):
        result = result.get(part) if isinstance(result, dict) else None
    return result


class TrialDetails(Protocol):
    """The parts of a row that are decoded only when somebody asks: an experiment has thousands."""

    def config(self) -> dict[str, Any]:
        """Return the full config."""
        ...

    def evaluated_params(self) -> dict[str, Any]:
        """Return its sampled part."""
        ...

    def last_result(self) -> dict[str, Any]:
        """Return the last result."""
        ...

    def resources(self) -> dict[str, float]:
        """Return the summed resources."""
        ...

    def recorded_checkpoint(self) -> RecordedCheckpoint | None:
        """Return the checkpoint to resume from."""
        ...


class Trial(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One row of the experiment state. A Struct, because there are thousands of them.

    Args:
        trial_id: Ray's id.
        trainable_name: The name under which the trainable is registered with Tune.
        status: Status as stored. After `kill -9` of a driver it is up to one snapshot behind.
        trial_dir: Directory name inside the experiment directory; None for one never started.
        iteration: `training_iteration` of the last result, as a whole number; 0 if it never reported, or
            if the trainable reports something else under that name.
        last_result_time: Unix seconds of the last result; `-inf` if it never reported.
        start_time: Unix seconds of the start; None if it never started.
        last_interval: Seconds its last iteration took, as it said itself; 0 if it did not.
        end: By what it came to its end; None if it is not TERMINATED.
        unusable: Why nothing can be done with it: its row cannot be read, or names something unsafe. ""
            if it can be run.
        odd_fields: Names of fields whose values cannot be used, so that their defaults stand in.
        details: Decodes the rest on demand; None if its row was let go of.
    """

    trial_id: str
    trainable_name: str
    status: TrialStatus
    trial_dir: str | None
    iteration: int = 0
    last_result_time: float = -math.inf
    start_time: float | None = None
    last_interval: float = 0.0
    end: TrialEnd | None = None
    unusable: str = ""
    odd_fields: tuple[str, ...] = ()
    details: TrialDetails | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The full config; values JSON cannot hold appear as Ray wrote them."""
        return self._row.config()

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """The sampled part of the config."""
        return self._row.evaluated_params()

    @property
    def last_result(self) -> dict[str, Any]:
        """The last reported result; empty if it never reported."""
        return self._row.last_result()

    @cached_property
    def resources(self) -> dict[str, float]:
        """Total resources it asks for, as `{"CPU": 1.0}`; empty if they cannot be read."""
        return self._row.resources()

    @cached_property
    def recorded_checkpoint(self) -> RecordedCheckpoint | None:
        """The checkpoint Ray would resume from, if any."""
        return self._row.recorded_checkpoint()

    @property
    def is_finished(self) -> bool:
        """Whether Ray would call it finished: TERMINATED or ERROR."""
        return self.status not in UNFINISHED

    @property
    def terminated_by_itself(self) -> bool:
        """Whether it is TERMINATED by itself or by what it had reported."""
        return self.end is not None and self.end is not TrialEnd.OUTSIDE

    @property
    def _row(self) -> TrialDetails:
        if self.details is None:
            raise LookupError(
                f"the row of terminated trial {self.trial_id} was not kept (keep_terminated_rows)"
            )
        return self.details
