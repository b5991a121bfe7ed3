"""The pods of attempts, found by their names: alive or not, and how they ended."""

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
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.runner_death import refuse_overtaken
from airflow_tune_restore.storage.base import ObjectStore

CLAIM_SECONDS = 2.0
"""How long a claim may take on a disk, between the directory of an attempt and its request."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestAttempt:
    """What there is of the newest attempt of a trial.

    Args:
        number: Its number; 0 if there is none.
        alive: Its request, if its pod is alive.
        unstarted: Its request, if it has neither a pod nor ever shown a sign of life: its pod is about
            to be created, never was, or was deleted before it started.
        ended: Its request, if its pod is still there and has ended.
        end: How that has ended.
    """

    number: int
    alive: RunnerRequest | None = None
    unstarted: RunnerRequest | None = None
    ended: RunnerRequest | None = None
    end: PodExit | None = None


@dataclass(frozen=True, kw_only=True)
class AttemptPods:
    """Looks after pods that nobody follows just now.

    Args:
        pods: The pods of the namespace.
        deletes_ended: Whether the user wants ended pods deleted.
        sleep: Waits some seconds.
    """

    pods: NamedPods
    deletes_ended: bool
    sleep: Callable[[float], None] = time.sleep

    def find_attempt(self, store: ObjectStore, plan: RestorePlan, trial_id: str) -> NewestAttempt:
        """Return what there is of the newest attempt.

        A pod that is about to end is waited for, so that it can save its snapshot in peace. How one
        ended that nobody followed is written down.
        """
        newest = AttemptRecords(store, plan.restore_id, trial_id).newest()
        request = self._read_claimed(store, plan, trial_id, newest) if newest else None
        if request is None:
            return NewestAttempt(number=newest)
        name = name_of(request)
        pod = self._settled(store, request)
        if pod is not None and is_live(pod, self.pods.watch.container):
            logger.info("Attaching to pod %s, attempt %d.", name, newest)
            return NewestAttempt(number=newest, alive=request)
        if pod is None and self._is_untouched(store, request):
            return NewestAttempt(number=newest, unstarted=request)
        self._record_unseen(store, request, has_pod=pod is not None)
        end = self.pods.watch.look(pod) if pod is not None else None
        if pod is not None and self.deletes_ended:
            self.pods.delete(name)
        return NewestAttempt(number=newest, ended=request if end else None, end=end)

    def delete_ended(self, store: ObjectStore, plan: RestorePlan, trial_id: str) -> None:
        """Delete the pod of a trial that has finished; its worker may have died before it could."""
        newest = AttemptRecords(store, plan.restore_id, trial_id).newest()
        request = self._read_claimed(store, plan, trial_id, newest) if newest else None
        if request is not None and self.deletes_ended:
            self.pods.delete(name_of(request))

    def get_outcome(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        request: RunnerRequest,
        end: PodExit | None,
    ) -> RunnerOutcome:
        """Return the outcome of an attempt.

        A disruption by Kubernetes is recorded, for the ledger and for later tries.

        Raises:
            PodLostError: If Kubernetes took the pod away, or if it ended without an outcome.
            InvalidInputError: If the container could not be started as it was configured.
            RunnerError: If the runner refused and could not write so, or still runs.
            OvertakenError: If another try of the task runs the trial.
            LeaseLostError: If another restore is at work.
        """
        outcome = AttemptRecords.of(store, request).outcome(request.attempt)
        if outcome is not None and outcome.result not in (Result.INTERRUPTED, Result.FAILED):
            return outcome
        end = end or self.pods.look(name_of(request))
        if outcome is not None and outcome.result == Result.FAILED:
            return self._explained(store, request, outcome, end) if end is not None else outcome
        if end is None:
            raise RunnerError(f"Pod {name_of(request)} still runs; a retry attaches to it.")
        if outcome is not None and not end.is_disruption:
            return outcome
        self.refuse_unstarted(store, plan, request, end)
        recorded = AttemptRecords.of(store, request).exit(request.attempt)
        if recorded is not None and end.exit_code is None:  # a try beside us has seen more of it
            end = replace(end, exit_code=recorded.exit_code, message=recorded.message)
        elif self._has_run(store, request, end):
            AttemptRecords.of(store, request).record_exit(
                request.attempt, end.exit_code, end.message
            )
        if outcome is None:
            refuse_overtaken(store, plan, request, end.exit_code)
        failure = classify_exit(end.exit_code, end.message)
        if failure is None and outcome is not None:
            return outcome
        cause = failure.cause if failure is not None else Cause.UNKNOWN
        code = f", exit code {end.exit_code}" if end.exit_code is not None else ""
        said = f". It last said: {end.last_words}" if end.last_words and outcome is None else ""
        reason = f"{end.message.rstrip('. ')}{code}{said}"
        raise PodLostError(plan.experiment, request.trial_id, reason, cause.value)

    def refuse_unstarted(
        self, store: ObjectStore, plan: RestorePlan, request: RunnerRequest, end: PodExit
    ) -> None:
        """Raise if a container ended because it, or the runner in it, could not be started as given.

        Raises:
            InvalidInputError: If its command or its image is the wrong one.
            RunnerError: If the runner refused, before it could write so: it has no way to the store.
        """
        if (
            AttemptRecords(store, request.restore_id, request.trial_id).outcome(request.attempt)
            is not None
        ):
            return  # it says how it ended
        of_all = request.trial_id == WHOLE_EXPERIMENT
        what = f"{'No trial' if of_all else f'Trial {request.trial_id}'} of {plan.experiment} was "
        what += "started" if of_all else "not started"
        last = end.last_line.removeprefix("error: ")
        where = f"(pod {name_of(request)})"
        if end.is_mistake:
            raise InvalidInputError(
                f"{what}: {end.message}. Set python= to the interpreter in the image that has Ray and "
                "the trainable."
            )
        if self._has_no_package(store, request, end):
            raise InvalidInputError(
                f"{what}: the image lacks this package: {last} {where}. Install airflow-tune-restore in "
                "the image, or set python= to the interpreter that has it."
            )
        if end.exit_code == EXIT_REFUSED:
            raise RunnerError(f"{what}: {last} {where}")

    def _has_no_package(self, store: ObjectStore, request: RunnerRequest, end: PodExit) -> bool:
        """Whether the image lacks this package; a runner that has begun has it."""
        return end.lacks_package and not AttemptRecords.of(store, request).has_begun(
            request.attempt
        )

    def _explained(
        self, store: ObjectStore, request: RunnerRequest, outcome: RunnerOutcome, end: PodExit
    ) -> RunnerOutcome:
        """Return the outcome of a failed trial, with what Kubernetes knows of its worker's death."""
        explained = explain(outcome, RunnerExit(exit_code=end.exit_code, message=end.message))
        if explained is not outcome:
            AttemptRecords.of(store, request).record_exit(
                request.attempt, end.exit_code, end.message
            )
        return explained

    def _record_unseen(self, store: ObjectStore, request: RunnerRequest, *, has_pod: bool) -> None:
        outcome = AttemptRecords.of(store, request).outcome(request.attempt)
        if AttemptRecords.of(store, request).exit(request.attempt) is not None:
            return
        if outcome is None:
            can_tell = has_pod or AttemptRecords.of(store, request).has_begun(request.attempt)
        else:
            can_tell = outcome.result in (Result.INTERRUPTED, Result.FAILED)
        end = self.pods.look(name_of(request)) if can_tell else None
        if end is None or end.is_mistake or self._has_no_package(store, request, end):
            return
        if outcome is not None and outcome.result == Result.FAILED:
            self._explained(store, request, outcome, end)
        elif outcome is not None and not end.is_disruption:
            return
        elif self._has_run(store, request, end):
            logger.warning("Attempt %d ended unseen: %s", request.attempt, end.message)
            AttemptRecords.of(store, request).record_exit(
                request.attempt, end.exit_code, end.message
            )

    def _has_run(self, store: ObjectStore, request: RunnerRequest, end: PodExit) -> bool:
        """Whether a runner was started at all: a pod that was taken away before costs no attempt."""
        if end.exit_code is not None and not end.was_deleted:
            return True
        return AttemptRecords.of(store, request).has_begun(request.attempt)

    def _is_untouched(self, store: ObjectStore, request: RunnerRequest) -> bool:
        """Whether nothing was ever heard or written down of an attempt but that it was claimed."""
        return (
            not AttemptRecords.of(store, request).has_begun(request.attempt)
            and AttemptRecords.of(store, request).outcome(request.attempt) is None
            and AttemptRecords.of(store, request).exit(request.attempt) is None
        )

    def _read_claimed(
        self, store: ObjectStore, plan: RestorePlan, trial_id: str, attempt: int
    ) -> RunnerRequest | None:
        """Read a request; a disk has the directory before, so wait for what is being claimed just now."""
        waited = 0.0
        while True:
            try:
                return AttemptRecords(store, plan.restore_id, trial_id).request(attempt)
            except KeyNotFoundError:
                if waited >= CLAIM_SECONDS:
                    return None
            self.sleep(0.5)
            waited += 0.5

    def _settled(self, store: ObjectStore, request: RunnerRequest) -> dict[str, Any] | None:
        """Return an attempt's pod once it has ended, or is lost, if it is about to end."""
        name = name_of(request)
        pod, logged = self.pods.read(name), False
        while pod is not None and is_ending(pod) and self.pods.watch.look(pod) is None:
            if AttemptRecords.of(store, request).exit(request.attempt) is not None:
                break  # an earlier try has waited for it, until it was lost
            if not logged:
                logger.info("Waiting for pod %s to end; it saves a snapshot.", name)
                logged = True
            self.sleep(POLL_SECONDS)
            pod = self.pods.read(name)
        return pod


def find_request(store: ObjectStore, plan: RestorePlan, trial_id: str, name: str) -> RunnerRequest:
    """Return the attempt whose pod has this name (InvalidInputError if none has)."""
    for attempt in reversed(AttemptRecords(store, plan.restore_id, trial_id).numbers()):
        if pod_name(plan.experiment, plan.restore_id, trial_id, attempt) == name:
            return AttemptRecords(store, plan.restore_id, trial_id).request(attempt)
    raise InvalidInputError(f"Pod {name} runs no attempt of restore {plan.restore_id}.")
