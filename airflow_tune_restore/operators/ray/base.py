"""What operators have in common whose work can be a Ray job: arguments, deferral, stopping."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, TaskDeferralTimeout

from airflow_tune_restore.arguments import parse_text, parse_user
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import DEFAULT_CONN_ID, RayJobsHook
from airflow_tune_restore.launch.account import runner_account
from airflow_tune_restore.launch.ray.submission import IN_CLUSTER
from airflow_tune_restore.links.ray_job import URL_KEY, RayJobLink
from airflow_tune_restore.operators.map_index_label import MapIndexLabelOperator
from airflow_tune_restore.operators.ray.attempt_job import RayAttemptJob
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.plan import read_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

RAY = "ray"
"""The launcher that means a Ray job."""

POLL_SECONDS = 5.0


class RayJobOperator(MapIndexLabelOperator):
    """Base of operators whose work is a runner that may be a Ray job (`launcher="ray"`).

    Args:
        ray_conn_id: Connection of type `ray_jobs`: the cluster.
        runtime_env: Ray runtime_env of the job, over that of the connection. Directories of this worker
            in `working_dir` and `py_modules` are uploaded. No secrets: Ray shows it. (With `ray_address`:
            of the connection to that cluster; not used by a private Ray.)
        entrypoint_num_cpus: CPUs that the driver itself asks for, beside its trials.
        entrypoint_memory: Bytes that the driver asks for; 512 MiB unless the connection says otherwise,
            so that drivers spread over the cluster.
        entrypoint_resources: Custom resources that the driver asks for.
        deferrable: Wait for the job in the triggerer, without a worker slot.
        poll_interval: Seconds between two requests to the cluster, shared by all that wait.
    """

    operator_extra_links = (RayJobLink(),)

    def __init__(  # noqa: PLR0913  the options of a job, by name
        self,
        *,
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
        self.ray_conn_id = ray_conn_id
        self.runtime_env = runtime_env
        self.entrypoint_num_cpus = entrypoint_num_cpus
        self.entrypoint_memory = entrypoint_memory
        self.entrypoint_resources = entrypoint_resources
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self._ray: RayAttemptJob | None = None

    trainable: str
    param_space: str | None
    search_alg: str | None
    imports: "Sequence[str]"
    env: Mapping[str, str] | None
    runner_user: str | None
    _has_user: bool

    @abstractmethod
    def _target(self) -> tuple[ExperimentStorageHook, Address, str]:
        """Return the storage hook, the experiment, and which trial is followed."""

    @abstractmethod
    def _conclude(self, run: RayAttemptJob, outcome: RunnerOutcome) -> dict[str, Any]:
        """Return what the task returns of an end, or raise."""

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on when the trigger has fired."""
        with as_airflow_errors():
            if error := event.get("error") or event.get("trouble"):
                raise AirflowException(error)
            run = self._ray = self._ray_run(event["restore_id"])
            outcome = run.finish(int(event["attempt"]), event)
            if outcome is None:
                return self._execute_ray_job(context, run)
            return self._conclude(run, outcome)

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Stop the job of a task that has waited longer than it may."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            with as_airflow_errors():
                if restore_id := self._remembered(context).get("restore_id"):
                    self._ray_run(restore_id).stop_newest()
            raise

    def on_kill(self) -> None:
        """Stop the job, so that it saves a snapshot; in a run of all, this trial alone."""
        run, self._ray = self._ray, None
        if run is not None:
            run.stop()

    def _execute_ray_job(self, context: Context, run: RayAttemptJob) -> dict[str, Any]:
        """Attach to the trial's job or start it, and wait for its end, here or in the triggerer."""
        self._ray = run
        while (outcome := run.ended_before()) is None:
            attached = run.attach(self._remembered_attempt(context, run))
            self._remember(context, run, attached.attempt)
            context["ti"].xcom_push(URL_KEY, run.jobs.cluster.job_url(attached.submission_id))
            if self.deferrable:
                trigger = run.trigger(attached)
                self._ray = None
                self.defer(
                    trigger=trigger,
                    method_name="execute_complete",
                    timeout=self.execution_timeout,
                )
            outcome = run.finish(attached.attempt, run.follow(attached))
            if outcome is not None:
                break
        run.attached = None
        return self._conclude(run, outcome)

    def _refuse_user(self) -> None:
        """Refuse a user for runners on the worker: here it would protect nothing."""
        runner_account(parse_user(self.runner_user, was_given=self._has_user), RAY)

    def _ray_run(self, restore_id: str) -> RayAttemptJob:
        """Gather what a job needs. Reads connections; starts nothing."""
        self._refuse_user()
        storage, address, trial_id = self._target()
        store = storage.open(address)
        plan = read_plan(store, restore_id)
        hook = RayJobsHook(str(self.ray_conn_id))
        given = dict(self.runtime_env or {})
        return RayAttemptJob(
            jobs=hook.jobs(),
            ray_conn_id=str(self.ray_conn_id),
            address=address,
            store=store,
            plan=plan,
            trial_id=trial_id,
            arguments=RunnerSettings(
                trainable=str(self.trainable),
                param_space=parse_text(self.param_space),
                search_alg=parse_text(self.search_alg),
                imports=self.imports,
                address=IN_CLUSTER,
                can_grow=True,
                reports=trial_id != layout.WHOLE_EXPERIMENT,
            ),
            runtime_env={**hook.runtime_env(), **given},
            env={**storage.public_env(address), **(self.env or {})},
            driver=hook.driver_resources(
                num_cpus=self.entrypoint_num_cpus,
                memory=self.entrypoint_memory,
                resources=self.entrypoint_resources,
            ),
            poll_interval=float(self.poll_interval),
            log=self.log,
        )

    def _remember(self, context: Context, run: RayAttemptJob, attempt: int) -> None:
        """Keep which job is followed beyond this try: Airflow keeps it by the task's position."""
        state = context.get("task_state_store")
        if state is not None:
            value: dict[str, Any] = {
                "restore_id": run.plan.restore_id,
                "attempt": attempt,
                "submission_id": run.job_id(attempt),
            }
            state.set(_state_key(run.trial_id), value)

    def _remembered(self, context: Context) -> dict[str, Any]:
        state = context.get("task_state_store")
        value = state.get(_state_key(self._target()[2])) if state is not None else None
        return value if isinstance(value, dict) else {}

    def _remembered_attempt(self, context: Context, run: RayAttemptJob) -> int:
        """Return the attempt that was followed before, if it is one of this very restore and trial."""
        value = self._remembered(context)
        attempt = value.get("attempt")
        if isinstance(attempt, int) and value.get("submission_id") == run.job_id(attempt):
            return attempt
        return 0


def _state_key(trial_id: str) -> str:
    return f"ray_job_of_{trial_id}"
