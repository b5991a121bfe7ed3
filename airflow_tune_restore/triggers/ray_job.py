"""Waits in the triggerer until a trial's Ray job has ended, and shows its output meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypedDict, Unpack

from airflow.triggers.base import TriggerEvent

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.hooks.experiment_storage import share_hook
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.launch.log_lines import newest_results
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.job import ASKED_AGAIN, stop_attempt
from airflow_tune_restore.launch.runner_log import RunnerLog
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.follow import ask_to_stop
from airflow_tune_restore.triggers.first_event import FIRST_EVENT_SECONDS
from airflow_tune_restore.triggers.ray_job_poller import JobPoller, JobWatch
from airflow_tune_restore.triggers.trial_poller import TrialPoller, TrialWatch
from airflow_tune_restore.version_compat import KillableTrigger, in_thread

LINES_PER_TURN = 50
"""Lines that are shown before other triggers have their turn."""


class WaitOptions(TypedDict, total=False):
    """How a `RayJobTrigger` waits for a trial, or for one of many in a job.

    For one of many, killing the task stops this trial alone, and the job runs on.
    """

    is_one_of_many: bool  # default False
    driver: int  # number of the shared driver whose job it is; default 0, none
    ends_with_job: bool  # wait for the end of the job (the default), and not of the trial
    shows_output: bool  # show what the job prints; default True
    poll_interval: float  # seconds between two requests to the cluster; default 5
    metric: str | None  # shown first
    stop_at: str  # when the job is stopped if it has not ended (ISO 8601); default "", never


class RayJobTrigger(KillableTrigger):
    """Fires once: when the job has ended or is lost, or when its trial has ended.

    Results come from storage, other output of the job from the cluster. All triggers of this process
    share both polls. When a triggerer dies, the next one starts here again: it may show lines twice, and
    misses none. Killing the task (by hand, by clearing it, with its DAG run) stops the job. A triggerer
    that ends stops nothing.

    Args:
        ray_conn_id: Connection of type `ray_jobs`.
        submission_id: The job.
        experiment: Address of the experiment, with its connection id.
        restore_id: The restore.
        trial_id: Trial id in the plan.
        attempt: The attempt that the job runs: of the trial, or of the whole-experiment run. In the job
            of a shared driver, the trial's.
        **options: See `WaitOptions`.
    """

    def __init__(
        self,
        ray_conn_id: str,
        submission_id: str,
        experiment: str,
        restore_id: str,
        trial_id: str,
        attempt: int,
        **options: Unpack[WaitOptions],
    ) -> None:
        super().__init__()
        self.ray_conn_id = ray_conn_id
        self.submission_id = submission_id
        self.experiment = experiment
        self.restore_id = restore_id
        self.trial_id = trial_id
        self.attempt = attempt
        self.is_one_of_many = options.pop("is_one_of_many", False)
        self.driver = options.pop("driver", 0)
        self.ends_with_job = options.pop("ends_with_job", True)
        self.shows_output = options.pop("shows_output", True)
        self.poll_interval = options.pop("poll_interval", 5.0)
        self.metric = options.pop("metric", None)
        self.stop_at = options.pop("stop_at", "")
        if options:
            raise TypeError(f"RayJobTrigger has no arguments {', '.join(options)}.")
        self._offset = 0
        self._log_trouble = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments: a wire format, without secrets."""
        names = (
            "ray_conn_id submission_id experiment restore_id trial_id attempt is_one_of_many "
            "driver ends_with_job shows_output poll_interval metric stop_at"
        )
        return f"{__name__}.RayJobTrigger", {name: getattr(self, name) for name in names.split()}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait; the event holds how much was shown, and `error` or `trouble` if the wait failed."""
        begun = time.monotonic()
        try:
            cluster = await in_thread(RayJobsHook(self.ray_conn_id).cluster)
            event = await self._wait(cluster)
        except InvalidInputError as error:  # the connection was changed meanwhile
            event = {"error": printable(str(error), 4000)}
        await asyncio.sleep(max(0.0, FIRST_EVENT_SECONDS - (time.monotonic() - begun)))
        self.has_fired = True
        yield TriggerEvent({"restore_id": self.restore_id, "attempt": self.attempt, **event})

    async def on_kill(self) -> None:
        """Stop the job, so that it saves a snapshot; not if the task still waits, elsewhere."""
        try:
            if await in_thread(self._still_waits):
                return  # another triggerer has taken this trigger over
        except Exception as error:  # noqa: BLE001  the connection to Airflow breaks in many ways
            self.log.warning(
                "%s continues: Airflow could not be asked whether the task still waits (%s).",
                *(self.submission_id, printable(repr(error), 200)),
            )
            return
        if self.is_one_of_many:
            run = "shared driver" if self.driver else "whole-experiment run"
            self.log.info("Asking the %s to stop this trial; the others go on.", run)
        else:
            self.log.info("Stopping %s; it saves a snapshot first.", self.submission_id)
        await in_thread(self._stop)

    async def _wait(self, cluster: Cluster) -> dict[str, Any]:
        shown = RunnerLog(self.log, self.metric, of_many=self.trial_id == layout.WHOLE_EXPERIMENT)
        job = JobWatch(
            submission_id=self.submission_id,
            interval=self.poll_interval,
            wants_log=self.shows_output,
        )
        trial = TrialWatch(
            trial_id=self.trial_id,
            attempt=self.attempt,
            ends_with_outcome=not self.ends_with_job,
            changed=job.changed,  # one thing to wait for
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(JobPoller.watch(job, cluster))
            place = (self.experiment, self.restore_id)
            await stack.enter_async_context(TrialPoller.watch(trial, *place))
            where = cluster.log_command(self.submission_id)
            while not (job.is_over or trial.has_ended):
                try:
                    async with asyncio.timeout(self._seconds_left()):
                        await job.changed.wait()
                except TimeoutError:
                    await self._end_with_window()
                    break
                job.changed.clear()
                await self._show(job, trial, shown, where)
        shown.end()
        of_driver = {"driver": self.driver, "lines": trial.lines_seen - len(trial.lines)}
        return {
            **(of_driver if self.driver else {}),
            "offset": self._offset,
            "seen": trial.seen - len(trial.reports),
            "is_lost": job.is_lost,
            "trouble": printable(job.trouble, 4000) if job.out_of_reach else "",
        }

    async def _show(
        self, job: JobWatch, trial: TrialWatch, shown: RunnerLog, whole_log: str
    ) -> None:
        if broken := job.broken or trial.broken:
            raise broken
        if job.trouble and not job.is_over:
            self.log.warning(ASKED_AGAIN, printable(job.trouble, 4000))
        if job.log_trouble and job.log_trouble != self._log_trouble:
            self.log.warning("%s The log is read again.", printable(job.log_trouble, 4000))
        self._log_trouble = job.log_trouble
        await _show_lines(shown, newest_results(trial.take_reports()))
        lines = trial.take_lines()
        if not self.shows_output:  # else they are in the output of the job
            await _show_lines(shown, lines)
        if (log := job.log) is not None:
            job.log = None
            await _show_lines(shown, log.newest.take(f"the whole log: {whole_log}"))
            self._offset = max(self._offset, log.length)
            if job.log_is_long:
                self.log.info("The rest is shown when the job has ended; now: %s", whole_log)

    def _seconds_left(self) -> float | None:
        return window.seconds_until(window.parse_end(self.stop_at), datetime.now(UTC))

    async def _end_with_window(self) -> None:
        """Stop the job, also that of many trials: it waits for resources, or its driver hangs."""
        self.log.info("The window of this restore has ended. Stopping %s.", self.submission_id)
        await in_thread(partial(self._stop, alone=False))

    def _stop(self, *, alone: bool = True) -> None:
        """Stop the job; of one of many trials this trial alone, or the job of them all."""
        try:
            store = share_hook().open(self.experiment)
            if not (alone and self.is_one_of_many):
                jobs = RayJobsHook(self.ray_conn_id).jobs()
                stop_attempt(store, jobs, self._unit(), self.submission_id)
            elif self.driver:
                Desk(store, self.restore_id).ask_to_stop(self.trial_id, self.attempt)
            else:
                ask_to_stop(store, self.restore_id, self.trial_id)
        except TuneRestoreError as error:
            self.log.error(  # noqa: TRY400  expected
                "%s could not be stopped: %s", self.submission_id, printable(str(error), 4000)
            )

    def _unit(self) -> AttemptId:
        """Return the attempt whose job it is."""
        if self.driver:
            return AttemptId(self.restore_id, layout.SHARED_DRIVER, self.driver)
        unit = layout.WHOLE_EXPERIMENT if self.is_one_of_many else self.trial_id
        return AttemptId(self.restore_id, unit, self.attempt)

    def _still_waits(self) -> bool:
        """Whether the task is still deferred: then it was not killed."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        ti = self.task_instance
        if ti is None:
            return False
        found = RuntimeTaskInstance.get_task_states(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        states = found.get(ti.run_id, {})
        return "deferred" in map(str, states.values())


async def _show_lines(shown: RunnerLog, lines: Iterable[str]) -> None:
    for count, line in enumerate(lines, 1):
        shown.show(line)
        if count % LINES_PER_TURN == 0:
            await asyncio.sleep(0)
