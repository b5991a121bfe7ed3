"""Airflow, simulated: DAG runs of the nightly chain, whose tasks are processes that call the real code.

The bodies of the tasks are those of the operators without Airflow: plan (`BuildRestorePlanOperator`),
trial (`RestoreTrialOperator` on the worker, or a follower of the shared run), commit
(`CommitRestoreOperator`) and samples (`ContinueSearchOperator`). Airflow retries them, starts one twice,
believes one dead that lives, clears tasks, times out, and starts the next DAG run beside this one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    KeyNotFoundError,
    LeaseHeldError,
    LeaseLostError,
    RunnerError,
    StateChangedError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk
from airflow_tune_restore.protocol.lease_objects import DagRunId, HolderStatus, LeaseStatus
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.follow import Follower, ask_to_stop
from airflow_tune_restore.restore.follow_shared import SharedFollower
from airflow_tune_restore.restore.history import seen_before
from airflow_tune_restore.restore.ledger import read_history
from airflow_tune_restore.restore.own_restore import find_started, fresh_restore_id
from airflow_tune_restore.restore.paused import (
    RestorePausedError,
    find_final_outcome,
    is_window_over,
    paused_error,
)
from airflow_tune_restore.restore.plan import RestorePlan, read_part
from airflow_tune_restore.restore.prepare import prepare_continued_search, prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.release import release_trials
from airflow_tune_restore.restore.runner_death import record_death
from airflow_tune_restore.restore.shared_driver import find_why_alone, hand_over
from airflow_tune_restore.restore.start import release_unstarted, start_restore
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.base import ObjectStore
from tests.simulation import shared  # noqa: F401  runners of shared drivers need it
from tests.simulation.runner import run_runner
from tests.simulation.standins import Event, Time
from tests.simulation.sweeps import Sweep
from tests.simulation.world import KILLED, Machine, Process, World

STALE_AFTER = timedelta(minutes=30)
TRIES = 4
RETRY_SECONDS = 60.0
NOTICE_SECONDS = 90.0
"""How long Airflow takes to notice that a worker's process was killed."""

DONE, SKIPPED, RETRY, FAILED, LOST = "done", "skipped", "retry", "failed", "lost"


@dataclass(frozen=True)
class Meddling:
    """What a person or Airflow does to a DAG run at some time.

    Args:
        what: `twice`, `lost`, `clear`, `time out`; `time out unheard` if the workers do not hear of it;
            `stop` for a task that its `execution_timeout` ends; `runner twice` for a pod that runs on a
            lost node, too.
        task: The task that it is done to: plan, trial, commit or samples.
        seconds: When, after the task began (after the DAG run began, for a time-out).
    """

    what: str
    task: str
    seconds: float


class Failed(Exception):  # noqa: N818  the state of a task
    """The task failed for good; Airflow does not retry it."""


class Skipped(Exception):  # noqa: N818  the state of a task
    """The task was skipped."""


@dataclass
class Airflow:
    """One deployment: its DAG runs, its workers, and the experiment that all of them are about."""

    world: World
    store: ObjectStore
    sweep: Sweep
    ttl_seconds: float
    asks: bool
    max_attempts: int | None
    workers: list[Machine]
    start_seconds: float
    runs: dict[str, "DagRun"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        machine = Machine("airflow")
        self.process = Process(self.world, machine, "airflow", "airflow")

    def start_dag_run(
        self,
        run_id: str,
        meddlings: list[Meddling],
        *,
        delay: float = 0.0,
        window: float | None = None,
    ) -> "DagRun":
        """Start a DAG run of the chain; its window lasts so many seconds."""
        end = None if window is None else self.world.wall(delay + window)
        run = self.runs[run_id] = DagRun(self, run_id, meddlings, end)
        self.process.spawn(run.main, delay=delay)
        return run

    def options(self) -> PrepareOptions:
        """Return the options of `plan`, as the example DAG of this experiment gives them."""
        errored = {"restart_errored": True} if self.sweep.restarts else {"resume_errored": True}
        choices = PlanChoices(
            flags=ResumeFlags.from_flags(**errored),
            strategy=self.sweep.strategy,
            max_attempts=self.max_attempts,
        )
        return PrepareOptions(
            choices=choices, stale_after=STALE_AFTER, ask_holder=self.ask if self.asks else None
        )

    def ask(self, status: LeaseStatus) -> HolderStatus:
        """Return whether the DAG run of a lease has ended (`hooks.dag_runs.ask_dag_run`)."""
        claimed = status.lease.dag_run
        run = self.runs.get(claimed.run_id) if claimed is not None else None
        if claimed is None or run is None or run.started_at != claimed.started_at:
            return HolderStatus(has_ended=False)
        return HolderStatus(
            has_ended=run.has_ended,
            found=f"Its DAG run {'has ended' if run.has_ended else 'is running'}",
        )

    def left_undone(self) -> list[Meddling]:
        """Return what was to be done to a task that never began."""
        return [each for run in self.runs.values() for each in run.meddlings]

    def worker(self, number: int) -> Machine:
        """Return one of the workers."""
        return self.workers[number % len(self.workers)]

    def command(self, role: str, name: str, body: Callable[[], object], *, delay: float) -> Process:
        """Run a command of the shell beside Airflow."""

        def main() -> str:
            try:
                body()
            except TuneRestoreError as error:
                self.world.tell(self.world.process, f"refuses: {error}")
            return DONE

        return self.world.start(self.worker(0), name, main, role=role, delay=delay)

    def undo(self, *, delay: float) -> Process:
        """`tune-restore undo`."""
        ask = self.ask if self.asks else None
        return self.command(
            "undo",
            f"undo at {self.world.now + delay:.0f}",
            lambda: undo_commit(self.store, holder="a person", ask_holder=ask),
            delay=delay,
        )

    def release(self, trial_id: str, *, delay: float) -> Process:
        """`tune-restore release`."""
        return self.command(
            "release",
            f"release at {self.world.now + delay:.0f}",
            lambda: release_trials(self.store, [trial_id], holder="a person"),
            delay=delay,
        )


class DagRun:
    """One DAG run: plan, then one task per trial, then commit, then the samples that are left."""

    def __init__(
        self, airflow: Airflow, run_id: str, meddlings: list[Meddling], window_end: datetime | None
    ) -> None:
        self.airflow = airflow
        self.world = airflow.world
        self.run_id = run_id
        self.base_id = f"airflow-{run_id}"
        self.window_end = window_end
        self.started_at = ""
        self.has_ended = False
        self.state = ""
        self.restore_id: str | None = None
        self.is_left_alone = False
        self.items: list[str] = []
        self.meddlings = list(meddlings)
        self._planned: list[str] = []
        self._current: dict[str, Process] = {}
        self._gone: list[Event] = []
        self._cleared = ""
        self._is_timed_out = False
        self._starts = 0

    # the chain

    def main(self, first: str = "plan") -> None:
        """Carry the chain out, from the task that was cleared on."""
        self._begin()
        while first:
            self._cleared = ""
            self.state = self._chain(first)
            first = self._cleared
        self.has_ended = True
        self.world.tell(self.run_id, f"the DAG run is {self.state}")

    def _begin(self) -> None:
        self.started_at = self.world.wall(0.0).isoformat()
        self.has_ended = False
        self._is_timed_out = False
        for what in ("time out", "time out unheard"):
            for each in self._take(what, ""):
                self.world.after(each.seconds, self._time_out, what == "time out")

    def _chain(self, first: str) -> str:
        if first == "plan":
            self.restore_id, self.is_left_alone = None, False
            state, items = self._task("plan", "plan", lambda number: self._plan(number))
            if self._cleared or self._is_timed_out or state == SKIPPED:
                return state
            self.items = items if state == DONE else []
        if first in ("plan", "trial"):
            states = self._trials()
            if self._cleared or self._is_timed_out:
                return FAILED
        else:
            states = []
        state, samples_left = self._task("commit", "commit", lambda _number: self._commit())
        if self._cleared or self._is_timed_out:
            return FAILED
        if state == DONE and samples_left:
            state, _ = self._task("samples", "samples", lambda number: self._samples(number))
        return FAILED if FAILED in (state, *states) else DONE

    def _trials(self) -> list[str]:
        """Run one task per trial, all at the same time."""
        states: list[str] = []
        ended = Event()

        def run(unit: str) -> None:
            state, _ = self._task(f"trial {unit}", "trial", lambda _number: self._trial(unit))
            states.append(state)
            if len(states) == len(self.items):
                ended.set()

        for unit in self.items:
            self.airflow.process.spawn(lambda unit=unit: run(unit))
        if self.items:
            ended.wait()
        return states

    # a task and its tries

    def _task(self, name: str, role: str, body: Callable[[int], Any]) -> tuple[str, Any]:
        world = self.world
        state, value = FAILED, None
        for number in range(1, TRIES + 1):
            if self._cleared or self._is_timed_out:
                return FAILED, None
            process = self._start(name, role, number, body)
            self._current[name] = process
            gone = Event()
            self._gone.append(gone)
            process.when_ended(gone.set)
            for each in self._take("twice", role):
                self._start_again(name, role, number, body, each.seconds)
            for each in self._take("clear", role):
                world.after(each.seconds, self._clear, role)
            for each in self._take("stop", role):
                world.after(each.seconds, _ask_to_stop, process)
            for each in self._take("lost", role):
                world.after(each.seconds, lambda g=gone, p=process: self._lose(g, p))
            gone.wait()
            self._current.pop(name, None)
            if self._is_timed_out:
                return FAILED, None
            if process.is_alive:
                state = LOST  # Airflow believes so
            elif process.exit_code == KILLED:
                state = LOST
                world.sleep(NOTICE_SECONDS)
            elif isinstance(process.exit_code, tuple):
                state, value = process.exit_code
            else:
                state, value = RETRY, None
            if state in (DONE, SKIPPED, FAILED):
                return state, value
            world.sleep(RETRY_SECONDS)
        return FAILED, None

    def _start(self, name: str, role: str, number: int, body: Callable[[int], Any]) -> Process:
        self._starts += 1
        title = f"{self.run_id}/{name} #{self._starts}"
        machine = self.airflow.worker(self._starts)

        def main() -> tuple[str, Any]:
            try:
                return DONE, body(number)
            except Skipped as error:
                self.world.tell(title, f"is skipped: {error}")
                return SKIPPED, None
            except Failed as error:
                self.world.tell(title, f"fails: {error}")
                return FAILED, None
            except TuneRestoreError as error:
                self.world.tell(
                    title, f"fails, and is tried again: {type(error).__name__}: {error}"
                )
                return RETRY, None

        return self.world.start(machine, title, main, role=role)

    def _start_again(
        self, name: str, role: str, number: int, body: Callable[[int], Any], seconds: float
    ) -> None:
        def start() -> None:
            self.world.tell(self.run_id, f"{name} is started twice")
            self._start(f"{name} (twice)", role, number, body)

        self.world.after(seconds, start)

    def _take(self, what: str, task: str) -> list[Meddling]:
        """Return what is done to the next task of this kind, once."""
        found = [m for m in self.meddlings if m.what == what and task.startswith(m.task)][:1]
        for each in found:
            self.meddlings.remove(each)
        return found

    def _lose(self, gone: Event, process: Process) -> None:
        if process.is_alive:
            self.world.tell(self.run_id, f"believes that {process} is dead")
            gone.set()

    def _clear(self, role: str) -> None:
        """Clear a task with those downstream; running ones are stopped, an ended DAG run begins again."""
        self.world.tell(self.run_id, f"{role} is cleared")
        if self.has_ended:
            self.airflow.process.spawn(lambda: self.main(role))
            return
        self._cleared = role
        self.started_at = self.world.wall(0.0).isoformat()
        self._stop_all()

    def _time_out(self, is_heard: bool) -> None:
        if not self.has_ended:
            self.world.tell(
                self.run_id, f"dagrun_timeout{'' if is_heard else ', and no worker hears it'}"
            )
            self._is_timed_out = True
            if is_heard:
                self._stop_all()
            else:
                for gone in self._gone:
                    gone.set()

    def _stop_all(self) -> None:
        """SIGTERM for every task that runs, and SIGKILL five seconds later."""
        for process in self._current.values():
            _ask_to_stop(process)
            self.world.after(5.0, process.kill)

    # the bodies of the tasks

    def _plan(self, number: int) -> list[str]:
        airflow, store = self.airflow, self.airflow.store
        options = replace(airflow.options(), pause_at=self.window_end)
        try:
            prepared = prepare_restore(store, self.base_id, options)
            if isinstance(prepared, str):
                raise Skipped(prepared)
            if self._is_over() and not prepared.is_started:
                raise Skipped("its window has ended")
            if prepared.plan.only_continues_search and not prepared.nothing_to_do:
                self.is_left_alone = True
                return []
            self.restore_id = prepared.plan.restore_id
            plan, _settled = start_restore(
                prepared, ttl_seconds=airflow.ttl_seconds, **self._holder()
            )
        except (LeaseHeldError, ExperimentRunningError, StateChangedError) as error:
            self.restore_id = None
            raise Skipped(str(error)) from error
        except TuneRestoreError:
            self.restore_id = find_started(store, self.base_id) if number > 1 else None
            raise
        if plan is None:
            self.restore_id = None
            raise Skipped("a restore that died had left nothing more to do")
        units = [trial.trial_id for trial in plan.to_run]
        self._planned = [*units, layout.WHOLE_EXPERIMENT] if plan.continues_search else units
        return self._planned

    def _is_over(self) -> bool:
        """Whether the window has ended, by the clock of the worker."""
        now = self.world.wall(self.world.process.machine.ahead)
        return self.window_end is not None and now >= self.window_end

    def _holder(self) -> dict[str, Any]:
        return {
            "holder": self.run_id,
            "dag_run": DagRunId(dag_id="nightly", run_id=self.run_id, started_at=self.started_at),
        }

    def _trial(self, unit: str) -> int:
        store, restore_id = self.airflow.store, self.restore_id
        if restore_id is None:
            raise Failed("its plan was lost")
        if unit not in self._planned:
            raise Failed("the plan was made again without it, and so it is not mapped any more")
        plan = read_part(store, restore_id, unit)
        outcome = find_final_outcome(store, plan, unit)
        if outcome is None:
            shares_run = plan.is_whole_experiment and not plan.only_continues_search
            try:
                lease.keep_alive(store, restore_id)
                if shares_run:
                    outcome = self._follow(plan, unit)
                else:
                    outcome = self._run_shared(plan, unit) or self._run_child(plan, unit)
            except LeaseLostError as error:
                raise Failed(str(error)) from error
            except RestorePausedError as error:
                raise Skipped(str(error)) from error
        return self._judge(plan, unit, outcome)

    def _run_child(self, plan: RestorePlan, unit: str) -> RunnerOutcome:
        store, world = self.airflow.store, self.world
        request = claim_next_attempt(store, plan, unit, _SETTINGS, log=lambda *_: None)
        child = self._start_runner(request.restore_id, unit, request.attempt)
        world.process.children.append(child)
        ended = Event()
        child.when_ended(ended.set)
        ended.wait()
        outcome = AttemptRecords.of(store, request).outcome(request.attempt)
        if outcome is None:
            code = -9 if child.exit_code == KILLED else child.exit_code
            raise record_death(store, plan, request, code, ["(none)"])
        return outcome

    def _follow(self, plan: RestorePlan, unit: str) -> RunnerOutcome:
        store = self.airflow.store

        def start(attempt: int) -> None:
            whole = layout.WHOLE_EXPERIMENT
            claim_next_attempt(store, plan, whole, _SETTINGS, log=lambda *_: None, attempt=attempt)
            self._start_runner(plan.restore_id, whole, attempt)

        follower = Follower(
            store, plan.restore_id, unit, start, monotonic=Time.monotonic, sleep=Time.sleep
        )
        for _ in follower.progress():
            if self.world.process.is_asked_to_stop:
                ask_to_stop(store, plan.restore_id, unit)
                raise Failed("it was stopped")
        assert follower.outcome is not None
        return follower.outcome

    def _run_shared(self, plan: RestorePlan, unit: str) -> RunnerOutcome | None:
        """Run the trial in a driver that others share; None if it runs alone (`LocalAttempt`)."""
        store, restore_id = self.airflow.store, plan.restore_id
        if unit in layout.RUNS_OF_MANY or not plan.trial(unit).shares_driver:
            return None
        if hand_over(store, plan, unit, _SETTINGS, log=lambda *_: None) is None:
            return None

        def start(number: int) -> None:
            many = layout.SHARED_DRIVER
            claim_next_attempt(store, plan, many, _SETTINGS, log=lambda *_: None, attempt=number)
            self._start_runner(restore_id, many, number)

        follower = SharedFollower(
            store, restore_id, unit, start, monotonic=Time.monotonic, sleep=Time.sleep
        )
        process = self.world.process
        for _ in follower.progress():
            if process.is_asked_to_stop:
                Desk(store, restore_id).ask_to_stop(unit, SHARED_ATTEMPT)
                raise RunnerError("it was stopped")
        outcome = follower.outcome
        why = find_why_alone(outcome, on_cluster=False) if outcome else follower.alone_because
        if why:
            self.world.tell(process, f"goes on alone: {why}")
            return None
        return outcome

    def _start_runner(self, restore_id: str, unit: str, attempt: int) -> Process:
        airflow, world = self.airflow, self.world
        key = layout.request_key(restore_id, unit, attempt)
        name = f"runner {restore_id.removeprefix('airflow-')}/{unit}/{attempt}"
        machine = world.process.machine

        def start(name: str, delay: float) -> Process:
            return world.start(
                machine,
                name,
                lambda: run_runner(world, airflow.store, airflow.sweep, key),
                role="runner",
                delay=delay,
            )

        for each in self._take("runner twice", "trial"):
            world.after(each.seconds, start, f"{name} (again)", 0.0)
        return start(name, world.process.random.random() * airflow.start_seconds)

    def _judge(self, plan: RestorePlan, unit: str, outcome: RunnerOutcome) -> int:
        match Result(outcome.result):
            case Result.FINISHED:
                return outcome.attempt
            case Result.FAILED:
                history = read_history(self.airflow.store, plan, unit)
                before = seen_before(history.failures, plan.restore_id, outcome.attempt)
                is_over = is_window_over(self.airflow.store, plan)
                if before is not None or plan.is_whole_experiment or is_over:
                    raise Failed("it failed in the same way before")
                raise RunnerError(f"Trial {unit} failed.")
            case Result.PAUSED:
                raise Skipped(f"Trial {unit} was paused.")
            case Result.INTERRUPTED if is_window_over(self.airflow.store, plan):
                raise Skipped(f"Trial {unit} was stopped after its window.")
            case Result.INTERRUPTED:
                raise RunnerError(f"Trial {unit} was stopped.")
            case _:
                raise Failed(outcome.describe_error())

    def _commit(self) -> bool:
        """Commit the restore; return whether samples are left to draw."""
        if self.is_left_alone:
            return True
        if self.restore_id is None:
            return False
        store = self.airflow.store
        try:
            summary = commit_restore(store, self.restore_id)
        except KeyNotFoundError as error:
            if not error.key.endswith("plan.json"):
                raise
            release_unstarted(store, self.restore_id)
            return False
        return bool(summary.samples_left) and not summary.is_whole_experiment

    def _samples(self, number: int) -> None:
        """Draw the samples that are left, and commit them."""
        try:
            self._continue_search()
        except (Failed, TuneRestoreError) as error:
            if number >= TRIES or isinstance(error, Failed | RestorePausedError):
                store = self.airflow.store
                try:
                    restore_id = fresh_restore_id(store, f"{self.base_id}-samples")
                    commit_restore(store, restore_id)
                except (KeyNotFoundError, TuneRestoreError):
                    pass
            if isinstance(error, RestorePausedError):
                raise Skipped(str(error)) from error
            raise

    def _continue_search(self) -> None:
        airflow, store = self.airflow, self.airflow.store
        options = PrepareOptions(
            choices=PlanChoices(),
            stale_after=timedelta(0),
            ask_holder=airflow.ask if airflow.asks else None,
            pause_at=self.window_end,
        )
        try:
            prepared = prepare_continued_search(store, f"{self.base_id}-samples", options)
            if isinstance(prepared, str):
                raise Skipped(prepared)
            if self._is_over() and not prepared.is_started:
                raise Skipped("its window has ended")
            plan, _settled = start_restore(
                prepared, ttl_seconds=airflow.ttl_seconds, **self._holder()
            )
        except (ExperimentRunningError, LeaseHeldError) as error:
            raise Skipped(str(error)) from error
        if plan is None:
            return
        whole = layout.WHOLE_EXPERIMENT
        outcome = find_final_outcome(store, plan, whole)
        if outcome is None:
            lease.keep_alive(store, plan.restore_id)
            outcome = self._run_child(plan, whole)
        match Result(outcome.result):
            case Result.PAUSED:
                raise paused_error(plan, whole)
            case Result.INTERRUPTED:
                raise RunnerError("The search was stopped.")
            case Result.REFUSED | Result.FENCED:
                raise Failed(outcome.describe_error())
        commit_restore(store, plan.restore_id)


def _ask_to_stop(process: Process) -> None:
    """SIGTERM to a task, which passes it on to its runner."""
    process.ask_to_stop()
    for child in process.children:
        child.ask_to_stop()


_SETTINGS = RunnerSettings(trainable="train")
