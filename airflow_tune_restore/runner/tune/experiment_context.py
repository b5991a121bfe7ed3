"""The context of a whole-experiment run: its plan, and the states of its trials."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.tune.experiment import Trial

from airflow_tune_restore.exceptions import RunnerError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.planned import PlannedExperiment
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.protocol.request import Result, RunnerRequest, TrialAction
from airflow_tune_restore.runner.outcome import INTERRUPTED, Ending
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.tune.controller import AttemptContext


@dataclass(kw_only=True)
class ExperimentContext(AttemptContext):
    """The context of a whole-experiment run.

    Args:
        reporter: Writes progress for the tasks of trials, and reads their stop requests.
        started_at: ISO 8601 UTC.
        stopped_trials: Ids of trials that were stopped alone; they stay unfinished.
        left_out: The exception of Ray for each trial that it cannot restore, by trial id.
        given_up: The reason for each trial that no node can hold, by trial id; each is stopped, too.
        recorded_trials: Ids of trials whose outcome was written, by this attempt or an earlier one.
        search_has_ended: Whether the searcher suggests no more samples, as of the newest snapshot.
        missing_samples: Samples that it should have suggested and did not, as of the newest snapshot.
    """

    planned: PlannedExperiment
    reporter: Reporter
    started_at: str
    stopped_trials: set[str] = field(default_factory=set)
    left_out: dict[str, Exception] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    recorded_trials: set[str] = field(default_factory=set)
    search_has_ended: bool = False
    missing_samples: int = 0

    def __post_init__(self) -> None:
        """Index the planned trials by their ids before and after the restore."""
        trials = self.planned.trials
        self._by_id = {trial.final_trial_id: trial for trial in trials}
        self._by_id |= {trial.trial_id: trial for trial in trials}
        self._rest = {trial.trial_id for trial in self.planned.rest}

    def request_for(self, trial: Trial) -> RunnerRequest:
        """Return the request for one trial alone; its action is `DRAW` for a new sample."""
        planned = self._by_id.get(trial.trial_id)
        if planned is None:
            return replace(self.request, trial_id=trial.trial_id, action=TrialAction.DRAW)
        return planned.request_alone(self.request)

    def follower_of(self, trial: Trial) -> str:
        """Return the planned trial whose task follows this one.

        It is `WHOLE_EXPERIMENT` for new samples, and for trials without a task of their own.
        """
        request = self.request_for(trial)
        is_of_rest = request.action == TrialAction.DRAW or request.trial_id in self._rest
        return layout.WHOLE_EXPERIMENT if is_of_rest else request.trial_id

    @property
    def has_ended(self) -> bool:
        """Whether all trials to run have ended, and were saved so."""
        is_searched = self.search_has_ended and not self.missing_samples
        return is_searched and bool(self.saved) and not self._unfinished()

    def counts_for_size(self, row: str) -> bool:
        """Return True for the trials to run; for all if samples follow, whose size is not known yet."""
        planned = self._by_id.get(read_trial_id([row]))  # a trial without an id cannot run
        return self.planned.continues_search or (planned is not None and planned.runs)

    def to_run(self) -> set[str]:
        """Return the planned ids of the trials to run."""
        return {trial.trial_id for trial in self.planned.trials if trial.runs}

    def close(self) -> None:
        """Write the last progress."""
        self.reporter.stop()

    def judge(self, *, was_stopped: bool) -> Ending:
        """Return how the run ended; the outcome of each trial has the end of this trial."""
        if self.has_ended:
            return Ending(Result.FINISHED)
        if was_stopped and self.saved:
            return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; a snapshot was saved")
        raise RunnerError(
            f"Ray ended the run with {counted(len(self._unfinished()), 'unfinished trial')} and "
            f"{counted(self.missing_samples, 'sample')} not suggested, or its last "
            "snapshot could not be saved; see the log above."
        )

    def _unfinished(self) -> list[str]:
        ended = (Trial.TERMINATED, Trial.ERROR)
        return [trial_id for trial_id, status in self.saved.items() if status not in ended]


def read_trial_id(row: Sequence[str]) -> str:
    """Return the trial id in a row of Ray's state; a phrase for messages if the row is damaged."""
    try:
        trial: Any = json.loads(row[0])
        return str(trial["trial_id"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return "in a damaged row"
