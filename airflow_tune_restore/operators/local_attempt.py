"""Runs the attempts of a task as processes on the worker."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from typing import IO, TYPE_CHECKING

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import LeaseLostError, TrialStoppedError, TuneRestoreError
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.launch.runner_log import RunnerLog
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk
from airflow_tune_restore.protocol.ray_job import ADDRESS, IN_CLUSTER
from airflow_tune_restore.protocol.request import (
    RunnerOutcome,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.follow import (
    POLL_SECONDS,
    Follower,
    Heartbeats,
    ask_to_stop,
    look_until_ended,
)
from airflow_tune_restore.restore.follow_shared import SharedFollower
from airflow_tune_restore.restore.paused import find_final_outcome
from airflow_tune_restore.restore.runner_death import LAST_LINES, record_death
from airflow_tune_restore.restore.shared_driver import (
    ALONE_AGAIN,
    ALONE_NOW,
    ELSEWHERE,
    SHARED,
    find_why_alone,
    hand_over,
)

if TYPE_CHECKING:
    from airflow_tune_restore.launch.process import RunnerProcess
    from airflow_tune_restore.operators.attempt_task import AttemptOperator, AttemptTask

_OF_ONE_TASK = ("AIRFLOW_IS_K8S_EXECUTOR_POD", "AIRFLOW_IS_EXECUTOR_CONTAINER")
"""Variables of a worker that ends with its task: a pod of the KubernetesExecutor, a Ray job of the
RayExecutor, a container of the AwsEcsExecutor or the AwsBatchExecutor."""

STAYS = (
    "This trial has ended. Its task stays until the whole-experiment run has ended, because the run "
    "would end with this task's worker."
)
STOP_GRACE_SECONDS = 30.0
"""How long a runner that is asked to stop may take to save a snapshot.

Airflow kills a task 5 s after its SIGTERM; the runner has a session of its own and still finishes saving.
"""


class LocalAttempt:
    """An attempt of a task that runs in a child process, or in the run that its experiment shares."""

    def __init__(self, operator: "AttemptOperator", task: "AttemptTask") -> None:
        self._operator = operator
        self._task = task
        self._log = operator.log
        self._process: RunnerProcess | None = None
        self._ask_to_stop: Callable[[], None] | None = None  # in a run of many
        self._was_stopped = False
        self._output: IO[str] | None = None
        self._output_log = RunnerLog(self._log)

    def find_final_outcome(self) -> RunnerOutcome | None:
        """Return the outcome of an earlier try if there is nothing left to run."""
        outcome = find_final_outcome(self._task.store, self._task.plan, self._task.trial_id)
        if outcome is not None:
            self._log.info(
                "An earlier try of this task has the outcome (attempt %d).", outcome.attempt
            )
        return outcome

    def is_alive(self, context: Context) -> bool:
        """Whether there is a living runner to attach to: it has ended with the worker that started it."""
        del context
        return False

    def run(self, context: Context) -> RunnerOutcome:
        """Run the next attempt, or follow the run of many, until the trial has an outcome."""
        del context
        self._task.renew_lease(self._operator)
        if self._task.shares_run:
            return self._follow_shared_run()
        return self._run_shared() or self._run_child()

    def stop(self) -> None:
        """Let the runner save a snapshot and exit; in a run of many, stop this trial alone. Once."""
        ask, self._ask_to_stop = self._ask_to_stop, None
        if ask is not None:
            self._was_stopped = True
            self._log.info("Asking the run to stop this trial; the others continue.")
            ask()
        process, self._process = self._process, None
        if process is not None:
            self._log.info("Stopping the runner; it saves a snapshot first.")
            process.stop(STOP_GRACE_SECONDS)

    def _run_child(self) -> RunnerOutcome:
        task, plan = self._task, self._task.plan
        with self._operator.local_launcher(task.experiment) as launcher:
            request = self._claim(task.trial_id)
            is_whole = task.trial_id == layout.WHOLE_EXPERIMENT
            what = "whole-experiment run" if is_whole else f"{request.action} trial {task.trial_id}"
            what = "script of the sweep" if plan.is_sweep else what
            self._log.info(
                "%s of %s: attempt %d of %s %s",
                *(what, plan.experiment, request.attempt),
                *("run" if plan.is_sweep else "restore", plan.restore_id),
            )
            self._process = process = launcher.start(request)
            limit = window.stop_at_last_moment(plan.pause_at, self.stop)
            last: deque[str] = deque(maxlen=LAST_LINES)
            shown = RunnerLog(self._log, plan.metric, of_many=is_whole)
            try:
                for line in process.lines():
                    last.append(describe_line(line, plan.metric, of_many=is_whole))
                    shown.show(line)
                exit_code = process.wait()
                self._process = None
            finally:
                limit.cancel()
                shown.end()
                self.stop()  # after a timeout or an error: no runner is left behind
        outcome = task.records.outcome(request.attempt)
        if outcome is None:
            raise record_death(task.store, plan, request, exit_code, list(last))
        return outcome

    def _follow_shared_run(self) -> RunnerOutcome:
        """Attach to the whole-experiment run, or start it, until this trial has an outcome."""
        task, plan = self._task, self._task.plan

        started: list[int] = []

        def start(attempt: int) -> None:
            request = self._claim(layout.WHOLE_EXPERIMENT, attempt)
            self._log.info("Starting the whole-experiment run, attempt %d.", attempt)
            self._start_detached(request)
            started.append(attempt)

        follower = Follower(task.store, plan.restore_id, task.trial_id, start)

        def looks() -> Iterator[RunnerProgress | None]:
            yield from follower.progress()
            if started and _ends_with_task():
                yield from self._stay(started[-1])

        place = (task.store, plan.restore_id, task.trial_id)
        self._follow(looks(), lambda: ask_to_stop(*place))
        assert follower.outcome is not None  # noqa: S101  progress() ends with one
        return follower.outcome

    def _stay(self, attempt: int) -> Iterator[None]:
        """Wait until a run has ended that would end with this task's worker.

        A task that is killed meanwhile has nothing to stop: its trial has ended. Its run saves a snapshot
        and ends, and another task starts the next one.
        """
        self._ask_to_stop = None
        self._log.info(STAYS)
        plan = self._task.plan
        run = AttemptRecords(self._task.store, plan.restore_id, layout.WHOLE_EXPERIMENT)
        heartbeats = Heartbeats(run)
        looks = look_until_ended(lambda: ([], heartbeats.is_over(attempt)), repeat(POLL_SECONDS))
        return (None for _ in looks)

    def _run_shared(self) -> RunnerOutcome | None:
        """Run the trial in a driver that others share; None if it runs alone, in a runner of its own."""
        task, plan, trial_id = self._task, self._task.plan, self._task.trial_id
        if not task.shares_driver:
            return None
        if _ends_with_task():
            self._log.info(
                "It has a driver of its own: a shared one would end with this task's worker."
            )
            return None
        desk = Desk(task.store, plan.restore_id)

        def ask() -> None:
            desk.ask_to_stop(trial_id, SHARED_ATTEMPT)

        self._ask_to_stop = ask  # a kill from here on must reach the driver
        settings = self._settings()
        if hand_over(task.store, plan, trial_id, settings, log=self._log.info) is None:
            self._ask_to_stop = None
            self._log.info(ALONE_AGAIN)
            return None
        self._log.info(SHARED, trial_id, plan.experiment, SHARED_ATTEMPT, plan.restore_id)

        def start(number: int) -> None:
            request = self._claim(layout.SHARED_DRIVER, number)
            self._log.info("Starting shared driver %d. This task shows its output.", number)
            started.append(number)
            self._start_detached(request)

        started: list[int] = []
        follower = SharedFollower(task.store, plan.restore_id, trial_id, start)
        seen = 0

        def watch() -> Iterator[RunnerProgress | None]:
            nonlocal seen
            for progress in follower.progress():
                if follower.driver != seen and follower.driver not in started:
                    self._log.info(ELSEWHERE, follower.driver)
                seen = follower.driver
                lines = follower.take_lines()
                if not started:  # else they are in the output of the driver
                    self._output_log.show_all(lines)
                yield progress

        self._follow(watch(), ask)
        return self._judge_shared(follower)

    def _judge_shared(self, follower: SharedFollower) -> RunnerOutcome | None:
        """Return the outcome of a shared attempt; None if the trial goes on alone."""
        outcome, task = follower.outcome, self._task
        if self._was_stopped:
            if outcome is None:
                reason = f"was stopped ({follower.alone_because})"
                raise TrialStoppedError(task.plan.experiment, task.trial_id, reason, SHARED_ATTEMPT)
            return outcome
        on_cluster = parse_text(self._operator.ray_address) is not None
        why = find_why_alone(outcome, on_cluster=on_cluster) if outcome else follower.alone_because
        if not why:
            return outcome
        self._log.warning(ALONE_NOW, task.trial_id, why)
        return None

    def _follow(
        self, looks: Iterator[RunnerProgress | None], ask_to_stop: Callable[[], None]
    ) -> None:
        """Show the results of the trial and the output of the run of many, until the trial ends."""
        task, plan = self._task, self._task.plan
        of_many = task.plan.is_whole_experiment and not task.is_one_of_many
        self._ask_to_stop = ask_to_stop
        try:
            for progress in looks:
                self._show_output()
                if progress is not None:
                    shown = describe_line(progress.to_line(), plan.metric, of_many=of_many)
                    self._log.info("%s", shown)
            self._ask_to_stop = None
        except LeaseLostError:
            self._ask_to_stop = None
            task.renew_lease(self._operator)  # raises, with the task to clear
            raise
        except TuneRestoreError:
            self._ask_to_stop = None  # the run continues; a retry attaches again
            raise
        finally:
            self._close_output()
            self.stop()  # after a timeout: the run stops this trial

    def _start_detached(self, request: RunnerRequest) -> None:
        with self._operator.local_launcher(self._task.experiment) as launcher:
            self._close_output()
            self._output = launcher.start_detached(request, outlives=not _ends_with_task())

    def _show_output(self) -> None:
        """Show the output of the shared run if this task started it; results are shown as progress."""
        for line in _new_lines(self._output):
            if RunnerProgress.from_line(line) is None:
                self._output_log.show(line)

    def _close_output(self) -> None:
        self._show_output()
        self._output_log.end()
        if self._output is not None:
            self._output.close()
            self._output = None

    def _claim(self, unit: str, attempt: int | None = None) -> RunnerRequest:
        return claim_next_attempt(
            *(self._task.store, self._task.plan, unit, self._settings()),
            log=self._log.info,
            attempt=attempt,
        )

    def _settings(self) -> RunnerSettings:
        address = _name_cluster(parse_text(self._operator.ray_address))
        return replace(
            self._operator.runner_settings(),
            address=address,
            # a private Ray needs none: it inherits the environment of its runner
            runtime_env=dict(self._operator.runtime_env or {}) if address is not None else {},
            can_grow=address is not None,
            at_once=self._operator.trials_at_once,
        )


def _ends_with_task() -> bool:
    """Whether this task's worker runs no other task, and ends with this one."""
    return any(map(os.environ.get, _OF_ONE_TASK))


def _name_cluster(address: str | None) -> str | None:
    """Return the address of a cluster. `auto` is that of a job, if this task runs as one.

    In a request, `auto` would mean that the attempt itself was submitted as a job.
    """
    return os.environ.get(ADDRESS) or address if address == IN_CLUSTER else address


def _new_lines(file: IO[str] | None) -> Iterator[str]:
    """Yield the complete lines that were written since the last call."""
    while file is not None:
        before = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(before)
            return
        yield line.rstrip("\n")
