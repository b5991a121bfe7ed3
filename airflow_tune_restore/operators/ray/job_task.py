"""Runs the attempts of a task as Ray jobs: submit or attach, defer, read the result."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import Context

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.launch.ray.attempt_job import Attached, RayAttemptJob
from airflow_tune_restore.launch.ray.shared_job import SharedDriverJob
from airflow_tune_restore.links.ray_job import URL_KEY
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.ray_job import IN_CLUSTER
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.triggers.ray_job import RayJobTrigger

if TYPE_CHECKING:
    from airflow_tune_restore.operators.attempt_task import AttemptOperator, AttemptTask


_STATE_KEY = "ray_job"
"""Key in Airflow's task state store."""


class RayJobTask:
    """An attempt of a task that runs as a Ray job. Creating it reads connections and starts nothing."""

    def __init__(self, operator: "AttemptOperator", task: "AttemptTask") -> None:
        self._operator = operator
        self._task = task
        self._own_job = _build_job(operator, task)
        self._job = self._own_job  # the one that is followed

    @staticmethod
    def check_event(event: Mapping[str, Any]) -> None:
        """Raise the error of a trigger's event.

        Raises:
            InvalidInputError: If the connection cannot be used.
            RayClusterError: If the cluster was out of reach for too long.
        """
        if error := event.get("error"):
            raise InvalidInputError(error)
        if trouble := event.get("trouble"):
            raise RayClusterError(trouble)

    @staticmethod
    def stop_overdue(operator: "AttemptOperator", context: Context) -> None:
        """Stop the newest job of a task that no longer waits for it."""
        restore_id = operator.find_restore(context)
        if restore_id is not None:
            task = RayJobTask(operator, operator.open_task(restore_id))
            if (
                task._task.shares_driver
                and (shared := SharedDriverJob.beside(task._own_job)).is_followed
            ):
                task._job = shared
            task._job.stop_newest()

    def find_final_outcome(self) -> RunnerOutcome | None:
        """Return the outcome of an earlier try if there is nothing left to run."""
        return self._job.find_final_outcome()

    def is_alive(self, context: Context) -> bool:
        """Whether there is a living job to attach to."""
        return self._job.has_living(self._remembered_attempt(context))

    def run(self, context: Context) -> RunnerOutcome | None:
        """Attach to the trial's job or submit it, and wait for it, here or in the triggerer.

        It is the job of a driver that others share, or one of the trial's own.

        Returns:
            Its outcome; None if the next attempt is to be run at once.
        """
        self._task.renew_lease(self._operator)
        if self._task.shares_driver:
            self._job = shared = SharedDriverJob.beside(self._own_job)
            self._job = shared if shared.hand_over() else self._own_job
        attached = self._job.submit_or_attach(self._remembered_attempt(context))
        self._remember(context, attached)
        context["ti"].xcom_push(URL_KEY, self._job.jobs.cluster.job_url(attached.submission_id))
        if self._operator.deferrable:
            self._defer(attached)
        event = self._job.poll_until_complete(attached)
        return self._job.get_job_result(attached.attempt, event)

    def get_job_result(self, event: Mapping[str, Any]) -> RunnerOutcome | None:
        """Return the outcome after a trigger has fired; None if the next attempt is to be run at once."""
        if driver := int(event.get("driver", 0)):
            self._job = SharedDriverJob.beside(self._own_job)
            return self._job.get_job_result(driver, event)
        return self._job.get_job_result(int(event["attempt"]), event)

    def stop(self) -> None:
        """Stop the job, so that it saves a snapshot; in a shared run, stop this trial alone."""
        self._job.stop()

    def _defer(self, attached: Attached) -> NoReturn:
        job, operator = self._job, self._operator
        job.attached = None  # from here on the trigger stops it
        trigger = RayJobTrigger(
            ray_conn_id=str(operator.ray_conn_id),
            submission_id=attached.submission_id,
            experiment=str(self._task.experiment.address),
            restore_id=job.plan.restore_id,
            trial_id=job.trial_id,
            attempt=job.attempt_of_trial(attached.attempt),
            driver=attached.attempt if job.unit == layout.SHARED_DRIVER else 0,
            is_one_of_many=job.is_one_of_many,
            ends_with_job=job.ends_with_job(attached.attempt),
            shows_output=job.shows_output(attached),
            poll_interval=job.poll_interval,
            metric=job.plan.metric,
            stop_at=job.stop_at.isoformat() if job.stop_at is not None else "",
        )
        operator.defer(
            trigger=trigger, method_name="execute_complete", timeout=operator.execution_timeout
        )

    def _remember(self, context: Context, attached: Attached) -> None:
        """Keep for the next try which job is followed."""
        state = context.get("task_state_store")
        if state is not None:
            followed: dict[str, Any] = {
                "attempt": attached.attempt,
                "submission_id": attached.submission_id,
            }
            state.set(_STATE_KEY, followed)

    def _remembered_attempt(self, context: Context) -> int:
        """Return the attempt that an earlier try followed; 0 if it was of another restore or trial.

        Airflow keeps the state by the position of a mapped task, which may have had another trial before.
        """
        state = context.get("task_state_store")
        value = state.get(_STATE_KEY) if state is not None else None
        if not isinstance(value, dict):
            return 0
        attempt = value.get("attempt")
        if isinstance(attempt, int) and value.get("submission_id") == self._job.job_id(attempt):
            return attempt
        return 0


def _build_job(operator: "AttemptOperator", task: "AttemptTask") -> RayAttemptJob:
    hook = RayJobsHook(str(operator.ray_conn_id))
    public_env = task.experiment.hook.public_env(task.experiment.address)
    return RayAttemptJob(
        jobs=hook.jobs(),
        store=task.store,
        plan=task.plan,
        trial_id=task.trial_id,
        settings=replace(
            operator.runner_settings(),
            address=IN_CLUSTER,
            can_grow=True,
            at_once=operator.trials_at_once,
            reports=task.trial_id != layout.WHOLE_EXPERIMENT,
        ),
        runtime_env={**hook.runtime_env(), **(operator.runtime_env or {})},
        env={**public_env, **(operator.env or {})},
        driver=hook.driver_resources(
            num_cpus=operator.entrypoint_num_cpus,
            memory=operator.entrypoint_memory,
            resources=operator.entrypoint_resources,
        ),
        poll_interval=float(operator.poll_interval),
        log=operator.log,
    )
