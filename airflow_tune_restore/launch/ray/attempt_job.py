"""One attempt as a Ray job, as a task sees it: attach to it or start it, follow it, say how it ended."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_tune_restore.exceptions import (
    KeyExistsError,
    KeyNotFoundError,
    RayClusterError,
    RecordUnreadableError,
    RunnerError,
    RunnerRefusedError,
    TuneRestoreError,
)
from airflow_tune_restore.launch.log_lines import Log, NewestLines, describe_line
from airflow_tune_restore.launch.ray.job_log import LONGEST_LOG, JobLog
from airflow_tune_restore.launch.ray.jobs_api import (
    ABSENT_LISTS,
    OUTAGE_SECONDS,
    JobState,
    RayJob,
    RayJobs,
)
from airflow_tune_restore.launch.ray.stop import stop_attempt
from airflow_tune_restore.launch.ray.submission import (
    STOP_WAIT_SECONDS,
    DriverResources,
    build_submission,
    submission_id,
)
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.runner_death import LAST_LINES, record_death
from airflow_tune_restore.storage.base import ObjectStore

RENEW_SECONDS = 60.0
"""A runner renews the lease; one whose job waits for resources cannot."""

SUBMIT_SECONDS = 60.0
"""How long a job is posted again and again, under the same id, to a head that does not take it."""

FORGOTTEN = "The cluster does not know the job any more: its head node died and was started anew."


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The attempt a task follows.

    Args:
        attempt: Its number.
        submission_id: Its job.
        is_ours: Whether this task has started it.
    """

    attempt: int
    submission_id: str
    is_ours: bool


@dataclass(kw_only=True)
class RayAttemptJob:
    """A trial whose attempts are Ray jobs, or the run of all that it is part of.

    Args:
        jobs: The cluster.
        store: Rooted at the experiment directory.
        plan: The plan.
        trial_id: Trial id in the plan; `layout.WHOLE_EXPERIMENT` to follow the run of all itself.
        settings: Of the runner.
        runtime_env: Of the job; its local parts are uploaded.
        env: Environment variables of the job; no secrets.
        driver: What the driver asks for.
        poll_interval: Seconds between two looks.
        log: The task's log.
    """

    jobs: RayJobs
    store: ObjectStore
    plan: RestorePlan
    trial_id: str
    settings: RunnerSettings
    runtime_env: Mapping[str, Any]
    env: Mapping[str, str]
    driver: DriverResources
    poll_interval: float
    log: Log
    attached: Attached | None = field(default=None, init=False)

    @property
    def unit(self) -> str:
        """What the job runs: the trial, or all."""
        return layout.WHOLE_EXPERIMENT if self.plan.is_whole_experiment else self.trial_id

    @property
    def records(self) -> AttemptRecords:
        """The attempts of the unit."""
        return AttemptRecords(self.store, self.plan.restore_id, self.unit)

    @property
    def trial_records(self) -> AttemptRecords:
        """The attempts as the trial's own directory holds them: its outcome and progress."""
        return AttemptRecords(self.store, self.plan.restore_id, self.trial_id)

    def job_id(self, attempt: int) -> str:
        """Return the id of an attempt's job."""
        return submission_id(self.plan.experiment, self.plan.restore_id, self.unit, attempt)

    def find_final_outcome(self) -> RunnerOutcome | None:
        """Return how the trial has ended for good already; None if it is to be run."""
        outcome = self.trial_records.outcome()
        if outcome is None:
            return None
        final = {Result.FINISHED, Result.FAILED} if self.is_one_of_many else {Result.FINISHED}
        if outcome.result not in final:
            return None
        self.log.info("It has ended already, in attempt %d.", outcome.attempt)
        self._show_results(outcome.attempt, 0)
        return outcome

    def submit_or_attach(self, remembered: int = 0) -> Attached:
        """Find the living job of the newest attempt, or claim the next attempt and start its job.

        Args:
            remembered: Attempt that this task is known to have followed before.
        """
        while True:
            newest = max(
                [
                    remembered,
                    *self.records.numbers(),
                ]
            )
            number = newest + 1
            try:
                if newest and (attached := self._attach_to(newest)) is not None:
                    self.attached = attached
                    return attached
            except KeyNotFoundError:
                number = (
                    newest  # its directory is there, its request not yet: whoever is first has it
                )
            try:
                request = claim_next_attempt(
                    self.store,
                    self.plan,
                    self.unit,
                    self.settings,
                    log=self.log.info,
                    attempt=number,
                )
            except KeyExistsError:
                continue  # another task was faster: attach to its run
            self.attached = self._submit(request)
            return self.attached

    def _attach_to(self, attempt: int) -> Attached | None:
        """Attach to an attempt's job; None if the attempt is over.

        Raises:
            KeyNotFoundError: If nobody has claimed it.
        """
        job_id = self.job_id(attempt)
        if self.records.outcome(attempt) is not None:
            return None
        job = self.jobs.find(job_id)
        if job is not None and not job.is_over:
            if self._was_told_to_stop(attempt):
                self._wait_for_stop(job_id)
                return None
            self.log.info("Attached to Ray job %s, attempt %d.", job_id, attempt)
            return Attached(attempt=attempt, submission_id=job_id, is_ours=False)
        ran = self.records.exit(attempt, infer_from_heartbeat=True) is not None
        if job is not None or ran:
            return None
        # claimed, and whoever did so died before the job was started, or is about to start it
        return self._submit(self._request(attempt))

    def _submit(self, request: RunnerRequest) -> Attached:
        submission = build_submission(
            self.jobs, request, runtime_env=self.runtime_env, env=self.env, driver=self.driver
        )
        job_id = submission["submission_id"]
        is_ours = self._post(submission)
        words = "Started" if is_ours else "Attached to"
        self.log.info(
            "%s Ray job %s: %s %s of %s, attempt %d of restore %s",
            *(words, job_id, request.action, _name(self.unit), self.plan.experiment),
            *(request.attempt, self.plan.restore_id),
        )
        return Attached(attempt=request.attempt, submission_id=job_id, is_ours=is_ours)

    def _post(self, submission: dict[str, Any]) -> bool:
        """Post a job; a head that has just started answers before it can take one. Once is enough."""
        deadline = time.monotonic() + SUBMIT_SECONDS
        while True:
            try:
                return self.jobs.submit(submission)
            except RayClusterError as error:
                if time.monotonic() > deadline:
                    raise
                self.log.warning("%s It is asked again.", error)
                time.sleep(self.poll_interval)

    @property
    def is_one_of_many(self) -> bool:
        """Whether the trial is one of many in the run of all."""
        return self.plan.is_whole_experiment and self.trial_id != layout.WHOLE_EXPERIMENT

    def shows_output(self, attached: Attached) -> bool:
        """Whether this task shows what the job prints: one task per job does."""
        return not self.is_one_of_many or attached.is_ours

    def ends_with_job(self, attempt: int) -> bool:
        """Whether the job's end is to be waited for: in a run of all a trial ends before it.

        But one that was stopped in a run can only go on when that run is over.
        """
        return not self.is_one_of_many or self._outcome(attempt) is not None

    def _outcome(self, attempt: int) -> RunnerOutcome | None:
        return self.trial_records.outcome(attempt)

    def poll_until_complete(self, attached: Attached) -> dict[str, Any]:
        """Wait here, in the worker, and show what is printed; return what the trigger's event says."""
        offset = seen = absent = read = 0
        ends_with_job = self.ends_with_job(attached.attempt)
        reached = renewed = time.monotonic()
        while True:
            if time.monotonic() - renewed > RENEW_SECONDS:  # a job that waits for a place cannot
                renewed = time.monotonic()
                lease.keep_alive(self.store, self.plan.restore_id)
            try:
                job = self.jobs.find(attached.submission_id)
                reached = time.monotonic()
            except TuneRestoreError as error:  # it was the right address: whatever it answers now
                if time.monotonic() - reached > OUTAGE_SECONDS:
                    raise
                self.log.warning("%s It is asked again; the job runs on.", error)
                time.sleep(self.poll_interval)
                continue
            absent = absent + 1 if job is None else 0
            is_over = absent >= ABSENT_LISTS or (job is not None and job.is_over)
            if not is_over and not ends_with_job:
                is_over = self._outcome(attached.attempt) is not None
            if is_over:
                return {"offset": offset, "seen": seen, "is_lost": job is None}
            seen = self._show_results(attached.attempt, seen)
            if self.shows_output(attached) and read < LONGEST_LOG:
                log = JobLog(offset=offset, results=None, most=LONGEST_LOG)
                self._read_log(attached.submission_id, log)
                self._show_log(attached.submission_id, log)
                offset, read = max(offset, log.length), max(read, log.read)
            time.sleep(self.poll_interval)

    def get_job_result(self, attempt: int, told: Mapping[str, Any]) -> RunnerOutcome | None:
        """Show the rest, and say how the trial ended; None if it is to be run once more, at once.

        Args:
            attempt: The attempt that was followed.
            told: What the trigger's event, or `poll_until_complete`, said.

        Raises:
            RunnerDiedError: If the job ended without saying how.
        """
        offset, seen = int(told.get("offset", 0)), int(told.get("seen", 0))
        job_id = self.job_id(attempt)
        outcome = self._outcome(attempt)
        log = JobLog(offset=offset, results=seen)
        if not self.is_one_of_many:
            self._read_log(job_id, log)
            log.end()
            self._show_log(job_id, log)
        if not log.read:  # a log that went with its node, or another task's
            self._show_results(attempt, seen)
        if outcome is not None and (
            outcome.result != Result.INTERRUPTED or outcome.cause == Cause.NO_ROOM
        ):
            return outcome
        # an earlier try of this task was killed while it waited, and this one has attached too early
        was_killed = self._was_told_to_stop(attempt) or (
            self.is_one_of_many and outcome is not None
        )
        if was_killed and (told.get("is_lost") or self._is_over(job_id)):
            return None
        if outcome is not None:
            return outcome
        raise self._describe_failure(attempt, self.jobs.find(job_id), log.last)

    def stop(self) -> None:
        """Stop the job, or in a run of all this trial alone. Once."""
        attached, self.attached = self.attached, None
        if attached is None:
            return
        self.log.info("Stopping %s; it saves a snapshot first.", attached.submission_id)
        stop_attempt(
            self.store,
            self.jobs,
            restore_id=self.plan.restore_id,
            trial_id=self.trial_id,
            attempt=attached.attempt,
            submission_id=attached.submission_id,
            is_one_of_many=self.is_one_of_many,
        )

    def stop_newest(self) -> None:
        """Stop the newest attempt, if it runs: nobody waits for it any more."""
        newest = self.records.newest()
        if newest:
            self.attached = Attached(
                attempt=newest, submission_id=self.job_id(newest), is_ours=False
            )
            self.stop()

    def _describe_failure(self, attempt: int, job: RayJob | None, last: Iterable[str]) -> Exception:
        """Return the error for a job that ended and left no outcome of this trial."""
        whole = self.records.outcome(attempt)
        if whole is not None:
            cause = printable(f"{whole.error_type}: {whole.error}".removeprefix(": "))
            if whole.result in (Result.REFUSED, Result.FENCED):
                return RunnerRefusedError(f"{self.plan.experiment} was not restored: {cause}")
            return RunnerError(
                f"The run of {self.plan.experiment} was stopped before {_name(self.trial_id)} had ended "
                f"({cause}); a retry goes on from its snapshot."
            )
        said = [line for line in last if line][-LAST_LINES:]
        if job is None:
            said = [FORGOTTEN, *said]
        elif not said or job.status == JobState.STOPPED:
            said = [*said, f"Ray says: {job.status}. {job.message or ''}"]
        shown = [printable(line, 1000) for line in said]
        exit_code = job.driver_exit_code if job is not None else None
        return record_death(self.store, self.plan, self._request(attempt), exit_code, shown)

    def _is_over(self, job_id: str) -> bool:
        job = self.jobs.find(job_id)
        return job is None or job.is_over

    def _wait_for_stop(self, job_id: str) -> None:
        """Let a job that was told to stop save its snapshot; Ray kills it if it does not."""
        self.log.info("Ray job %s was told to stop; waiting for its snapshot.", job_id)
        deadline = time.monotonic() + STOP_WAIT_SECONDS + 30
        while not self._is_over(job_id) and time.monotonic() < deadline:
            time.sleep(1.0)

    def _was_told_to_stop(self, attempt: int) -> bool:
        try:
            self.store.get(
                layout.stopped_key(self.plan.restore_id, self.unit, attempt), max_bytes=65536
            )
        except KeyNotFoundError:
            return False
        return True

    def _request(self, attempt: int) -> RunnerRequest:
        return self.records.request(attempt)

    def _show_results(self, attempt: int, seen: int) -> int:
        try:
            tail = self.trial_records.progress(attempt)
        except RecordUnreadableError as error:
            self.log.warning("What the trial reports is not shown: %s", printable(str(error)))
            return seen
        if tail is None:
            return seen
        results = NewestLines()
        for report in tail.after(seen):
            results.add_result(report.to_line())
        self._show(results.take("all stand in the trial's result.json."))
        return max(seen, tail.count)

    def _read_log(self, job_id: str, log: JobLog) -> None:
        """Read a job's log, or what there is of it: that it cannot be read is no failure."""
        try:
            self.jobs.read_log(job_id, log)
        except TuneRestoreError as error:
            self.log.warning("%s The log is incomplete.", error)

    def _show_log(self, job_id: str, log: JobLog) -> None:
        self._show(log.newest.take(f"the whole log: {self.jobs.cluster.log_command(job_id)}"))

    def _show(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.log.info("%s", describe_line(line, self.plan.metric))


def _name(trial_id: str) -> str:
    return "all trials" if trial_id == layout.WHOLE_EXPERIMENT else f"trial {trial_id}"
