"""A driver that trials share, without a Ray: its desk, heartbeats, records and ends are the real ones.

`SharedTraining` is the real context with a training of its own. It makes the calls of the real controller
in their order (`runner.tune.shared_controller`): it takes what the desk reader has taken, prepares and
saves it, stops what was asked to stop, trains, saves from time to time, and records what has ended.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT
from airflow_tune_restore.protocol.request import Result, RunnerProgress, TrialAction
from airflow_tune_restore.runner.desk_reader import DeskReader, Work
from airflow_tune_restore.runner.outcome import INTERRUPTED, Ending
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.room import RoomWatch
from airflow_tune_restore.runner.signals import StopRequestedError
from airflow_tune_restore.runner.tune.shared_context import SharedContext, ending_of
from airflow_tune_restore.runner.worker_lines import WorkerLines
from airflow_tune_restore.storage.in_flight import for_each
from tests.simulation.runner import NOWHERE, TRACEBACK, SimulatedAttempt, Trained, Training
from tests.simulation.standins import Event, Lock
from tests.simulation.sweeps import STARTED_AT, TrialFiles, state_body

IDLE_STEP_SECONDS = 0.1
EVENT_SECONDS = 0.5
"""How long a step of Ray waits for a result."""

SAVE_SECONDS = 10.0
"""How often changed trials are saved that have not ended."""


class SharedTrial:
    """What the real context asks a trial of Ray about."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.due: float | None = None
        self.is_changed = True

    @property
    def trial_id(self) -> str:
        return self.trained.files.trial_id

    @property
    def status(self) -> str:
        return self.trained.files.status

    @property
    def run_metadata(self) -> SimpleNamespace:
        return SimpleNamespace(last_result={"training_iteration": self.trained.files.iteration})

    def is_finished(self) -> bool:
        return self.trained.has_ended

    def get_error(self) -> str:
        return TRACEBACK

    def get_pickled_error(self) -> Exception:
        return RuntimeError("the same bug")


class _Trainer(Training):
    """Trains the trials of a shared driver; their results go to the tasks that follow."""

    def __init__(self, attempt: SimulatedAttempt, reporter: Reporter) -> None:
        super().__init__(attempt, None)
        self._reporter = reporter

    def report(self, trained: Trained, progress: RunnerProgress) -> None:
        planned = trained.request.trial_id
        self._reporter.add(planned, replace(progress, trial_id=planned))


class _Reader(DeskReader):
    """The real one, for a main thread that a signal interrupts while there is no work.

    A dataclass has the locks of `threading` as its defaults from its definition on.
    """

    is_interrupted = staticmethod(bool)

    def is_done(self) -> bool:
        if self.is_interrupted():
            raise StopRequestedError
        return super().is_done()

    def _try_to_take(self, attempt: AttemptId) -> Work | None:
        work = super()._try_to_take(attempt)
        if work is not None:
            work.writing = Lock()  # type: ignore[assignment]
        return work


class _Lines(WorkerLines):
    """Nothing is printed here."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


@dataclass(kw_only=True)
class SharedTraining(SharedContext):
    """The real context of a shared driver, and what the real controller does with it."""

    attempt: SimulatedAttempt
    trainer: _Trainer
    running: list[Work] = field(default_factory=list)
    saved_at: float = 0.0
    is_waiting: bool = True

    @classmethod
    def of(cls, attempt: SimulatedAttempt) -> "SharedTraining":
        """Return that of an attempt, as `Attempt._make_context` makes the real one."""
        store, request, heartbeat = attempt._store, attempt._request, attempt._heartbeat
        reader = _Reader(store, request, heartbeat.join)
        reporter = Reporter(store, request, SHARED_ATTEMPT)
        context = cls(
            store=store,
            request=request,
            source_key=None,
            is_seed=True,
            staging=NOWHERE,
            check_fence=heartbeat.check_or_end,
            check_fence_lately=heartbeat.check_lately_or_end,
            room=RoomWatch.of(request),
            is_paused=lambda: attempt._stop.is_paused,
            reader=reader,
            reporter=reporter,
            lines=_Lines(reporter.add_lines),
            leaving=heartbeat.leaving,
            has_halted=Event(),  # type: ignore[arg-type]
            attempt=attempt,
            trainer=_Trainer(attempt, reporter),
        )
        reader.is_interrupted = lambda: context.is_waiting and attempt._stop.received
        return context

    @property
    def now(self) -> float:
        return self.trainer.world.now

    def run(self) -> None:
        """Run it, from `TuneController.resume` to the last snapshot."""
        self.is_waiting = False
        works, self.first = self.first, []
        queued = self._restore(works)
        self.check_fence()
        self._prepare(queued)
        self._put_snapshot()
        stop = self.attempt._stop
        while not self.has_ended and not stop.received:
            self._step()
        self._save()

    def _works(self) -> list[Work]:
        works = self.reader.works()
        return [work for work in works if work.trial is not None and not work.is_leaving]

    def _step(self) -> None:
        new = self.take_new()
        if new:
            self._prepare(self._restore(new))
            try:
                self._put_snapshot()
            except TuneRestoreError as error:
                self._tell(f"goes on without first snapshots: {error}")
        for work in self._works():
            if self.reader.is_asked_to_stop(work) and not _has_ended(work):
                work.ending = Ending(Result.INTERRUPTED, INTERRUPTED, "stopped; it can be resumed")
                self._stop_alone(work)
        if all(work.trial.is_finished() for work in self._works()):
            self.trainer.world.sleep(IDLE_STEP_SECONDS)
        else:
            self._step_of_ray()
        self._record_ended()
        self.reader.set_running(len(self.running))

    def _restore(self, works: Iterable[Work]) -> list[Work]:
        restored = []
        for work in works:
            ((head, metadata),) = work.seed["trial_data"]
            files = replace(TrialFiles.from_row([head, metadata]), status="PENDING")
            work.seed = {}
            action = TrialAction(work.request.action)
            work.trial = SharedTrial(Trained(files, action, work.request))
            restored.append(work)
        return restored

    def _prepare(self, works: list[Work]) -> None:
        def prepare(work: Work) -> None:
            trained = work.trial.trained
            try:
                self.trainer.prepare(trained)
            except Exception as error:  # noqa: BLE001  as the real one
                self.refuse(work, error)
            trained.files = replace(trained.files, status="PENDING")

        for_each(prepare, works)

    def _step_of_ray(self) -> None:
        """Start what there is room for, wait for a result, and save if it is time."""
        unfinished = [work for work in self._works() if not _has_ended(work)]
        self.running = [work for work in self.running if work in unfinished]
        for work in unfinished:
            if work not in self.running and len(self.running) < self.trainer.sweep.slots:
                trained = work.trial.trained
                trained.files = replace(trained.files, status="RUNNING")
                self.running.append(work)
                if not self.trainer.is_trained(trained):
                    work.trial.due = self.now + self.trainer.seconds()
                work.trial.is_changed = True
        waiting = [work for work in self.running if not _has_ended(work)]
        first = min(waiting, key=lambda work: work.trial.due, default=None)
        if first is not None:
            left = first.trial.due - self.now
            self.trainer.world.sleep(min(left, EVENT_SECONDS))
            if left <= EVENT_SECONDS:
                self.trainer.advance(first.trial.trained)
                first.trial.due = self.now + self.trainer.seconds()
                first.trial.is_changed = True
        if self.now - self.saved_at >= SAVE_SECONDS:
            self.saved_at = self.now
            try:
                self._save()
            except TuneRestoreError as error:
                self._tell(f"goes on without a snapshot: {error}")

    def _stop_alone(self, work: Work) -> None:
        trained = work.trial.trained
        if not trained.has_ended:
            trained.files = replace(trained.files, status="TERMINATED")
            work.trial.is_changed = True

    def _save(self) -> None:
        self.check_fence()
        self._save_trials(self._works(), with_files=True)

    def _put_snapshot(self) -> None:
        self._save_trials(self._new(), with_files=False)

    def _new(self) -> list[Work]:
        return [
            work
            for work in self._works()
            if not (work.saved_status or work.error) and work.trial.status == "PENDING"
        ]

    def _save_trials(self, works: list[Work], *, with_files: bool) -> None:
        changed = [work for work in works if self._has_changed(work)]
        if with_files:
            for_each(self._upload, changed)
        for_each(lambda save: save(), [self._save_row(work) for work in changed])
        for work in changed:
            work.trial.is_changed = False

    @staticmethod
    def _has_changed(work: Work) -> bool:
        is_marked = work.trial.is_changed or work.saved_status != work.trial.status
        return work.error is None and is_marked

    def _save_row(self, work: Work) -> Callable[[], None]:
        request, files = work.request, work.trial.trained.files
        is_stopped = work.ending is not None and work.ending.result is Result.INTERRUPTED
        is_later = is_stopped or (self.is_paused() and files.status == "RUNNING")
        row = replace(files, status="PAUSED").row() if is_later else files.row()

        def save() -> None:
            key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
            self.store.put(key, state_body([row], start_time=STARTED_AT))
            work.saved_status, work.saved_iteration = files.status, files.iteration

        return save

    def _upload(self, work: Work) -> None:
        trained = work.trial.trained
        if trained.rows:
            self.store.put(f"{trained.files.trial_dir}/{layout.RESULT_FILE}", trained.rows.encode())

    def _record_ended(self) -> None:
        for work in self.reader.works():
            if _has_ended(work) and not work.is_leaving:
                self._begin_to_record(work)
        self.ended = [work for work in self.ended if not work.is_over]

    def _begin_to_record(self, work: Work) -> None:
        if work.trial is None:
            self.record(work)
            return
        self._stop_alone(work)
        self.ended.append(work)
        work.ending = work.ending or ending_of(work.trial)
        if not self._has_changed(work):
            self.record(work)
            return
        save_row = self._save_row(work)

        def save() -> None:
            self._upload(work)
            save_row()

        self.record(work, save)

    def _tell(self, text: str) -> None:
        self.trainer.world.tell(self.trainer.process, text)


def _has_ended(work: Work) -> bool:
    return work.ending is not None or (work.trial is not None and work.trial.is_finished())


SimulatedAttempt.make_shared = staticmethod(SharedTraining.of)
