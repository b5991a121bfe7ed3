"""The Ray job of a driver that several trials share, for the task of one of them.

Unlike a job of a trial, it has two numbers: the driver's, and that of the trial's attempt.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from airflow_tune_restore.exceptions import RecordUnreadableError, RunnerError
from airflow_tune_restore.launch.ray.attempt_job import Attached, RayAttemptJob
from airflow_tune_restore.launch.ray.job import describe_end
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import QUIET_SECONDS
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.follow import Heartbeats
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.restore.shared_driver import (
    ALONE_AGAIN,
    ALONE_NOW,
    ELSEWHERE,
    SHARED,
    find_shared,
    find_why_alone,
    hand_over,
    leave_ended_driver,
)

_LOOK_SECONDS = 1.0


@dataclass(kw_only=True)
class SharedDriverJob(RayAttemptJob):
    """The job of the shared driver, as the task of one of its trials sees it."""

    _was_stopped_here: bool = field(default=False, init=False)
    _is_handed_over: bool = field(default=False, init=False)  # and its task follows no job yet

    @classmethod
    def beside(cls, own: RayAttemptJob) -> Self:
        """Return the job of the shared driver for the trial of a job of its own."""
        return cls(**{of.name: getattr(own, of.name) for of in fields(RayAttemptJob) if of.init})

    @property
    def unit(self) -> str:
        """The shared driver."""
        return layout.SHARED_DRIVER

    @property
    def is_one_of_many(self) -> bool:
        """The trial is one of many."""
        return True

    @property
    def is_followed(self) -> bool:
        """Whether a shared driver runs the trial, or will."""
        return find_shared(self.trial_records) is not None

    def attempt_of_trial(self, attempt: int) -> int:
        """Return the trial's attempt: always the first."""
        del attempt
        return SHARED_ATTEMPT

    def ends_with_job(self, attempt: int) -> bool:
        """Return False: the task waits for the outcome of its trial."""
        del attempt
        return False

    def hand_over(self) -> bool:
        """Lay the trial on the desk; False if it runs in a job of its own.

        Raises as `shared_driver.hand_over`.
        """
        subject = (self.store, self.plan, self.trial_id, self.settings)
        self._is_handed_over = True  # a kill from here on must reach the driver
        if hand_over(*subject, log=self.log.info) is None:
            self._is_handed_over = False
            self.log.info(ALONE_AGAIN)
            return False
        return not self._is_lost_before() or self._waits_for_next_driver(None)

    def submit_or_attach(self, remembered: int = 0) -> Attached:
        """Attach to the living job of the newest driver, or claim the next driver and submit its job."""
        try:
            attached = super().submit_or_attach(remembered)
        except RestorePausedError as error:
            raise replace(error, trial_id=self.trial_id) from None
        self._is_handed_over = False
        self.log.info(
            *(SHARED, self.trial_id, self.plan.experiment, SHARED_ATTEMPT, self.plan.restore_id)
        )
        if not attached.is_ours:
            self.log.info(ELSEWHERE, attached.attempt)
        return attached

    def get_job_result(self, attempt: int, event: Mapping[str, Any]) -> RunnerOutcome | None:
        """Return the trial's outcome; None if it is to be run now: by the next driver, or alone.

        Raises:
            RunnerError: If the job of the driver never started.
        """
        outcome = self._trial_outcome(attempt)
        self._show_results(SHARED_ATTEMPT, int(event.get("seen", 0)))
        self._show_lines(int(event.get("lines", 0)))
        if outcome is not None:
            why = find_why_alone(outcome, on_cluster=True)
            if self._was_stopped_here or not why:
                return outcome
            self.log.warning(ALONE_NOW, self.trial_id, why)
            return None
        if not self.records.has_begun(attempt) and self.records.outcome(attempt) is None:
            self._refuse_unstarted(attempt)
        self._waits_for_next_driver(attempt)
        return None

    def _show_lines(self, seen: int) -> None:
        """Show the lines after the first `seen` that the trial printed."""
        with contextlib.suppress(RecordUnreadableError):  # `_show_results` has told
            tail = self.trial_records.progress(SHARED_ATTEMPT)
            self._shown.show_all(tail.lines_after(seen) if tail is not None else ())
        self._shown.end()

    def stop(self) -> None:
        """Stop this trial alone, once; also before the job is followed."""
        if self._is_handed_over:
            self._is_handed_over = False
            self._stop_alone()
        else:
            super().stop()

    def stop_newest(self) -> None:
        """Ask the driver to stop this trial: no task waits for it any more."""
        self._stop_alone()

    def _stop_alone(self) -> None:
        self._was_stopped_here = True
        self.log.info("Asking the shared driver to stop this trial; the others continue.")
        Desk(self.store, self.plan.restore_id).ask_to_stop(self.trial_id, SHARED_ATTEMPT)

    def _waits_for_next_driver(self, ended: int | None) -> bool:
        """Whether the trial goes to the next driver; else it runs alone. As `leave_ended_driver`."""
        why = leave_ended_driver(self.store, self.plan.restore_id, self.trial_id, ended)
        if why:
            self.log.warning(ALONE_NOW, self.trial_id, why)
        return not why

    def _is_lost_before(self) -> bool:
        """Whether an earlier try saw the trial begin in a driver that has died since.

        A later driver may live, and it does not run the trial. So its own heartbeat decides.
        """
        records = self.trial_records
        if not records.has_begun(SHARED_ATTEMPT):
            return False
        heartbeats = Heartbeats(records)
        heartbeats.quiet(SHARED_ATTEMPT)
        while records.outcome(SHARED_ATTEMPT) is None:
            time.sleep(_LOOK_SECONDS)
            _, seconds = heartbeats.quiet(SHARED_ATTEMPT)
            if seconds == 0.0:
                return False
            if seconds > QUIET_SECONDS:
                return True
        return False

    def _refuse_unstarted(self, attempt: int) -> None:
        """Raise if the job of the driver ended before it began: the jobs of single trials would, too.

        At the end of the window it was stopped.
        """
        job = self.jobs.find(self.job_id(attempt))
        if self._was_stopped(attempt) or job is None:
            return
        shown = " | ".join(describe_end(job, ()))
        raise RunnerError(
            f"The shared driver of {self.plan.experiment}, which trial {self.trial_id} waited for, was "
            f"not started: {shown}"
        )
