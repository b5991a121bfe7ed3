"""One trial of an experiment as its row describes it, as frozen values."""

import math
from enum import StrEnum
from functools import cached_property
from typing import Any

import msgspec

from airflow_tune_restore.experiments.raw_row import RawRow
from airflow_tune_restore.protocol.checkpoints import RecordedCheckpoint
from airflow_tune_restore.protocol.pickle_fields import PickleFields


class TrialStatus(StrEnum):
    """Ray's status words, unchanged (ray.tune.experiment.trial.Trial, 2.60)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"


UNFINISHED = frozenset({TrialStatus.PENDING, TrialStatus.RUNNING, TrialStatus.PAUSED})
"""The trials that `resume_unfinished` means: neither TERMINATED nor ERROR (Ray 2.60)."""


class TrialEnd(StrEnum):
    """The cause that ended a TERMINATED trial, as far as its row shows it."""

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


class Trial(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One row of the experiment state. A Struct, because there are thousands of them.

    Args:
        trainable_name: The name under which the trainable is registered with Tune.
        status: Status as stored. After `kill -9` of a driver it is up to one snapshot behind.
        trial_dir: Directory name inside the experiment directory; None if it never started.
        iteration: `training_iteration` of the last result, as a whole number; 0 if it never reported, or
            if the trainable reports something else under that name.
        last_result_time: Unix seconds of the last result; `-inf` if it never reported.
        start_time: Unix seconds of the start; None if it never started.
        last_interval: Seconds its last iteration took, as the trial reported it; 0 if it did not.
        unusable: Why it cannot be run: its row cannot be read, or names something unsafe. "" if it can be
            run.
        odd_fields: Names of fields whose values cannot be used, so that their defaults stand in.
        parameters: As `parameters.read_parameters` returned them, if its row was not kept.
        metric: The value of the experiment's metric, if its row was not kept (`shown_of`).
        mark: Changes with the content of its row, if all rows are shown without being kept (`Keep`).
        row: The raw row, from which the rest is decoded on demand; None if it was not kept.
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
    parameters: dict[str, str] | None = None
    metric: float | None = None
    mark: int = 0
    row: RawRow | None = None

    @property
    def last_result(self) -> dict[str, Any]:
        """The last reported result; empty if it never reported."""
        return self._kept_row.last_result()

    @cached_property
    def resources(self) -> dict[str, float]:
        """Total resources it requests, as `{"CPU": 1.0}`; empty if they cannot be read."""
        return self._kept_row.resources()

    def recorded_checkpoint(self, fields: PickleFields) -> RecordedCheckpoint | None:
        """Return the checkpoint Ray would resume from, if any; `fields` as `RawRow` has them."""
        return self._kept_row.recorded_checkpoint(fields)

    @property
    def is_finished(self) -> bool:
        """Whether it is TERMINATED or ERROR, which Ray calls finished."""
        return self.status not in UNFINISHED

    @property
    def terminated_by_itself(self) -> bool:
        """Whether it is TERMINATED by itself or by a result that it reported."""
        return self.end is not None and self.end is not TrialEnd.OUTSIDE

    @property
    def _kept_row(self) -> RawRow:
        if self.row is None:
            raise LookupError(f"the row of terminated trial {self.trial_id} was not kept")
        return self.row
