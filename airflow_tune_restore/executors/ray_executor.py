"""`RayExecutor`: every task of Airflow as a job of a Ray cluster.

    [core]
    executor = LocalExecutor,airflow_tune_restore.executors.ray_executor.RayExecutor
    [ray_executor]
    ray_conn_id = ray_jobs_default

A task goes to the cluster by `executor="RayExecutor"`, and states its needs by `executor_config`, which
`executor_config.parse_executor_config` checks. docs/ray-executor.md has the rest.

The scheduler needs no Ray, and it may die: a job is named by the id that the scheduler commits together
with the state QUEUED, so the next scheduler finds all jobs of the last one.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.executors.base_executor import BaseExecutor
from airflow.utils.state import TaskInstanceState

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.executors.job_follower import JobFollower, Submission
from airflow_tune_restore.executors.workload_package import ENTRYPOINT, build_package, package_uri
from airflow_tune_restore.launch.ray.jobs_api import JobState
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.protocol.ray_job import TASK_PREFIX
from airflow_tune_restore.version_compat import (
    conf,
    execution_api_url,
    forget_queued,
    key_of_task,
    knows_task_uuids,
    runs_callbacks,
    take_queued,
)

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

    from airflow_tune_restore.executors.settings import ExecutorSettings

ADOPT_SECONDS = 10.0
"""How long a new scheduler waits for the cluster's answer about the jobs of a dead one."""

UNWANTED_SECONDS = 10.0
"""Time between two looks for jobs that wait for resources although their task was failed or cleared."""

_METADATA = ("dag_id", "run_id", "task_id", "map_index", "try_number")


@runs_callbacks
class RayExecutor(BaseExecutor):
    """Runs each workload as a Ray job. No method but `try_adopt_task_instances` waits for the cluster."""

    is_local = False
    is_production = True
    supports_multi_team = True
    supports_task_instance_uuid: ClassVar[bool] = knows_task_uuids()
    pre_assigns_external_executor_id: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # also in api-servers, for logs: nothing is opened here
        self._works: dict[str, _Work] = {}  # by the id of their job
        self._job_ids: dict[Any, str] = {}  # the newest job of each workload, by its key
        self._waiting: dict[str, str] = {}  # executor ids of tasks, by the id of a job that waits
        self._uncommitted: dict[Any, tuple[str, Submission]] = {}
        self._looked = time.monotonic()

    @cached_property
    def _settings(self) -> "ExecutorSettings":
        # each `airflow` command imports this module, and few need the settings
        from airflow_tune_restore.executors.settings import read_settings

        return read_settings(self.conf)

    @cached_property
    def _follower(self) -> JobFollower:
        settings = self._settings
        follower = JobFollower(
            settings.cluster,
            poll_seconds=settings.poll_interval,
            delete_jobs=settings.delete_jobs,
            log=self.log,
        )
        follower.start()
        return follower

    @property
    def _follows(self) -> bool:
        """Whether the thread has started. Without a usable configuration it has not."""
        return "_follower" in self.__dict__

    def start(self) -> None:
        """Read the configuration and begin to follow jobs. A cluster out of reach is not an error."""
        if self.name and not self.name.alias:
            # a task may name the class; beside another executor, Airflow 3.2 to 3.4 commits new ids of
            # those only that name the alias or the whole path (`_executable_task_instances_to_queued`)
            self.name = copy(self.name)
            self.name.alias = type(self).__name__
        try:
            _ = self._follower
        except InvalidInputError as error:
            self.log.error("Tasks on Ray will fail: %s", error)  # noqa: TRY400  a user's mistake

    # From the scheduler to Ray

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        for workload in workload_items:
            work = _Work.of(take_queued(self, workload), workload)
            self.running.add(work.key)
            try:
                self._submit(work, workload)
            except InvalidInputError as error:
                self._report(work, str(error))

    def _submit(self, work: "_Work", workload: Any) -> None:
        from airflow_tune_restore.executors.executor_config import parse_executor_config

        committed = work.is_task and getattr(workload.ti, "external_executor_id", None)
        executor_id = str(committed or uuid.uuid4()) if work.is_task else str(workload.callback.id)
        job_id = f"{TASK_PREFIX}{executor_id}"
        given = workload.ti.executor_config if work.is_task else None
        fields = parse_executor_config(given, self._settings)
        submission = Submission(
            body={
                "entrypoint": ENTRYPOINT,
                "submission_id": job_id,
                "metadata": dict(work.metadata),
                **fields,
                "runtime_env": self._runtime_env(job_id, fields["runtime_env"]),
            },
            package=build_package(job_id, workload.model_dump_json()),
        )
        self._take(work, job_id)
        if not work.is_task:
            self._follower.submit(job_id, submission)
        elif committed:
            self._submit_committed(job_id, submission)
        else:  # before 3.2
            self.change_state(work.key, TaskInstanceState.QUEUED, executor_id, remove_running=False)
            self._uncommitted[work.key] = job_id, submission

    def _submit_committed(self, job_id: str, submission: Submission) -> None:
        """Submit the job of a task. From now on its row tells whether it still waits for the job."""
        self._waiting[job_id] = job_id.removeprefix(TASK_PREFIX)
        self._follower.submit(job_id, submission)

    def _submit_uncommitted(self) -> None:
        """Submit the jobs whose id the scheduler has committed: it takes the events after `sync()`."""
        for key in [key for key in self._uncommitted if key not in self.event_buffer]:
            self._submit_committed(*self._uncommitted.pop(key))

    def _runtime_env(self, job_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        variables = {
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": execution_api_url(self.conf),
            # a worker refuses a DAG in which a task names an executor that is not configured
            "AIRFLOW__CORE__EXECUTOR": conf.get("core", "executor"),
            "AIRFLOW_IS_EXECUTOR_CONTAINER": "true",
        }
        return {
            **given,
            "py_modules": [*given.get("py_modules", ()), package_uri(job_id)],
            "env_vars": {**variables, **given.get("env_vars", {})},
        }

    # From Ray to the scheduler

    def sync(self) -> None:
        """Report what became of the jobs, submit those that may be, and drop those nobody waits for."""
        if not self._follows:
            return
        lost: dict[str, Submission] = {}
        for change in self._follower.changes():
            work = self._works.get(change.job_id)
            if work is None:
                continue  # it was revoked
            if change.lost is not None:
                lost[change.job_id] = change.lost
                continue
            self._waiting.pop(change.job_id, None)
            if change.is_over:
                self._let_go(change.job_id)
                # a task that was deferred goes on as a newer job, perhaps already
                if work.key not in self._job_ids:
                    self._report(work, change.problem)
        if lost:
            self._submit_again(lost)
        self._submit_uncommitted()
        self._revoke_unwanted()

    def _submit_again(self, lost: Mapping[str, Submission]) -> None:
        """Submit jobs that were lost before they ran, unless another scheduler saw them end.

        That one adopted them while this process stood still, and has deleted the jobs that ended well.
        """
        wanted = _find_wanted([self._waiting[job_id] for job_id in lost if job_id in self._waiting])
        for job_id, submission in lost.items():
            if self._waiting.get(job_id) in {None, *wanted}:  # callbacks are in no table of tasks
                name = self._works[job_id].name
                self.log.warning(
                    "Ray job %s of %s was lost before it ran; it is submitted again.", job_id, name
                )
                self._follower.submit(job_id, submission)
            else:
                self.log.info("Ray job %s is gone, and its task does not wait for it.", job_id)
                self._revoke(job_id)

    def _report(self, work: "_Work", problem: str) -> None:
        """Report the end of a job, except that of a task that went well: Airflow has it from the task.

        Airflow (3.1 to 3.4) fails a task of which an executor reports an end while it is scheduled again,
        such as a sensor in reschedule mode, and some seconds pass until Ray has the end of a job.
        """
        if problem:
            self.log.error("%s: %s", work.name, problem)
            self.fail(work.key, problem)
        elif work.is_task:
            self.running.discard(work.key)
        else:
            self.success(work.key)

    def _take(self, work: "_Work", job_id: str) -> None:
        self.running.add(work.key)
        self._works[job_id] = work
        self._job_ids[work.key] = job_id

    def _let_go(self, job_id: str) -> None:
        work = self._works.pop(job_id)
        self._waiting.pop(job_id, None)
        if self._job_ids.get(work.key) == job_id:
            del self._job_ids[work.key]

    def _revoke_unwanted(self) -> None:
        """Revoke jobs that wait for resources although their task was failed or cleared by hand.

        The supervisor of a task that runs notices that itself, by its heartbeat. A job that waits would
        hold a slot here, and let Ray's autoscaler start nodes for nothing.
        """
        if not self._waiting or time.monotonic() - self._looked < UNWANTED_SECONDS:
            return
        self._looked = time.monotonic()
        wanted = _find_wanted(list(self._waiting.values()))
        for job_id, executor_id in list(self._waiting.items()):
            if executor_id not in wanted:
                name = self._works[job_id].name
                self.log.info("Ray job %s is revoked: %s does not wait for it.", job_id, name)
                self._revoke(job_id)

    def _revoke(self, job_id: str) -> None:
        key = self._works[job_id].key
        self._let_go(job_id)
        self._follower.revoke(job_id)
        if key not in self._job_ids:
            self.running.discard(key)

    def revoke_task(self, *, ti: "TaskInstance") -> None:
        """Stop the job of a task. The scheduler calls this after `[scheduler] task_queued_timeout`."""
        key = key_of_task(self, ti)
        forget_queued(self, key)
        self._uncommitted.pop(key, None)
        self.running.discard(key)
        if key in self._job_ids:
            self._revoke(self._job_ids[key])

    def try_adopt_task_instances(self, tis: "Sequence[TaskInstance]") -> "Sequence[TaskInstance]":
        """Follow the jobs of a scheduler that has died, and return the tasks that start anew.

        Only a task that is queued, and whose job the cluster does not have, starts anew: it was never
        submitted. All others are followed, also while the cluster is out of reach, so that nothing runs
        twice.
        """
        jobs = {
            f"{TASK_PREFIX}{ti.external_executor_id}": ti for ti in tis if ti.external_executor_id
        }
        if not jobs:
            return tis
        if not self._follows:  # a connection cannot be read here, in a transaction of the scheduler
            self.log.error("No job of a task is followed: [ray_executor] cannot be used.")
            return [ti for ti in tis if ti.state == TaskInstanceState.QUEUED]
        try:
            found = self._follower.find(jobs, ADOPT_SECONDS)
        except (TuneRestoreError, TimeoutError) as error:
            why = str(error) or f"no answer within {ADOPT_SECONDS:g} s"
            self.log.warning("The Ray cluster cannot be asked, so all jobs are adopted: %s", why)
            found = None
        adopted = {}
        for job_id, ti in jobs.items():
            if found is not None and found[job_id] is None and ti.state == TaskInstanceState.QUEUED:
                continue
            self._take(_Work.of_task(key_of_task(self, ti), ti), job_id)
            if ti.state == TaskInstanceState.QUEUED:
                self._waiting[job_id] = str(ti.external_executor_id)
                self._follower.follow(job_id, JobState.PENDING)
            else:
                self._follower.follow(job_id, JobState.RUNNING)
            adopted[job_id] = ti
        if adopted:
            names = ", ".join(sorted(adopted))
            self.log.info("Adopted %s: %s", counted(len(adopted), "Ray job"), names)
        return [ti for ti in tis if ti not in adopted.values()]

    def get_task_log(self, ti: "TaskInstance", try_number: int) -> tuple[list[str], list[str]]:
        """Return the output of a running task's job. The api-server calls this."""
        from airflow_tune_restore.executors.job_output import read_output

        if not ti.external_executor_id or ti.try_number != try_number:
            return [], []
        try:
            cluster = self._settings.cluster()
        except InvalidInputError as error:
            return [str(error)], []
        return read_output(cluster, f"{TASK_PREFIX}{ti.external_executor_id}")

    def end(self) -> None:
        """End following. The jobs go on, and the next scheduler adopts them."""
        self.terminate()

    def terminate(self) -> None:
        """End following at a SIGTERM. The jobs go on, and the next scheduler adopts them."""
        if self._follows:
            jobs = counted(len(self._works), "Ray job")
            self.log.info("%s left to the next scheduler.", jobs)
            self._follower.close()


@dataclass(frozen=True, slots=True)
class _Work:
    """A workload: its key for Airflow, what Ray shows of it, and its name in messages."""

    key: Any
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, key: Any, workload: Any) -> "_Work":
        if hasattr(workload, "ti"):
            return cls.of_task(key, workload.ti)
        return cls(key, {"callback": str(workload.display_name)})

    @classmethod
    def of_task(cls, key: Any, task: Any) -> "_Work":
        return cls(key, {name: str(getattr(task, name)) for name in _METADATA})

    @property
    def is_task(self) -> bool:
        return "callback" not in self.metadata

    @property
    def name(self) -> str:
        if not self.is_task:
            return f"callback {self.metadata['callback']}"
        dag_id, run_id, task_id, map_index, try_number = map(self.metadata.get, _METADATA)
        index = "" if map_index == "-1" else f"[{map_index}]"
        return f"task {task_id}{index} of DAG {dag_id}, run {run_id}, try {try_number}"


def _find_wanted(executor_ids: Sequence[str]) -> set[str]:
    """Return the ids of tasks that still wait or run."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    column = TaskInstance.external_executor_id
    states = [TaskInstanceState.QUEUED, TaskInstanceState.RUNNING]
    if not executor_ids:
        return set()
    query = select(column).where(column.in_(executor_ids), TaskInstance.state.in_(states))
    with create_session() as session:
        return {str(found) for found in session.scalars(query)}
