"""The pods of a trial's attempts, found by their names: whether they are alive, and how they ended."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    PodLostError,
    RunnerError,
)
from airflow_tune_restore.launch.kubernetes.api import POLL_SECONDS
from airflow_tune_restore.launch.kubernetes.named_pods import NamedPods
from airflow_tune_restore.launch.kubernetes.pod_exit import PodExit, is_ending, is_live
from airflow_tune_restore.launch.kubernetes.pod_spec import name_of, pod_name
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.request import (
    EXIT_REFUSED,
    Result,
    RunnerExit,
    RunnerOutcome,
    RunnerRequest,
)
from airflow_tune_restore.restore.ledger import explain
from airflow_tune_restore.restore.paused import (
    is_window_over,
    paused_error,
    saved_iteration,
)
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.runner_death import refuse_overtaken
from airflow_tune_restore.storage.base import ObjectStore

CLAIM_SECONDS = 2.0
"""Longest time on a disk between the directory of an attempt and its request."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestAttempt:
    """The newest attempt of a trial.

    Args:
        number: 0 before the first attempt.
        alive: Its request, if its pod is alive.
        unstarted: Its request, if it has no pod and its runner never began: its pod is about to be
            created, never was, or was deleted before it started.
        ended: Its request, if its pod still exists and has ended: `end` describes how.
    """

    number: int
    alive: RunnerRequest | None = None
    unstarted: RunnerRequest | None = None
    ended: RunnerRequest | None = None
    end: PodExit | None = None


@dataclass(frozen=True, kw_only=True)
class AttemptPods:
    """The pods of the attempts of one trial, or of the whole-experiment run.

    Args:
        store: Rooted at the experiment directory.
        trial_id: Trial id in the plan; `layout.WHOLE_EXPERIMENT` for the whole-experiment run.
        deletes_ended: Whether the user wants ended pods deleted.
    """

    pods: NamedPods
    store: ObjectStore
    plan: RestorePlan
    trial_id: str
    deletes_ended: bool
    sleep: Callable[[float], None] = time.sleep

    @property
    def records(self) -> AttemptRecords:
        """The records of the attempts."""
        return AttemptRecords(self.store, self.plan.restore_id, self.trial_id)

    def find_attempt(self) -> NewestAttempt:
        """Return the newest attempt.

        A pod that is about to end is waited for, so that it can save its snapshot. If no process followed
        a pod to its end, the end is recorded.
        """
        number, request = self._read_newest()
        if request is None:
            return NewestAttempt(number=number)
        name, pod = name_of(request), self._wait_for_ending(request)
        if pod is not None and is_live(pod, self.pods.watch.container):
            logger.info("Attaching to pod %s, attempt %d.", name, number)
            return NewestAttempt(number=number, alive=request)
        if pod is None and self._never_began(number):
            return NewestAttempt(number=number, unstarted=request)
        self._record_unseen(request, has_pod=pod is not None)
        end = self.pods.watch.look(pod) if pod is not None else None
        if pod is not None and self.deletes_ended:
            self.pods.delete(name)
        return NewestAttempt(number=number, ended=request if end else None, end=end)

    def delete_ended(self) -> None:
        """Delete the pod of a trial that has finished; its worker may have died before."""
        _, request = self._read_newest()
        if request is not None and self.deletes_ended:
            self.pods.delete(name_of(request))

    def find_request(self, name: str) -> RunnerRequest:
        """Return the attempt whose pod has this name (InvalidInputError without such an attempt)."""
        for attempt in reversed(self.records.numbers()):
            identity = (self.plan.experiment, self.plan.restore_id, self.trial_id, attempt)
            if pod_name(*identity) == name:
                return self.records.request(attempt)
        raise InvalidInputError(f"Pod {name} runs no attempt of restore {self.plan.restore_id}.")

    def get_outcome(self, request: RunnerRequest, end: PodExit | None) -> RunnerOutcome:
        """Return the outcome of an attempt; a disruption by Kubernetes is recorded for the ledger.

        `end` is how its pod ended; None to look.

        Raises:
            PodLostError: If Kubernetes took the pod away, or if it ended without an outcome.
            InvalidInputError: If the container could not be started as it was configured.
            RunnerError: If the runner refused and could not record that, or if it still runs.
            OvertakenError: If another try of the task runs the trial.
            LeaseLostError: If another restore holds the lease.
            RestorePausedError: If it ended without its own end, and the window of the restore has ended.
        """
        outcome = self.records.outcome(request.attempt)
        if outcome is not None and outcome.result not in (Result.INTERRUPTED, Result.FAILED):
            return outcome
        end = end or self.pods.look(name_of(request))
        if outcome is not None and outcome.result == Result.FAILED:
            return self._explain(outcome, end) if end is not None else outcome
        if end is None:
            raise RunnerError(f"Pod {name_of(request)} still runs; a retry attaches to it.")
        if outcome is not None and not end.is_disruption:
            return outcome
        self.refuse_unstarted(request, end)
        recorded = self.records.exit(request.attempt)
        if recorded is not None and end.exit_code is None:  # another try has seen more of it
            end = replace(end, exit_code=recorded.exit_code, message=recorded.message)
        elif self._has_run(request.attempt, end):
            self.records.record_exit(request.attempt, end.exit_code, end.message)
        if outcome is None:
            refuse_overtaken(self.store, self.plan, request, end.exit_code)
        if is_window_over(self.store, self.plan):
            raise paused_error(self.plan, self.trial_id, saved_iteration(outcome))
        failure = classify_exit(end.exit_code, end.message)
        if failure is None and outcome is not None:
            return outcome
        cause = failure.cause if failure is not None else Cause.UNKNOWN
        code = f", exit code {end.exit_code}" if end.exit_code is not None else ""
        last = f"; its last words: {end.last_words}" if end.last_words and outcome is None else ""
        reason = f"{end.message.rstrip('. ')}{code}{last}"
        attempt = request.attempt
        raise PodLostError(self.plan.experiment, self.trial_id, reason, cause.value, attempt)

    def refuse_unstarted(self, request: RunnerRequest, end: PodExit) -> None:
        """Raise if a container, or the runner in it, could not be started as configured.

        Raises:
            InvalidInputError: If its command or its image is wrong.
            RunnerError: If the runner refused before it could record that: it cannot reach the store.
        """
        if self.records.outcome(request.attempt) is not None:
            return
        failed = f"Trial {self.trial_id} of {self.plan.experiment} was not started"
        if self.trial_id == WHOLE_EXPERIMENT:
            failed = f"No trial of {self.plan.experiment} was started"
        last = end.last_line.removeprefix("error: ")
        where = f"(pod {name_of(request)})"
        if end.is_mistake:
            raise InvalidInputError(
                f"{failed}: {end.message}. Set python= to the interpreter in the image that has Ray and "
                "the trainable."
            )
        if self._lacks_package(request.attempt, end):
            raise InvalidInputError(
                f"{failed}: the image lacks this package: {last} {where}. Install airflow-tune-restore "
                "in the image, or set python= to the interpreter that has it."
            )
        if end.exit_code == EXIT_REFUSED:
            raise RunnerError(f"{failed}: {last} {where}")

    def _lacks_package(self, attempt: int, end: PodExit) -> bool:
        """Whether the image lacks this package; a runner that has begun has it."""
        return end.lacks_package and not self.records.has_begun(attempt)

    def _explain(self, outcome: RunnerOutcome, end: PodExit) -> RunnerOutcome:
        """Return the outcome of a failed trial, with Kubernetes' cause of its worker's death."""
        explained = explain(outcome, RunnerExit(exit_code=end.exit_code, message=end.message))
        if explained is not outcome:
            self.records.record_exit(outcome.attempt, end.exit_code, end.message)
        return explained

    def _record_unseen(self, request: RunnerRequest, *, has_pod: bool) -> None:
        """Record how a pod ended that no process followed to its end."""
        attempt = request.attempt
        if self.records.exit(attempt) is not None:
            return
        outcome = self.records.outcome(attempt)
        if outcome is None:
            has_cause = has_pod or self.records.has_begun(attempt)
        else:
            has_cause = outcome.result in (Result.INTERRUPTED, Result.FAILED)
        end = self.pods.look(name_of(request)) if has_cause else None
        if end is None or end.is_mistake or self._lacks_package(attempt, end):
            return
        if outcome is not None and outcome.result == Result.FAILED:
            self._explain(outcome, end)
        elif (outcome is None or end.is_disruption) and self._has_run(attempt, end):
            logger.warning("Attempt %d ended unseen: %s", attempt, end.message)
            self.records.record_exit(attempt, end.exit_code, end.message)

    def _has_run(self, attempt: int, end: PodExit) -> bool:
        """Whether a runner was started: a pod that was taken away before that costs no attempt."""
        if end.exit_code is not None and not end.was_deleted:
            return True
        return self.records.has_begun(attempt)

    def _never_began(self, attempt: int) -> bool:
        """Whether an attempt was claimed, and nothing else is recorded of it."""
        records = self.records
        return not (records.has_begun(attempt) or records.outcome(attempt) or records.exit(attempt))

    def _read_newest(self) -> tuple[int, RunnerRequest | None]:
        """Read number and request; a disk has the directory of an attempt before its request."""
        number, waited = self.records.newest(), 0.0
        while number:
            try:
                return number, self.records.request(number)
            except KeyNotFoundError:
                if waited >= CLAIM_SECONDS:
                    break
            self.sleep(0.5)
            waited += 0.5
        return number, None

    def _wait_for_ending(self, request: RunnerRequest) -> dict[str, Any] | None:
        """Return an attempt's pod; if it is about to end, when it has ended or is lost."""
        name = name_of(request)
        pod, logged = self.pods.read(name), False
        while pod is not None and is_ending(pod) and self.pods.watch.look(pod) is None:
            if self.records.exit(request.attempt) is not None:
                break  # an earlier try has waited for it, until it was lost
            if not logged:
                logger.info("Waiting for pod %s to end; it saves a snapshot.", name)
                logged = True
            self.sleep(POLL_SECONDS)
            pod = self.pods.read(name)
        return pod
