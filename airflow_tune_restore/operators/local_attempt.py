"""Runs the attempts of a task as processes on the worker."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import LeaseLostError, TuneRestoreError
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.launch.runner_log import RunnerLog
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.request import (
    RunnerOutcome,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.claim import claim_next_attempt
from airflow_tune_restore.restore.follow import Follower, ask_to_stop
from airflow_tune_restore.restore.paused import find_final_outcome
from airflow_tune_restore.restore.runner_death import LAST_LINES, record_death

if TYPE_CHECKING:
    from airflow_tune_restore.launch.process import RunnerProcess
    from airflow_tune_restore.operators.attempt_task import AttemptOperator, AttemptTask

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
        self._follows_shared_run = False
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
        """Run the next attempt, or follow the shared run, until the trial has an outcome."""
        del context
        self._task.renew_lease(self._operator)
        return self._follow_shared_run() if self._task.shares_run else self._run_child()

    def stop(self) -> None:
        """Let the runner save a snapshot and exit; in a shared run, stop this trial alone. Once."""
        follows, self._follows_shared_run = self._follows_shared_run, False
        if follows:
            self._log.info("Asking the run to stop this trial; the others continue.")
            ask_to_stop(self._task.store, self._task.plan.restore_id, self._task.trial_id)
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

        def start(attempt: int) -> None:
            request = self._claim(layout.WHOLE_EXPERIMENT, attempt)
            self._log.info("Starting the whole-experiment run, attempt %d.", attempt)
            with self._operator.local_launcher(task.experiment) as launcher:
                self._close_output()
                self._output = launcher.start_detached(request)

        follower = Follower(task.store, plan.restore_id, task.trial_id, start)
        of_many = not task.is_one_of_many
        self._follows_shared_run = True
        try:
            for progress in follower.progress():
                self._show_output()
                if progress is not None:
                    shown = describe_line(progress.to_line(), plan.metric, of_many=of_many)
                    self._log.info("%s", shown)
            self._follows_shared_run = False
        except LeaseLostError:
            self._follows_shared_run = False
            task.renew_lease(self._operator)  # raises, with the task to clear
            raise
        except TuneRestoreError:
            self._follows_shared_run = False  # the run continues; a retry attaches again
            raise
        finally:
            self._close_output()
            self.stop()  # after a timeout: the run stops this trial
        assert follower.outcome is not None  # noqa: S101  progress() ends with one
        return follower.outcome

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
        address = parse_text(self._operator.ray_address)
        settings = replace(
            self._operator.runner_settings(),
            address=address,
            # a private Ray needs none: it inherits the environment of its runner
            runtime_env=dict(self._operator.runtime_env or {}) if address is not None else {},
            can_grow=address is not None,
        )
        return claim_next_attempt(
            *(self._task.store, self._task.plan, unit, settings),
            log=self._log.info,
            attempt=attempt,
        )


def _new_lines(file: IO[str] | None) -> Iterator[str]:
    """Yield the complete lines that were written since the last call."""
    while file is not None:
        before = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(before)
            return
        yield line.rstrip("\n")
