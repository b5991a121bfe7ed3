"""A runner without Ray: the real attempt, heartbeat, lease and records; only the training is made up.

It makes the writes of a real runner in their order (`runner.tune.controller`): per iteration a checkpoint
if one is due, then `result.json` and the snapshot; at its end the last snapshot, which must succeed, and
the outcome.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from airflow_tune_restore.exceptions import (
    LeaseLostError,
    RunnerError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import find_ended
from airflow_tune_restore.protocol.checkpoints import last_number
from airflow_tune_restore.protocol.planned import read_planned
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import (
    EXIT_FENCED,
    EXIT_REFUSED,
    RUN_ACTIONS,
    Result,
    RunnerProgress,
    RunnerRequest,
    TrialAction,
)
from airflow_tune_restore.runner import attempt as attempt_module
from airflow_tune_restore.runner.attempt import Attempt
from airflow_tune_restore.runner.heartbeat import FencedError
from airflow_tune_restore.runner.outcome import EXIT_CODES, INTERRUPTED, Ending, build_outcome
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.tune import private_api
from airflow_tune_restore.runner.tune.result_files import Start, prepare_results
from airflow_tune_restore.storage.base import ObjectStore
from tests.simulation.sweeps import (
    CHECKPOINT_EVERY,
    STARTED_AT,
    Sweep,
    TrialFiles,
    checkpoint_body,
    checkpoint_name,
    result_row,
    searcher_body,
    state_body,
)
from tests.simulation.world import Process, World

NOWHERE = Path("/nonexistent")


@contextmanager
def without_ray() -> Iterator[None]:
    """Put aside the two functions of a runner that ask for Ray itself."""
    with (
        mock.patch.object(attempt_module, "load", _load_nothing),
        mock.patch.object(private_api, "version", _simulated_version),
    ):
        yield


def _load_nothing(*_arguments: object) -> None:
    """Stand in for `runner.loading.load`; a `Mock` would keep the arguments of every call."""


def _simulated_version() -> str:
    return "simulated"


class StopSignals:
    """SIGTERM and the end of a window, as the real one shows them."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._is_ignored = False
        self.is_paused = False

    @property
    def received(self) -> bool:
        return self._process.is_asked_to_stop and not self._is_ignored

    def ignore(self) -> None:
        self._is_ignored = True

    def install(self) -> None:
        pass

    def pause(self) -> None:
        self.is_paused = not self.received
        self._process.ask_to_stop()


def run_runner(world: World, store: ObjectStore, sweep: Sweep, key: str) -> int:
    """Run one attempt, as `python -m airflow_tune_restore.runner run` does; return its exit code."""
    process = world.process
    try:
        request = read_record(store, key, RunnerRequest.from_json)
        attempt = SimulatedAttempt(world, store, request, StopSignals(process), sweep)
        return EXIT_CODES[attempt.run()]
    except (FencedError, LeaseLostError) as error:
        world.tell(process, f"ends: {error}")
        return EXIT_FENCED
    except TuneRestoreError as error:
        world.tell(process, f"ends: {error}")
        return EXIT_REFUSED


class SimulatedAttempt(Attempt):
    """The real attempt, with a training of its own in the place of Ray's."""

    make_shared: Callable[["SimulatedAttempt"], Any]
    """Makes the training of a driver that trials share (`tests.simulation.shared`)."""

    def __init__(
        self,
        world: World,
        store: ObjectStore,
        request: RunnerRequest,
        stop: StopSignals,
        sweep: Sweep,
    ) -> None:
        super().__init__(store, request, stop, parent_pid=0)  # type: ignore[arg-type]
        self._world = world
        self._sweep = sweep
        self.workers_store = store
        self._training: Training | None = None

    def _make_context(self) -> Any:
        if self._is_shared:
            return self.make_shared(self)
        kind = WholeTraining if self._request.trial_id == layout.WHOLE_EXPERIMENT else TrialTraining
        self._training = kind(self, self._newest_snapshot())
        return self._training

    def _ask(self, context: Any, loaded: Any) -> dict[str, Any]:
        del context, loaded
        return {}

    def _fit(self, context: Any, loaded: Any, asked: Any) -> None:
        del loaded, asked
        context.run()

    @property
    def _is_shared(self) -> bool:
        return self._request.trial_id == layout.SHARED_DRIVER

    def _record(self, ending: Ending, *, iteration: int | None = None) -> None:
        if self._is_shared:
            super()._record(ending, iteration=iteration)
            return
        training = self._training
        self.put_outcome(self._request, ending, training and training.trial_of_outcome)

    def put_outcome(self, request: RunnerRequest, ending: Ending, trial: TrialFiles | None) -> None:
        """Put the outcome of an attempt; a failed trial names the line of the user's code."""
        described = trial and SimpleNamespace(
            run_metadata=SimpleNamespace(last_result={}),
            status=trial.status,
            trial_id=trial.trial_id,
            get_error=lambda: TRACEBACK,
            get_pickled_error=lambda: None,
        )
        outcome = build_outcome(request, ending, trial=described, started_at=self._started_at)
        outcome = replace(outcome, iteration=trial.iteration if trial else 0)
        key = layout.outcome_key(request.restore_id, request.trial_id, request.attempt)
        self._store.put(key, outcome.to_json())


TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/home/team/train.py", line 7, in train\n'
    "    raise RuntimeError('the same bug')\n"
    "RuntimeError: the same bug\n"
)


class Trained:
    """A trial that is being trained: its row, and the rows of its result.json."""

    def __init__(self, files: TrialFiles, action: TrialAction, request: RunnerRequest) -> None:
        self.files = files
        self.action = action
        self.request = request
        self.rows = ""
        self.next_checkpoint = 0
        self.is_stopped = False

    @property
    def has_ended(self) -> bool:
        return self.files.status in ("TERMINATED", "ERROR")


class Training:
    """What both kinds of a run have in common."""

    staging = NOWHERE
    has_ended = False
    saved_iteration = None

    def __init__(self, attempt: SimulatedAttempt, snapshot: str | None) -> None:
        self.attempt = attempt
        self.world: World = attempt._world
        self.process = self.world.process
        self.store = attempt._store
        self.request = attempt._request
        self.sweep = attempt._sweep
        self.snapshot = snapshot
        self.is_saved = False
        self.trials: list[Trained] = []

    @property
    def trial(self) -> None:
        return None

    def wait_for_work(self) -> bool:
        return True

    @property
    def was_stopped(self) -> bool:
        return self.attempt._stop.received

    def close(self) -> None:
        pass

    def record_rest(self, ending: Ending) -> None:
        pass

    def prepare(self, trained: Trained) -> None:
        """Choose the start, and drop the rows that come again (`prepare_files`)."""
        files, request = trained.files, trained.request
        if trained.action is TrialAction.RESTART:
            assert request.new_trial_id is not None
            files = TrialFiles(request.new_trial_id)
        elif trained.action is TrialAction.RESUME:
            checkpoint = request.checkpoint and (request.checkpoint, request.iteration)
            files = replace(files, checkpoint=checkpoint)
        names = [entry.name for entry in self.store.list_dir(files.trial_dir) if entry.is_dir]
        present = [name for name in names if name.startswith(layout.CHECKPOINT_PREFIX)]
        trained.next_checkpoint = last_number(present, request.attempt) + 1
        start = files.checkpoint and Start(files.checkpoint[0], float(files.checkpoint[1]))
        prepare_results(self.store, request, files.trial_dir, start or None)
        if start:
            key = f"{files.trial_dir}/{layout.RESULT_FILE}"
            trained.rows = self.store.get(key).decode()
        iteration = files.checkpoint[1] if files.checkpoint else 0
        trained.files = replace(files, status="RUNNING", iteration=iteration)
        self.world.trains(self.process, trained.files.trial_id, iteration)

    def iterate(self, trained: Trained) -> None:
        """Train one iteration."""
        if self.is_trained(trained):
            return
        self.world.sleep(self.seconds())
        self.advance(trained)

    def is_trained(self, trained: Trained) -> bool:
        """Whether a trial has no iteration left; it has ended then."""
        files = trained.files
        if files.iteration < self.sweep.target(files.trial_id):
            return False
        trained.files = replace(files, status="TERMINATED")
        return True

    def seconds(self) -> float:
        """Return how long the next iteration takes."""
        return self.sweep.pace * self.process.random.random()

    def advance(self, trained: Trained) -> None:
        """Have the result of an iteration that is trained now."""
        files = trained.files
        last = self.sweep.target(files.trial_id)
        if files.iteration >= self.sweep.broken.get(trained.request.trial_id, 1000):
            self.store.put(f"{files.trial_dir}/error.txt", TRACEBACK.encode())
            trained.files = replace(files, status="ERROR")
            return
        iteration, name = files.iteration + 1, None
        if iteration % CHECKPOINT_EVERY == 0:
            name = checkpoint_name(trained.next_checkpoint)
            trained.next_checkpoint += 1
            key = f"{files.trial_dir}/{name}/state.json"
            # by a worker of Ray, which knows nothing of the lease
            self.attempt.workers_store.put(key, checkpoint_body(iteration))
        checkpoint = (name, iteration) if name else files.checkpoint
        self.world.trains(self.process, files.trial_id, iteration)
        trained.rows += result_row(iteration, name)
        trained.files = replace(files, iteration=iteration, checkpoint=checkpoint)
        self.report(
            trained, RunnerProgress(trial_id=files.trial_id, iteration=iteration, metrics={})
        )
        if iteration == last:
            trained.files = replace(trained.files, status="TERMINATED")

    def report(self, trained: Trained, progress: RunnerProgress) -> None:
        """Report a result to the task that follows."""

    def save(self, *, must: bool = False) -> None:
        """Upload the files of the trials, then the state that belongs to them (`_save`)."""
        try:
            self.attempt._heartbeat.check_or_end()
            for trained in self.trials:
                if trained.rows:
                    key = f"{trained.files.trial_dir}/{layout.RESULT_FILE}"
                    self.store.put(key, trained.rows.encode())
            self.put_snapshot()
        except TuneRestoreError as error:
            if must:
                raise
            self.world.tell(self.process, f"goes on without a snapshot: {error}")

    def put_snapshot(self) -> None:
        """Put the snapshot of this attempt."""
        request = self.request
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self.store.put(key, state_body(self.rows(), start_time=STARTED_AT, **self.stats()))
        self.is_saved = True

    def rows(self) -> list[list[str]]:
        return [trained.files.row() for trained in self.trials]

    def stats(self) -> dict[str, Any]:
        return {}


class TrialTraining(Training):
    """One trial, from its seed or from the snapshot of an earlier attempt."""

    trained: Trained | None = None

    @property
    def trial_of_outcome(self) -> TrialFiles | None:
        return self.trained and self.trained.files

    def run(self) -> None:
        request = self.request
        seed = layout.seed_key(request.restore_id, request.trial_id)
        (row,) = json.loads(self.store.get(self.snapshot or seed))["trial_data"]
        action = request.action if self.snapshot is None else TrialAction.RUN
        self.trained = trained = Trained(TrialFiles.from_row(row), TrialAction(action), request)
        self.trials = [trained]
        self.attempt._heartbeat.check_or_end()
        if not trained.has_ended or self.snapshot is None:
            self.prepare(trained)
        elif trained.files.status == "ERROR":
            trained.files = replace(trained.files, status="RUNNING")
            self.prepare(trained)
        self.put_snapshot()
        while not trained.has_ended and not self.was_stopped:
            self.iterate(trained)
            if not trained.has_ended:
                self.save()
        self.save(must=True)
        self.has_ended = trained.has_ended

    def judge(self, *, was_stopped: bool) -> Ending:
        trained = self.trained
        assert trained is not None
        if was_stopped and not trained.has_ended and self.is_saved:
            return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; a snapshot was saved")
        if trained.files.status == "TERMINATED":
            return Ending(Result.FINISHED)
        if trained.files.status == "ERROR":
            return Ending(Result.FAILED, "RuntimeError", "the same bug")
        raise RunnerError("The last snapshot of the trial could not be saved; see the log above.")


class WholeTraining(Training):
    """All trials of a plan, and the samples of its search."""

    trial_of_outcome = None

    def __init__(self, attempt: SimulatedAttempt, snapshot: str | None) -> None:
        super().__init__(attempt, snapshot)
        self.planned = read_planned(self.store, self.request.restore_id)
        self.reporter = Reporter(self.store, self.request)
        self.kept: dict[str, TrialFiles] = {}
        self.recorded: set[str] = set()
        self.order: list[str] = []
        self.number = 0
        self.stops_drawing = False

    def close(self) -> None:
        self.reporter.stop()

    def run(self) -> None:
        key = self.snapshot or self.planned.base.name
        state = json.loads(self.store.get(key))
        self.number = state["stats"].get("searcher", 0)
        self._restore([TrialFiles.from_row(row) for row in state["trial_data"]])
        self.reporter.start()
        self.attempt._heartbeat.check_or_end()
        if self.snapshot is not None:
            self._find_recorded()
        for trained in self.trials:
            if not trained.has_ended:
                self.prepare(trained)
        self._save_whole(must=True, prepares=True)
        while self._goes_on():
            for trained in self._unfinished():
                self._stop_asked()
                if not trained.is_stopped:
                    self.iterate(trained)
            self._save_whole()
        self._save_whole(must=True)
        self.has_ended = not self._unfinished() and not any(t.is_stopped for t in self.trials)

    def _find_recorded(self) -> None:
        units = {t.request.trial_id: t.files.trial_id for t in self.trials if t.has_ended}
        for unit in find_ended(self.store, self.request.restore_id, units):
            self.recorded.add(units[unit])

    def _goes_on(self) -> bool:
        if self.was_stopped:
            return False
        self._draw()
        return bool(self._unfinished())

    def _restore(self, rows: list[TrialFiles]) -> None:
        by_id = {trial.trial_id: trial for trial in self.planned.trials}
        by_id |= {trial.final_trial_id: trial for trial in self.planned.trials}
        for files in rows:
            planned = by_id.get(files.trial_id)
            self.order.append(files.trial_id if planned is None else planned.trial_id)
            if planned is None:  # a sample that an earlier attempt drew
                self._add(files, TrialAction.DRAW, files.trial_id)
                continue
            if planned.action not in RUN_ACTIONS:
                status = "TERMINATED" if planned.action is TrialAction.TERMINATE else files.status
                self.kept[planned.trial_id] = replace(files, status=status)
                continue
            request = planned.request_alone(self.request)
            action = planned.action if self.snapshot is None else TrialAction.RUN
            if self.snapshot is None and files.status in ("TERMINATED", "ERROR"):
                files = replace(files, status="PENDING")
            self.trials.append(Trained(files, action, request))

    def _add(self, files: TrialFiles, action: TrialAction, unit: str) -> Trained:
        trained = Trained(files, action, replace(self.request, trial_id=unit, action=action))
        self.trials.append(trained)
        return trained

    def _draw(self) -> None:
        """Draw the next sample, if there is one."""
        if not self.planned.continues_search or self.stops_drawing or self._unfinished():
            return
        total = len(self.trials) + len(self.kept)
        if total < self.sweep.total:
            trained = self._add(TrialFiles(f"new{total}"), TrialAction.DRAW, f"new{total}")
            trained.files = replace(trained.files, status="RUNNING")
            self.prepare(trained)
            self.order.append(trained.files.trial_id)

    def _unfinished(self) -> list[Trained]:
        return [t for t in self.trials if not t.has_ended and not t.is_stopped]

    def _stop_asked(self) -> None:
        for follower in self.reporter.new_stop_requests():
            self.stops_drawing |= follower == layout.WHOLE_EXPERIMENT
            for trained in self._unfinished():
                if self._follower_of(trained) == follower:
                    trained.is_stopped = True

    def _follower_of(self, trained: Trained) -> str:
        is_sample = trained.action is TrialAction.DRAW
        return layout.WHOLE_EXPERIMENT if is_sample else trained.request.trial_id

    def report(self, trained: Trained, progress: RunnerProgress) -> None:
        self.reporter.add(self._follower_of(trained), progress)

    def _save_whole(self, *, must: bool = False, prepares: bool = False) -> None:
        try:
            if prepares:
                self.put_snapshot()
            else:
                self.save(must=True)
            self._after_snapshot()
        except TuneRestoreError:
            if must:
                raise

    def stats(self) -> dict[str, Any]:
        self.number += 1
        directory = layout.searcher_dir(self.request.restore_id, self.request.attempt)
        name = layout.numbered(self.number, "basic-variant-state-kept.json")
        self.store.put(f"{directory}/{name}", searcher_body(self.sweep.total))
        return {"searcher": self.number}

    def _after_snapshot(self) -> None:
        directory = layout.searcher_dir(self.request.restore_id, self.request.attempt)
        for entry in self.store.list_dir(directory):
            if not entry.name.startswith(layout.numbered(self.number)):
                self.store.delete(f"{directory}/{entry.name}")
        for trained in self.trials:
            done = trained.has_ended or trained.is_stopped
            if done and trained.files.trial_id not in self.recorded:
                self.reporter.flush()
                self.attempt.put_outcome(trained.request, _ending_of(trained), trained.files)
                self.recorded.add(trained.files.trial_id)

    def rows(self) -> list[list[str]]:
        kept = dict(self.kept)
        for trained in self.trials:
            files = replace(trained.files, status="PAUSED") if trained.is_stopped else trained.files
            kept[trained.request.trial_id] = files
        return [kept[trial_id].row() for trial_id in self.order if trial_id in kept]

    def judge(self, *, was_stopped: bool) -> Ending:
        if self.has_ended:
            return Ending(Result.FINISHED)
        if was_stopped and self.is_saved:
            return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; a snapshot was saved")
        raise RunnerError("Ray ended the run with unfinished trials; see the log above.")


def _ending_of(trained: Trained) -> Ending:
    if trained.is_stopped:
        return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; it can be resumed")
    if trained.files.status == "ERROR":
        return Ending(Result.FAILED, "RuntimeError", "the same bug")
    return Ending(Result.FINISHED)
