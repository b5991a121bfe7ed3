"""A whole experiment: all its trials in one run, with its own scheduler and searcher.

Differs from `Tuner.restore(…).fit()` in this: what becomes of each trial is what the plan says; results
that a searcher missed are told to it first; a single trial can be stopped, and stays unfinished;
and the state of the searcher is saved with the snapshot it belongs to, not before or after it.
"""

import copy
import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.tune_config import ResumeConfig

from airflow_tune_restore.exceptions import NoRoomError, RunnerError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import (
    Result,
    RunnerOutcome,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.runner.outcome import build_outcome, error_of
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.tune import checkpoints, scheduler, searcher
from airflow_tune_restore.runner.tune.controller import GuardedController, Scope
from airflow_tune_restore.runner.tune.private_api import replaced, version
from airflow_tune_restore.runner.tune.result_files import prepare_results

RESUMED_LATER = Trial.PAUSED
"""Ray's status of a trial that waits to go on: what one is saved as that was stopped alone."""

_DRAWN_TOO_LATE = (
    "It was drawn in this run, after its Ray had been made; if the machine has as much, restore the "
    "experiment again: the next Ray is made for this trial, too."
)

_TO_RUN = ("resume", "restart")

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ExperimentScope(Scope):
    """A whole experiment.

    Args:
        planned: `plan.json` as plain values.
        reporter: Tells tasks of their trials, and of their wish to stop them.
        started_at: ISO 8601 UTC.
        held: Trials that were stopped alone; they stay unfinished.
        left_out: What Ray raised about a trial that it cannot restore, by its id.
        given_up: Why no node can hold a trial, by its id; each is held, too.
        told: Trials whose outcome was recorded.
        is_drawn: Whether the searcher has no more samples to draw, as of the newest snapshot.
        missing: Samples that are left although it has none to draw, as of the newest snapshot.

    """

    planned: dict[str, Any]
    reporter: Reporter
    started_at: str
    held: set[str] = field(default_factory=set)
    left_out: dict[str, Exception] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    is_drawn: bool = False
    missing: int = 0

    def __post_init__(self) -> None:
        """Index the plan by the ids its trials have before and after."""
        self._by_id = {trial["trial_id"]: trial for trial in self.planned["trials"]}
        self._by_final_id = {
            trial.get("new_trial_id") or trial["trial_id"]: trial
            for trial in self.planned["trials"]
        }

    def part(self, trial: Trial) -> RunnerRequest:
        """Return the request for one trial alone; `draw` stands for one the searcher has drawn."""
        planned = self._by_id.get(trial.trial_id) or self._by_final_id.get(trial.trial_id)
        if planned is None:
            return replace(self.request, trial_id=trial.trial_id, action="draw")
        names = ("trial_id", "action", "checkpoint", "iteration", "new_trial_id")
        return replace(self.request, **{name: planned.get(name) for name in names})

    @property
    def has_ended(self) -> bool:
        """Whether all that was to run has ended, and was saved so."""
        is_drawn = self.is_drawn and not self.missing
        return is_drawn and bool(self.saved) and not self._unfinished()

    def sizes(self, row: str) -> bool:
        """Those to run; all, if samples are drawn, of which the others are all that is known."""
        if self.planned.get("continues_search"):
            return True
        trial_id = _id_in([row])  # without one it cannot be run either
        planned = self._by_id.get(trial_id) or self._by_final_id.get(trial_id)
        return planned is not None and planned["action"] in _TO_RUN

    def to_run(self) -> set[str]:
        """Return the planned ids of the trials that the run is for."""
        return {key for key, trial in self._by_id.items() if trial["action"] in _TO_RUN}

    def close(self) -> None:
        """Write the last progress."""
        self.reporter.stop()

    def controller(self) -> type[GuardedController]:
        """Return the controller of a whole experiment."""
        return ExperimentController

    def judge(self, *, told_to_stop: bool) -> tuple[Result, tuple[str, str]]:
        """Say how the run ended; each trial's end is in an outcome of its own."""
        if self.has_ended:
            return Result.FINISHED, ("", "")
        if told_to_stop and self.saved:
            return Result.INTERRUPTED, ("Interrupted", "told to stop; a snapshot was saved")
        raise RunnerError(
            f"Ray ended the run with {len(self._unfinished())} trials unfinished and {self.missing} "
            "samples not drawn, or its last snapshot could not be saved; see above."
        )

    def _unfinished(self) -> list[str]:
        return [
            trial_id
            for trial_id, status in self.saved.items()
            if status not in (Trial.TERMINATED, Trial.ERROR)
        ]


class ExperimentController(GuardedController):
    """Ray's TuneController, over all trials of a restore."""

    scope: ExperimentScope

    def __init__(self, **kwargs: Any) -> None:
        self._searcher_number = 0
        if self.scope.source_key is None:
            kwargs["resume_config"] = None  # nothing to resume: a new run in its old directory
        # a lost one may stand in tuner.pkl, and have no state that could be restored
        is_lost = bool(self.scope.planned.get("searcher_lost"))
        search_alg = searcher.exhausted() if is_lost else kwargs.get("search_alg")
        kwargs["search_alg"] = searcher.shield(search_alg)
        super().__init__(**kwargs)
        self.scope.reporter.start()

    def step(self) -> None:
        """Stop the trials that are to stop, then go on as Ray does."""
        for trial_id in self.scope.reporter.take_stops():
            self._hold(trial_id)
        super().step()

    def _hold(self, wanted: str) -> None:
        """Stop trials without ending them: they are saved as unfinished, a later run resumes them."""
        if wanted == layout.WHOLE_EXPERIMENT:  # the drawing of samples, and what was drawn
            self._search_alg.set_finished()
        for trial in self._trials:
            part = self.scope.part(trial)
            owner = layout.WHOLE_EXPERIMENT if part.action == "draw" else part.trial_id
            if owner == wanted and not trial.is_finished():
                logger.info("Trial %s was told to stop; it can be resumed later.", trial.trial_id)
                self._stop_unfinished(trial)

    def give_up(self, trial_id: str, why: str) -> None:
        """Stop the trial alone; the others go on."""
        trial = self.get_trial(trial_id)
        if self.scope.request.address is None and self.scope.part(trial).action == "draw":
            why = f"{why} {_DRAWN_TOO_LATE}"
        logger.error("%s", why)
        self.scope.given_up[trial_id] = why
        self._stop_unfinished(trial)

    def _stop_unfinished(self, trial: Trial) -> None:
        self.scope.held.add(trial.trial_id)
        self.request_stop_trial(trial)
        self._process_stop_requests()

    def add_trial(self, trial: Trial) -> None:
        """Let a sample that is drawn now live where the experiment lies now.

        A restored searcher holds the experiment as it was first run: its old place and its old
        credentials (ray.tune.search.search_generator, 2.60).
        """
        if trial.storage is not None and self._storage is not None:
            storage = copy.copy(trial.storage)
            storage.storage_filesystem = self._storage.storage_filesystem
            storage.storage_fs_path = self._storage.storage_fs_path
            storage.experiment_dir_name = self._storage.experiment_dir_name
            trial.set_storage(storage)
        super().add_trial(trial)

    def _restore_trials(self, experiment_state: dict[str, Any]) -> list[Trial]:
        self._searcher_number = int(experiment_state.get("stats", {}).get("searcher", 0))
        trials = self._restore_readable(experiment_state)
        for trial in trials:
            part = self.scope.part(trial)
            if not self.scope.is_seed:
                if not trial.is_finished():
                    checkpoints.continue_from_snapshot(self.scope.store, trial)
            elif part.action == "resume":
                checkpoints.start_as_planned(self.scope.store, trial, part)
                if part.fresh_budget:
                    trial.run_metadata.num_failures = 0
        return trials

    def _restore_readable(self, experiment_state: dict[str, Any]) -> list[Trial]:
        """Restore each trial by itself: one that Ray cannot read does not cost the others."""
        trials: list[Trial] = []
        with replaced(Trial, "from_json_state", _any_trainable(self.scope.request.trainable_name)):
            for row in experiment_state["trial_data"]:
                try:
                    trials += super()._restore_trials({**experiment_state, "trial_data": [row]})
                except Exception as error:  # noqa: BLE001  a damaged pickle in it may raise anything
                    self._leave_out(_id_in(row), error)
        if not trials:
            raise RunnerError("Ray cannot read the row of any trial")
        self._storage._timestamp = trials[0].storage._timestamp  # as Ray: that of the first
        return trials

    def _leave_out(self, trial_id: str, error: Exception) -> None:
        """Go on without a trial; its row stays as it is."""
        logger.warning(
            "Trial %s is left out, and its row stays as it is, for Ray cannot restore it: %s: %s",
            *(trial_id, type(error).__name__, error),
        )
        self.scope.left_out[trial_id] = error

    def _requeue_restored_trials(self, trials: list[Trial], resume_config: Any) -> None:
        """Take up each trial as planned, in Ray's order; what a past attempt ended stays ended."""
        del resume_config
        if self.scope.is_seed:
            searcher.catch_up(self.scope.store, self._search_alg, trials, self.scope.part)
        for trial in sorted(trials, key=lambda t: t.run_metadata.last_result_time, reverse=True):
            taken_up = len(self._trials)
            try:
                self._requeue(trial, self.scope.part(trial))
            except Exception as error:
                if len(self._trials) > taken_up:
                    raise
                self._leave_out(trial.trial_id, error)

    def _requeue(self, trial: Trial, part: RunnerRequest) -> None:
        kind = ResumeConfig.ResumeType
        choice = kind.SKIP
        if not self.scope.is_seed:
            if not trial.is_finished():
                choice = kind.RESUME
        elif part.action == "resume":
            choice = kind.RESUME
        elif part.action == "restart":
            choice = kind.RESTART
        config = ResumeConfig(finished=choice, unfinished=choice, errored=choice)
        # Trial.reset() draws a random id; ours is the same every time, so that a re-run converges
        new_id = classmethod(lambda _cls: part.new_trial_id)
        with replaced(Trial, "generate_id", new_id):
            super()._requeue_restored_trials([trial], config)

    def adopt(self) -> None:
        """Fix the directories of new trials, drop rows that come again, and tell of those left out."""
        self._refuse_left_out()
        for trial in self._trials:
            if trial.is_finished():
                continue
            trial.init_local_path()
            prepare_results(
                self.scope.store,
                self.scope.part(trial),
                trial.relative_logdir,
                checkpoints.start_of(trial),
            )
        if self.scope.request.remember_scheduler:
            scheduler.remember(self.scope.store, self._scheduler_alg, self._trials)

    def changed_trials(self) -> Iterable[Trial]:
        """Return those that Ray has marked since the last snapshot."""
        return list(self._trials_to_cache)

    def fetch_states(self, target: Path) -> None:
        """Fetch the saved states of callbacks and searcher."""
        super().fetch_states(target)
        if self.scope.is_seed:
            searcher.fetch_newest(self.scope.store, target)
        elif self.scope.source_key is not None:
            directory = f"{self.scope.source_key.rpartition('/')[0]}/searcher"
            searcher.fetch_saved(self.scope.store, directory, self._searcher_number, target)

    def save_states(self) -> dict[str, Any]:
        """Save the searcher under a new number; the snapshot that names the number makes it count."""
        directory = self.scope.staging / "searcher"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self._search_alg.save_to_dir(directory.as_posix(), session_str=layout.KEPT)
        self._searcher_number += 1
        for path in directory.iterdir():
            name = layout.numbered(self._searcher_number, path.name)
            self.scope.store.put(f"{self._searcher_dir()}/{name}", path.read_bytes())
        return {"searcher": self._searcher_number}

    def _searcher_dir(self) -> str:
        return layout.searcher_dir(self.scope.request.restore_id, self.scope.request.attempt)

    def rows(self) -> list[tuple[str, str]]:
        """Return all rows; trials that were stopped alone stand there as unfinished."""
        for trial in self._trials:
            if self.scope.saved.get(trial.trial_id) != trial.status:
                self._mark_trial_to_checkpoint(trial)  # Ray forgets some that have no actor
        self._get_trial_checkpoints()
        saved: dict[str, tuple[str, str]] = self._trial_metadata
        return [
            _unfinished(row) if trial_id in self.scope.held else row
            for trial_id, row in saved.items()
        ]

    def after_snapshot(self) -> None:
        """Forget the searcher of the snapshot before, and record the trials that have ended."""
        scope = self.scope
        scope.is_drawn = bool(self._search_alg.is_finished())
        scope.missing = self._missing() if scope.is_drawn else 0
        for entry in scope.store.list_dir(self._searcher_dir()):
            if not entry.name.startswith(layout.numbered(self._searcher_number)):
                scope.store.delete(f"{self._searcher_dir()}/{entry.name}")
        for trial in self._trials:
            if trial.is_finished() and trial.trial_id not in scope.told:
                self._record(trial)
                scope.told.add(trial.trial_id)

    def _missing(self) -> int:
        """Return how many samples a searcher that draws no more has not drawn, and should have.

        One that was ended early, by a stopper or by itself, marks itself finished (2.60). So does one
        that never knew of any sample, because its state was not restored.
        """
        planned, search_alg = self.scope.planned, self._search_alg
        was_ended = search_alg._finished and search_alg.total_samples > 0
        if was_ended or not planned.get("continues_search"):
            return 0
        drawn = sum(self.scope.part(trial).action == "draw" for trial in self._trials)
        return max(0, (planned.get("samples_left") or 0) - drawn)

    def _record(self, trial: Trial) -> None:
        """Write the outcome of one trial where its own runner would have left it."""
        part = self.scope.part(trial)
        if part.action not in ("resume", "restart", "draw"):
            return
        if why := self.scope.given_up.get(trial.trial_id):
            # a private Ray stays as it is: a retry would be refused as well
            on_cluster = self.scope.request.address is not None
            result = Result.INTERRUPTED if on_cluster else Result.REFUSED
            ended = result, (NoRoomError.__name__, why)
        elif trial.trial_id in self.scope.held:
            ended = Result.INTERRUPTED, ("Interrupted", "told to stop; it can be resumed")
        elif trial.status == Trial.ERROR:
            ended = Result.FAILED, error_of(trial)
        else:
            ended = Result.FINISHED, ("", "")
        outcome = build_outcome(
            part,
            *ended,
            trial=trial,
            started_at=self.scope.started_at,
            ray_version=version(),
        )
        self.scope.reporter.flush()
        self._write(outcome)

    def _write(self, outcome: RunnerOutcome) -> None:
        key = layout.outcome_key(outcome.restore_id, outcome.trial_id, outcome.attempt)
        self.scope.store.put(key, outcome.to_json())

    def _refuse_left_out(self) -> None:
        """Write the outcome of each trial that was to run and is not here."""
        scope = self.scope
        here = {scope.part(trial).trial_id for trial in self._trials}
        for trial_id in sorted(scope.to_run() - here):
            error = scope.left_out.get(trial_id)
            why = f"{type(error).__name__}: {error}" if error else "an earlier attempt left it out"
            self._write(
                build_outcome(
                    replace(scope.request, trial_id=trial_id),
                    Result.REFUSED,
                    (RunnerError.__name__, f"Ray cannot restore it ({why})"),
                    trial=None,
                    started_at=scope.started_at,
                    ray_version=version(),
                )
            )

    def report(self, trial: Trial, progress: RunnerProgress) -> None:
        """Print it, and keep it for the task that follows this trial."""
        part = self.scope.part(trial)
        progress = replace(progress, trial_id=part.trial_id)
        super().report(trial, progress)
        owner = layout.WHOLE_EXPERIMENT if part.action == "draw" else part.trial_id
        self.scope.reporter.add(owner, progress)


def _id_in(row: Sequence[str]) -> str:
    """Return the id that stands in a row; words that are none if it cannot be read."""
    try:
        return str(json.loads(row[0])["trial_id"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return "in a row that is not whole"


def _any_trainable(name: str) -> Any:
    """Return a `Trial.from_json_state` that also takes the trials of another trainable than this one.

    Nobody has registered theirs here, and for one such row Ray would start the whole experiment over
    (`validate_trainable`, ray.tune.experiment.trial, 2.60). The plan keeps them; a stub is never run.
    """
    original = Trial.from_json_state

    def read(_cls: type[Trial], json_state: str) -> Trial:
        of = json.loads(json_state)["trainable_name"]
        return original(json_state, stub=bool(name) and of != name)

    return classmethod(read)


def _unfinished(row: tuple[str, str]) -> tuple[str, str]:
    document = json.loads(row[0])
    document["status"] = RESUMED_LATER
    return json.dumps(document, indent=2), row[1]  # as Trial.get_json_state writes it
