"""One attempt as a Ray job, for a task: attach to it or submit it, poll it, and return its result."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    KeyNotFoundError,
    RecordUnreadableError,
    RunnerError,
    RunnerRefusedError,
    TuneRestoreError,
    name_trial,
)
from airflow_tune_restore.launch.log_lines import Log, newest_results
from airflow_tune_restore.launch.ray.job import (
    ASKED_AGAIN,
    describe_end,
    stop_attempt,
    submit_job,
    wait_for_stop,
)
from airflow_tune_restore.launch.ray.job_log import LONGEST_LOG, JobLog
from airflow_tune_restore.launch.ray.jobs_api import ABSENT_LISTS, OUTAGE_SECONDS, RayJob, RayJobs
from airflow_tune_restore.launch.ray.submission import DriverResources, build_submission
from airflow_tune_restore.launch.runner_log import RunnerLog
from airflow_tune_restore.protocol import layout, lease, window
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.ray_job import submission_id
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.follow import ask_to_stop
from airflow_tune_restore.restore.paused import find_final_outcome, paused_error
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.runner_death import record_death
from airflow_tune_restore.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The attempt of a unit that a task follows, its job, and whether this task has submitted the job."""

    attempt: int
    submission_id: str
    is_ours: bool


@dataclass(kw_only=True)
class RayAttemptJob:
    """The attempts of a trial, or of the whole-experiment run that it is part of, as Ray jobs."""

    jobs: RayJobs
    store: ObjectStore  # rooted at the experiment directory
    plan: RestorePlan
    trial_id: str  # `layout.WHOLE_EXPERIMENT` for the whole-experiment run itself
    settings: RunnerSettings
    runtime_env: Mapping[str, Any]  # its local parts are uploaded
    env: Mapping[str, str]  # of the job; no secrets
    driver: DriverResources
    poll_interval: float  # seconds
    log: Log
    attached: Attached | None = field(default=None, init=False)
    _shown: RunnerLog = field(init=False)

    def __post_init__(self) -> None:
        """Show what the job prints in the log of the task."""
        is_whole = self.trial_id == layout.WHOLE_EXPERIMENT
        self._shown = RunnerLog(self.log, self.plan.metric, of_many=is_whole)

    @property
    def unit(self) -> str:
        """The trial that the job runs, or the whole experiment."""
        return layout.WHOLE_EXPERIMENT if self.plan.is_whole_experiment else self.trial_id

    @property
    def is_one_of_many(self) -> bool:
        """Whether the trial is one of many in the whole-experiment run."""
        return self.plan.is_whole_experiment and self.trial_id != layout.WHOLE_EXPERIMENT

    @property
    def records(self) -> AttemptRecords:
        """The records of the unit's attempts."""
        return AttemptRecords(self.store, self.plan.restore_id, self.unit)

    @property
    def trial_records(self) -> AttemptRecords:
        """The records of the trial alone: its outcomes and its progress."""
        return AttemptRecords(self.store, self.plan.restore_id, self.trial_id)

    def attempt_of_trial(self, attempt: int) -> int:
        """Return the number of the trial's attempt that an attempt of the unit runs: the same."""
        return attempt

    @property
    def stop_at(self) -> datetime | None:
        """When a job is stopped that has not ended with the window of the restore; None for never."""
        return window.last_moment(self.plan.pause_at)

    def job_id(self, attempt: int) -> str:
        """Return the submission id of an attempt's job."""
        return submission_id(self.plan.experiment, self.plan.restore_id, self.unit, attempt)

    def find_final_outcome(self) -> RunnerOutcome | None:
        """Return the outcome of a trial that has ended for good; None if it is to be run."""
        outcome = find_final_outcome(self.store, self.plan, self.trial_id)
        if outcome is None:
            return None
        self.log.info("It has ended already, in attempt %d.", outcome.attempt)
        self._show_results(outcome.attempt, 0)
        return outcome

    def submit_or_attach(self, remembered: int = 0) -> Attached:
        """Attach to the living job of the newest attempt, or claim the next attempt and submit its job.

        `remembered` is the attempt that this task is known to have followed before; 0 for none.

        Raises:
            InvalidInputError: If the cluster refuses the job.
            RayClusterError: If the cluster is out of reach.
        """
        while True:
            newest = max([remembered, *self.records.numbers()])
            number = newest + 1
            try:
                if newest and (attached := self._attach_to(newest)) is not None:
                    self.attached = attached
                    return attached
            except KeyNotFoundError:
                # its directory exists and its request does not: the first to create it has it
                number = newest
            claimed = (self.store, self.plan, self.unit, self.settings)
            try:
                request = claim_next_attempt(*claimed, log=self.log.info, attempt=number)
            except KeyExistsError:
                continue  # another task was faster: attach to its job
            self.attached = self._submit(request)
            return self.attached

    def has_living(self, remembered: int = 0) -> bool:
        """Whether the newest attempt has a living job; one that is being stopped is waited for."""
        newest = max([remembered, *self.records.numbers()])
        try:
            return newest > 0 and self._attach_to(newest) is not None
        except KeyNotFoundError:
            return False  # it is not claimed yet

    def _attach_to(self, attempt: int) -> Attached | None:
        """Attach to an attempt's job; None if it is over. KeyNotFoundError if it is not claimed."""
        if self.records.outcome(attempt) is not None:
            return None
        job_id = self.job_id(attempt)
        job = self.jobs.find(job_id)
        if job is not None and job.is_over:
            return None
        if self._was_stopped(attempt):
            wait_for_stop(self.jobs, self.records, attempt, job_id, self.log)
            return None
        if job is not None:
            self.log.info("Attached to Ray job %s, attempt %d.", job_id, attempt)
            return Attached(attempt=attempt, submission_id=job_id, is_ours=False)
        if self.records.exit(attempt, infer_from_heartbeat=True) is not None:
            return None
        # claimed, and not submitted: the claiming process died, or is about to submit it
        return self._submit(self.records.request(attempt))

    def _submit(self, request: RunnerRequest) -> Attached:
        submission = build_submission(
            self.jobs, request, runtime_env=self.runtime_env, env=self.env, driver=self.driver
        )
        job_id = submission["submission_id"]
        is_ours = submit_job(self.jobs, submission, pause_seconds=self.poll_interval, log=self.log)
        self.log.info(
            "%s Ray job %s: %s %s of %s, attempt %d of restore %s",
            "Started" if is_ours else "Attached to",
            *(job_id, request.action, name_trial(self.unit), self.plan.experiment),
            *(request.attempt, self.plan.restore_id),
        )
        return Attached(attempt=request.attempt, submission_id=job_id, is_ours=is_ours)

    def shows_output(self, attached: Attached) -> bool:
        """Whether this task shows what the job prints: one task per job does."""
        return not self.is_one_of_many or attached.is_ours

    def ends_with_job(self, attempt: int) -> bool:
        """Whether the task waits for the job's end. In a whole-experiment run, a trial ends before it.

        But a trial that was stopped in that run can only go on when the run is over.
        """
        return not self.is_one_of_many or self._trial_outcome(attempt) is not None

    def poll_until_complete(self, attached: Attached) -> dict[str, Any]:
        """Wait here, in the worker, and show the output; return what a trigger's event holds.

        Raises:
            TuneRestoreError: If the cluster was out of reach for `OUTAGE_SECONDS`; the job runs on.
        """
        offset = seen = absent = read = 0
        outage = ""  # logged last
        ends_with_job = self.ends_with_job(attached.attempt)
        reached = renewed = time.monotonic()
        while True:
            # a job that waits for resources cannot
            if time.monotonic() - renewed > lease.RENEW_SECONDS:
                renewed = time.monotonic()
                lease.keep_alive(self.store, self.plan.restore_id)
            try:
                job = self.jobs.find(attached.submission_id)
                reached, outage = time.monotonic(), ""
            except TuneRestoreError as error:
                # the address was right before: whatever it answers now
                if time.monotonic() - reached > OUTAGE_SECONDS:
                    raise
                if str(error) != outage:
                    self.log.warning(ASKED_AGAIN, error)
                outage = str(error)
                time.sleep(self.poll_interval)
                continue
            absent = absent + 1 if job is None else 0
            is_over = absent >= ABSENT_LISTS or (job is not None and job.is_over)
            if not is_over and not ends_with_job:
                is_over = self._trial_outcome(attached.attempt) is not None
            if not is_over and window.seconds_until(self.stop_at, datetime.now(UTC)) == 0:
                self.log.info("The window of this restore has ended.")
                self._stop_unit(attached)
                is_over = True
            if is_over:
                return {"offset": offset, "seen": seen, "is_lost": job is None}
            seen = self._show_results(self.attempt_of_trial(attached.attempt), seen)
            if self.shows_output(attached) and read < LONGEST_LOG:
                log = JobLog(offset=offset, results=None, most=LONGEST_LOG)
                self._read_log(attached.submission_id, log)
                self._show_log(attached.submission_id, log)
                offset, read = max(offset, log.length), max(read, log.read)
            time.sleep(self.poll_interval)

    def get_job_result(self, attempt: int, event: Mapping[str, Any]) -> RunnerOutcome | None:
        """Show the rest of the output and return the trial's outcome; None if it is to be run again now.

        `event` is the payload of the trigger's event, or the return value of `poll_until_complete`.

        Raises:
            RunnerDiedError: If the job ended and the trial has no outcome.
            RunnerError: If the job never started.
            RunnerRefusedError: If the whole-experiment run was refused or fenced.
            RunnerError: If the whole-experiment run was stopped before the trial had ended.
        """
        offset, seen = int(event.get("offset", 0)), int(event.get("seen", 0))
        job_id = self.job_id(attempt)
        outcome = self.trial_records.outcome(attempt)
        log = JobLog(offset=offset, results=seen)
        if not self.is_one_of_many:
            self._read_log(job_id, log)
            log.end()
            self._show_log(job_id, log)
        self._shown.end()
        if not log.read:  # the log went with its node, or another task shows it
            self._show_results(attempt, seen)
        if outcome is not None and (
            outcome.result != Result.INTERRUPTED or outcome.cause == Cause.NO_ROOM
        ):
            return outcome
        # an earlier try of this task was killed while it waited, and this one has attached too early
        was_stopped = self._was_stopped(attempt) or (self.is_one_of_many and outcome is not None)
        if was_stopped and (event.get("is_lost") or self._is_over(job_id)):
            return None
        if outcome is not None:
            return outcome
        raise self._describe_failure(attempt, self.jobs.find(job_id), log.last)

    def stop(self) -> None:
        """Stop the job; for one of many trials in a whole-experiment run, this trial alone. Once."""
        attached, self.attached = self.attached, None
        if attached is None:
            return
        if self.is_one_of_many:
            self._stop_alone()
        else:
            self._stop_unit(attached)

    def _stop_alone(self) -> None:
        """Ask the run of many to stop this trial."""
        self.log.info("Asking the run to stop this trial; the others continue.")
        ask_to_stop(self.store, self.plan.restore_id, self.trial_id)

    def _stop_unit(self, attached: Attached) -> None:
        """Stop the job, also that of many trials."""
        job_id = attached.submission_id
        self.log.info("Stopping %s; it saves a snapshot first.", job_id)
        attempt = AttemptId(self.plan.restore_id, self.unit, attached.attempt)
        stop_attempt(self.store, self.jobs, attempt, job_id)

    def stop_newest(self) -> None:
        """Stop the newest attempt, if there is one: no task waits for it any more."""
        if newest := self.records.newest():
            job_id = self.job_id(newest)
            self.attached = Attached(attempt=newest, submission_id=job_id, is_ours=False)
            self.stop()

    def _describe_failure(
        self, attempt: int, job: RayJob | None, last_lines: Iterable[str]
    ) -> TuneRestoreError:
        """Return the error for a job that ended and left no outcome of this trial."""
        whole = self.records.outcome(attempt)
        if whole is None:
            request = self.records.request(attempt)
            exit_code = job.driver_exit_code if job is not None else None
            shown = describe_end(job, last_lines)
            return record_death(self.store, self.plan, request, exit_code, shown)
        cause = whole.describe_error()
        if whole.result == Result.PAUSED:
            return paused_error(self.plan, self.trial_id, self._last_iteration(attempt))
        if whole.result in (Result.REFUSED, Result.FENCED):
            return RunnerRefusedError(f"{self.plan.experiment} was not restored: {cause}")
        return RunnerError(
            f"The whole-experiment run of {self.plan.experiment} was stopped before "
            f"{name_trial(self.trial_id)} had ended ({cause}); a retry goes on from its snapshot."
        )

    def _last_iteration(self, attempt: int) -> int | None:
        """Return the last iteration that the trial has reported in an attempt; None if it is unknown."""
        try:
            tail = self.trial_records.progress(attempt)
        except RecordUnreadableError:
            return None
        return tail.reports[-1].iteration if tail is not None and tail.reports else None

    def _trial_outcome(self, attempt: int) -> RunnerOutcome | None:
        return self.trial_records.outcome(self.attempt_of_trial(attempt))

    def _is_over(self, job_id: str) -> bool:
        job = self.jobs.find(job_id)
        return job is None or job.is_over

    def _was_stopped(self, attempt: int) -> bool:
        key = layout.stopped_key(self.plan.restore_id, self.unit, attempt)
        try:
            self.store.get(key, max_bytes=65536)
        except KeyNotFoundError:
            return False
        return True

    def _show_results(self, attempt: int, seen: int) -> int:
        """Show the results after the first `seen`, and return how many there are."""
        try:
            tail = self.trial_records.progress(attempt)
        except RecordUnreadableError as error:
            self.log.warning("The trial's results are not shown: %s", printable(str(error)))
            return seen
        if tail is None:
            return seen
        self._shown.show_all(newest_results(tail.after(seen)))
        return max(seen, tail.count)

    def _read_log(self, job_id: str, log: JobLog) -> None:
        """Read a job's log, or as much as can be read: a log decides nothing."""
        try:
            self.jobs.read_log(job_id, log)
        except TuneRestoreError as error:
            self.log.warning("%s The log is incomplete.", error)

    def _show_log(self, job_id: str, log: JobLog) -> None:
        where = f"the whole log: {self.jobs.cluster.log_command(job_id)}"
        self._shown.show_all(log.newest.take(where))
