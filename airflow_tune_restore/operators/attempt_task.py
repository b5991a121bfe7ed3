"""The skeleton of a task that runs attempts of a trial, on the worker or as Ray jobs.

It opens the experiment and reads the plan once. It takes the outcome of an earlier try, or attaches to an
attempt or claims the next one; it waits, or defers; then the operator judges the outcome.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from airflow.sdk import BaseOperator, BaseOperatorLink, Context

from airflow_tune_restore.arguments import parse_text, parse_user
from airflow_tune_restore.exceptions import LeaseLostError, RestoreEndedError, name_trial
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import DEFAULT_CONN_ID
from airflow_tune_restore.launch.account import runner_account
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.launch.local import LocalLauncher, build_launcher
from airflow_tune_restore.links.ray_job import RayJobLink
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.local_attempt import LocalAttempt
from airflow_tune_restore.operators.map_index_label import MapIndexLabelOperator
from airflow_tune_restore.operators.next_step import KEPT_BY_COMMIT, describe_next
from airflow_tune_restore.operators.ray.job_task import RayJobTask
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.ended import describe_end
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.version_compat import TaskDeferralTimeout, fails_for_good

POLL_SECONDS = 5.0


class OpenExperiment(NamedTuple):
    """An experiment that a task has opened, with its hook, address and store."""

    hook: ExperimentStorageHook
    address: Address
    store: ObjectStore


@dataclass(frozen=True, slots=True)
class AttemptTask:
    """The experiment, the plan and the trial of a task, each opened or read once.

    Args:
        experiment: The experiment.
        plan: The plan.
        trial_id: Trial id in the plan; `layout.WHOLE_EXPERIMENT` for the whole-experiment run itself.
        is_alone: Whether the plan is the task's own, so that no other task follows its run.
    """

    experiment: OpenExperiment
    plan: RestorePlan
    trial_id: str
    is_alone: bool = False

    @property
    def store(self) -> ObjectStore:
        """The store of the experiment."""
        return self.experiment.store

    @property
    def records(self) -> AttemptRecords:
        """The attempts of the trial."""
        return AttemptRecords(self.store, self.plan.restore_id, self.trial_id)

    @property
    def is_one_of_many(self) -> bool:
        """Whether the trial is one of many in a whole-experiment run."""
        return self.plan.is_whole_experiment and self.trial_id != layout.WHOLE_EXPERIMENT

    @property
    def shares_run(self) -> bool:
        """Whether other tasks follow the same run."""
        is_shared = not (self.is_alone or self.plan.only_continues_search)
        return self.plan.is_whole_experiment and is_shared

    @property
    def shares_driver(self) -> bool:
        """Whether the plan lets the trial share a driver with others, on which it does not depend."""
        is_trial = self.trial_id not in layout.RUNS_OF_MANY
        return is_trial and self.plan.trial(self.trial_id).shares_driver

    def renew_lease(self, operator: BaseOperator) -> None:
        """Renew the lease of the restore (RestoreEndedError, with the task to clear, if it was lost)."""
        restore_id = self.plan.restore_id
        try:
            lease.keep_alive(self.store, restore_id)
        except LeaseLostError:
            how = describe_end(self.store, restore_id)
            again = self._run_again(operator)
            raise RestoreEndedError(self.store.uri, restore_id, how, again) from None

    def _run_again(self, operator: BaseOperator) -> str:
        """Return how to run the trial again: in a new restore."""
        if self.is_alone:
            return f"To continue it, clear task {operator.task_id}."
        if self.plan.only_continues_search:
            return f"To draw its samples, clear task {operator.task_id}."
        upstream = operator.get_direct_relatives(upstream=True)
        plans = [task.task_id for task in upstream if isinstance(task, BuildRestorePlanOperator)]
        task_id = f"task {plans[0]}" if plans else "the task that made the plan"
        return (
            f"To run {name_trial(self.trial_id)} again, clear {task_id} with its downstream tasks."
        )


class AttemptOperator(MapIndexLabelOperator):
    """Base of the operators that run attempts on the worker or as Ray jobs.

    `RestoreTrialOperator` documents the arguments.
    """

    operator_extra_links: Collection[BaseOperatorLink] = (RayJobLink(),)
    template_fields: Sequence[str] = (
        *MapIndexLabelOperator.template_fields,
        "launcher",
        "ray_conn_id",
        "runner_user",
        "ray_address",
        "storage_conn_id",
    )
    ui_color = "#e2f2e4"
    kept_words = KEPT_BY_COMMIT
    """The words for the work that is kept if the task fails for good."""

    def __init__(  # noqa: PLR0913  what to run, where, and with what
        self,
        *,
        launcher: str = "local",
        runner_user: str | None = None,
        ray_address: str | None = None,
        storage_conn_id: str | None = None,
        ray_conn_id: str = DEFAULT_CONN_ID,
        runtime_env: Mapping[str, Any] | None = None,
        entrypoint_num_cpus: float | None = None,
        entrypoint_memory: float | None = None,
        entrypoint_resources: Mapping[str, float] | None = None,
        deferrable: bool = True,
        poll_interval: float = POLL_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.launcher = launcher
        self.runner_user = runner_user
        self._has_user = runner_user is not None
        self.ray_address = ray_address
        self.storage_conn_id = storage_conn_id
        self.ray_conn_id = ray_conn_id
        self.runtime_env = runtime_env
        self.entrypoint_num_cpus = entrypoint_num_cpus
        self.entrypoint_memory = entrypoint_memory
        self.entrypoint_resources = entrypoint_resources
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self._attempt: LocalAttempt | RayJobTask | None = None
        self.check_literals(vars(self))

    def pre_execute(self, context: Context) -> None:
        """Drop the link of a task without a Ray job, also of one that fails at once or is skipped.

        Airflow keeps an XCom of each link, also of an empty one.
        """
        super().pre_execute(context)
        if self.launcher != LauncherName.RAY:
            self.operator_extra_links = ()

    @property
    def trials_at_once(self) -> int:
        """Most trials of a shared driver at the same time: as many as tasks; 0 for any number."""
        return int(self.max_active_tis_per_dagrun or 0)

    @abstractmethod
    def open_task(self, restore_id: str) -> AttemptTask:
        """Open the experiment and read the plan of a restore that has been started."""

    @abstractmethod
    def find_restore(self, context: Context) -> str | None:
        """Return the id of the restore that the task has run attempts of; None if it started none."""

    @abstractmethod
    def conclude(self, task: AttemptTask, outcome: RunnerOutcome) -> dict[str, Any]:
        """Return the task's result for an outcome, or raise."""

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue after the trigger has fired."""
        with self.errors_of(context):
            RayJobTask.check_event(event)
            task = self.open_task(event["restore_id"])
            attempt = self._attempt = RayJobTask(self, task)
            outcome = attempt.get_job_result(event) or self.run_attempt(context, task)
            return self.conclude(task, outcome)

    @contextmanager
    def errors_of(self, context: Context) -> Iterator[None]:
        """Raise this package's errors as Airflow's; each ends in what happens next."""
        with as_airflow_errors(
            lambda error: describe_next(self, context, error, kept=self.kept_words),
            lambda error: fails_for_good(self, error, context),
        ):
            yield

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Stop the job of a task that was deferred for longer than its `execution_timeout`."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            with as_airflow_errors():
                RayJobTask.stop_overdue(self, context)
            raise

    def on_kill(self) -> None:
        """Stop the attempt: it saves a snapshot first. In a shared run, stop this trial alone."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.stop()

    def open_experiment(self, address: str) -> OpenExperiment:
        """Open an experiment with the task's storage connection."""
        hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
        place = hook.address(address)
        return OpenExperiment(hook, place, hook.open(place))

    def run_attempt(self, context: Context, task: AttemptTask) -> RunnerOutcome:
        """Return the final outcome of an earlier try, or run an attempt and return its outcome.

        Raises:
            TaskDeferred: If the attempt is a Ray job that the triggerer waits for.
            RunnerDiedError: If the runner exited without an outcome.
        """
        attempt = self._attempt = self.attempt_of(task)
        outcome = None
        while outcome is None:
            outcome = attempt.find_final_outcome() or attempt.run(context)
        self._attempt = None
        return outcome

    def attempt_of(self, task: AttemptTask) -> LocalAttempt | RayJobTask:
        """Return the attempt of a task where its launcher runs it. Nothing is started."""
        if self.launcher == LauncherName.RAY:
            return RayJobTask(self, task)
        return LocalAttempt(self, task)

    def parse_runner_user(self) -> str | None:
        """Return the user of runners on the worker; None for the worker's own.

        Raises:
            InvalidInputError: If it was given and rendered to nothing, or is given for Ray jobs.
        """
        user = parse_user(self.runner_user, was_given=self._has_user)
        if self.launcher == LauncherName.RAY:
            runner_account(user, self.launcher)
        return user

    @contextmanager
    def local_launcher(self, experiment: OpenExperiment) -> Iterator[LocalLauncher]:
        """Yield the launcher for runners on the worker, with the credentials of the store."""
        with experiment.hook.runner_env(experiment.address) as credentials:
            yield build_launcher(
                self.launcher,
                python=parse_text(self.python),
                env={**credentials, **(self.env or {})},
                runner_user=self.parse_runner_user(),
            )
