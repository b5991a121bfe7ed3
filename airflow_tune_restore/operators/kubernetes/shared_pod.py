"""The one pod of a whole experiment, shared by the tasks of its trials.

The first task creates it. Each task follows its own trial through storage, and stops that trial alone.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow.sdk import Context

from airflow_tune_restore.exceptions import KeyExistsError, LeaseLostError
from airflow_tune_restore.launch.kubernetes.pod_spec import name_of
from airflow_tune_restore.launch.kubernetes.pod_start import has_no_image, is_pending
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.operators.attempt_task import AttemptTask
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.request import RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.follow import Follower, ask_to_stop
from airflow_tune_restore.restore.paused import is_window_over, paused_error
from airflow_tune_restore.version_compat import AirflowException

if TYPE_CHECKING:
    from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator

MAX_OUT_OF_MEMORY = 3
"""How many pods in a row may run out of memory during one try of a task."""


class SharedPod:
    """Follows the trial of a task in the pod of a whole-experiment run."""

    def __init__(self, operator: "RunnerPodOperator", task: AttemptTask) -> None:
        self._operator = operator
        self._trial = task
        self._whole = AttemptTask(task.experiment, task.plan, layout.WHOLE_EXPERIMENT)
        self._pods = operator.attempt_pods(self._whole)
        self._pending_since: dict[int, float] = {}
        self._is_followed = False

    def follow(self, context: Context) -> RunnerOutcome:
        """Attach to the whole-experiment run, or start its pod; return when the trial has ended."""
        self._trial.renew_lease(self._operator)
        before = self._whole.records.numbers()  # their causes may have been fixed since
        store, plan = self._trial.store, self._trial.plan
        follower = Follower(
            *(store, plan.restore_id, self._trial.trial_id),
            lambda attempt: self._start(context, attempt, before),
        )
        self._is_followed = True
        of_many = not self._trial.is_one_of_many
        try:
            for progress in follower.progress():
                if progress is not None:
                    shown = describe_line(progress.to_line(), plan.metric, of_many=of_many)
                    self._operator.log.info("%s", shown)
            self._is_followed = False
        except LeaseLostError:
            self._is_followed = False
            self._trial.renew_lease(self._operator)  # raises, with the task to clear
            raise
        except Exception:
            self._is_followed = False  # the run continues; a retry attaches again
            raise
        finally:
            self.stop()  # a timeout: this trial is given back
        assert follower.outcome is not None  # noqa: S101  progress() ends with one
        return follower.outcome

    def stop(self) -> None:
        """Stop this trial alone, if it is followed."""
        if self._is_followed:
            self._is_followed = False
            self._operator.log.info("Asking the run to stop this trial; the others continue.")
            ask_to_stop(self._trial.store, self._trial.plan.restore_id, self._trial.trial_id)

    def _start(self, context: Context, attempt: int, before: Sequence[int]) -> None:
        """Start the pod of an attempt.

        Raises:
            KeyExistsError: If one is alive, or another task was faster.
            RestorePausedError: If the window of the restore has ended.
        """
        store, plan = self._whole.store, self._whole.plan
        newest = self._pods.find_attempt()
        if is_window_over(store, plan):
            if newest.alive is not None:  # it waits for a node, or is cut off
                self._pods.pods.delete(name_of(newest.alive))
            raise paused_error(plan, layout.WHOLE_EXPERIMENT)
        if newest.alive is not None:
            self._give_up_pending(newest.alive)
            key = layout.request_key(plan.restore_id, layout.WHOLE_EXPERIMENT, newest.number)
            raise KeyExistsError(store.uri, key)  # it is only slow, or waits for a node
        if newest.number not in before and newest.ended is not None and newest.end is not None:
            self._pods.refuse_unstarted(newest.ended, newest.end)
        self._refuse_out_of_memory(range(max(before, default=0) + 1, attempt))
        request = self._operator.claim(self._whole, attempt)
        self._operator.start_pod(context, request, plan.metric)

    def _give_up_pending(self, request: RunnerRequest) -> None:
        """Delete a pod that has waited too long to start, or whose image cannot be pulled."""
        name, now = name_of(request), time.monotonic()
        pod = self._pods.pods.read(name) or {}
        if not is_pending(pod):
            self._pending_since.pop(request.attempt, None)
            return
        waited = now - self._pending_since.setdefault(request.attempt, now)
        if waited <= self._operator.startup_timeout_seconds and not has_no_image(pod):
            return
        why = self._pods.pods.delete_unstarted(name)
        if why is not None:
            raise AirflowException(
                f"All trials of {request.experiment}: pod {name} in namespace "
                f"{self._operator.pod_namespace} did not start: {why or 'Kubernetes gives no reason'}. "
                "It was deleted; the next try creates another one."
            )

    def _refuse_out_of_memory(self, attempts: Sequence[int]) -> None:
        """Create no further pod if the last ones ran out of memory: the next one has the same size."""
        ends = [self._whole.records.exit(attempt) for attempt in attempts[-MAX_OUT_OF_MEMORY:]]
        failures = [classify_exit(end.exit_code, end.message) for end in ends if end is not None]
        causes = [failure.cause for failure in failures if failure is not None]
        if causes == [Cause.OUT_OF_MEMORY] * MAX_OUT_OF_MEMORY:
            raise AirflowException(
                f"All trials of {self._whole.plan.experiment}: {MAX_OUT_OF_MEMORY} pods in a row ran out "
                "of memory, so no other one is created. Give them more (container_resources), or let "
                "fewer trials run at the same time (concurrent_trials)."
            )
