"""The part of plan.json that a whole-experiment run needs. Other fields of the plan are ignored.

`restore.plan` writes and reads the whole plan; it needs msgspec, which Ray images lack. Standard library
only.
"""

import json
from dataclasses import dataclass, replace

from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.record_fields import (
    Count,
    Line,
    Name,
    Record,
    Segment,
    StateName,
)
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import RUN_ACTIONS, RunnerRequest, TrialAction
from airflow_tune_restore.storage.base import ObjectStore


@dataclass(frozen=True, kw_only=True)
class PlannedState(Record):
    """The state file that a plan was made from; its name is "" if the experiment never had one."""

    name: StateName


@dataclass(frozen=True, kw_only=True)
class PlannedTrial(Record):
    """One trial of a plan.

    Args:
        trial_id: Id in the state that the plan was made from.
        checkpoint: Directory name of the checkpoint it starts from; None to start from scratch.
        iteration: `training_iteration` of that checkpoint.
        new_trial_id: Id of the new trial, for `restart`.
    """

    trial_id: Name
    action: TrialAction
    checkpoint: Segment | None = None
    iteration: Count = 0
    new_trial_id: Name | None = None

    @property
    def final_trial_id(self) -> str:
        """The id that its row has after the restore."""
        return self.new_trial_id or self.trial_id

    @property
    def runs(self) -> bool:
        """Whether the restore runs it."""
        return self.action in RUN_ACTIONS

    def request_alone(self, whole: RunnerRequest) -> RunnerRequest:
        """Return the request of a whole-experiment run, narrowed to this trial."""
        return replace(
            whole,
            trial_id=self.trial_id,
            action=self.action,
            checkpoint=self.checkpoint,
            iteration=self.iteration,
            new_trial_id=self.new_trial_id,
        )


@dataclass(frozen=True, kw_only=True)
class PlannedExperiment(Record):
    """All trials of a plan.

    Args:
        trials: One entry per row of the state `base`.
        continues_search: Whether the run also runs the samples that are left.
        samples_left: How many samples the searcher has not suggested; None if unknown.
        searcher_lost: Why the searcher is lost, if it is needed; "" otherwise.
        own_tasks: How many of the trials to run have a task of their own, the first ones; None: all.
    """

    base: PlannedState
    trials: list[PlannedTrial]
    continues_search: bool = False
    samples_left: Count | None = None
    searcher_lost: Line = ""
    own_tasks: Count | None = None

    @property
    def rest(self) -> list[PlannedTrial]:
        """The trials to run that one task follows together."""
        to_run = [trial for trial in self.trials if trial.runs]
        return [] if self.own_tasks is None else to_run[self.own_tasks :]


def read_planned(store: ObjectStore, restore_id: str) -> PlannedExperiment:
    """Read the plan of a restore; raises as `read_record` does."""
    return read_record(store, layout.plan_key(restore_id), _parse, max_bytes=layout.MAX_PLAN_BYTES)


def _parse(body: bytes) -> PlannedExperiment:
    # as `restore.plan.decode`; a plan may exceed MAX_DOCUMENT_BYTES
    bounded_json.check_values(body)
    with bounded_json.alone(len(body)):
        return PlannedExperiment.read(json.loads(body))
