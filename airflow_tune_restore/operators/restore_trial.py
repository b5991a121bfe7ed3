"""Runs one trial of a restore, as one (mapped) task."""

from typing import Any

from airflow.sdk import Context, RetryPolicy

from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.operators.attempt_task import AttemptOperator, AttemptTask
from airflow_tune_restore.operators.map_index_label import TRIAL_LABEL
from airflow_tune_restore.operators.retry_policy import TRIAL_RETRY_POLICY
from airflow_tune_restore.operators.trial_outcome import judge
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol.request import RunnerOutcome


class RestoreTrialOperator(AttemptOperator):
    """Resumes or restarts one trial, as the plan says, and follows it to its end.

    Where trials are coupled (strategy `whole_experiment`), all tasks of an experiment share one real
    `Tuner.restore(…).fit()`: the first to come starts it, each follows, logs and ends with its own trial,
    and killing a task stops its trial alone. The run outlives the task that started it; so it needs
    workers that outlive a task, which pods of the KubernetesExecutor do not.

    `RestoreTrialOperator.partial(task_id=…, trainable=…).expand(trial=plan.output)` makes one task a
    trial. The runner's output appears in the task's log line by line. Killing the task (by hand, by
    `execution_timeout`) lets the runner save a snapshot first; a retry goes on from the newest snapshot
    or checkpoint, so give the task `retries` of 1 or more. A trial that failed again fails the task; its
    progress is kept and committed.

    Args:
        trial: One item of `BuildRestorePlanOperator`'s output. (templated)
        trainable: `package.module:attribute`, or a name registered with Tune. It must have the recorded
            name, and be importable where the trial runs. (templated)
        param_space: `package.module:attribute` of a re-specified param_space, a dict or a function
            without arguments; its flat keys must be the recorded ones. (templated)
        search_alg: `package.module:attribute` of a searcher, a function without arguments that makes one,
            a Tuner or a TuneConfig. Needed, and used, only where `tuner.pkl` is lost and samples are
            left that Ray's default searcher cannot draw. (templated)
        launcher: Where the trial runs. `local`: in a child process of the worker. `ray`: as a job of the
            cluster that `ray_conn_id` names, waited for in the triggerer. (templated)
        python: Interpreter that has Ray and the trainable; the worker's own by default. (templated)
        runner_user: Whom runners run as on the worker: the name or number of a user. For
            `launcher="local"` on a worker that is root. By default they have the worker's own user, and
            can read what it can: its files and, in `/proc`, Airflow's secrets in its environment. Another
            word than Airflow's `run_as_user`, which starts the whole task as that user, with Airflow's
            variables (`sudo -E`), so that a runner of the same user could read them. (templated)
        ray_address: Ray cluster to run on, as `ray://head:10001` or `head:6379`; without, the runner
            starts a private Ray as large as the trial asks for. (templated)
        imports: Modules the runner imports first; they may register trainables or environments.
        env: Environment variables of the runner. No secrets: they stand in the DAG's code and in its
            serialized form. Credentials belong into the storage connection.
        storage_conn_id: Airflow connection to open the experiment with; by default the one in the
            trial's address. (templated)
        retry_policy: By default `TrialRetryPolicy`: no retry of what fails in the same way again, a
            longer wait after running out of memory and for a store. None for Airflow's plain retries.
        kwargs: With `launcher="ray"`: `ray_conn_id`, `runtime_env`, `entrypoint_num_cpus`,
            `entrypoint_memory`, `entrypoint_resources`, `deferrable`, `poll_interval`, see
            `RayJobOperator`; and those of every operator.
    """

    map_index_label = TRIAL_LABEL
    template_fields = ("trial", *AttemptOperator.template_fields)
    template_fields_renderers = {"trial": "json"}  # noqa: RUF012  as Airflow declares it

    def __init__(
        self, *, trial: Any, retry_policy: RetryPolicy | None = TRIAL_RETRY_POLICY, **kwargs: Any
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.trial = trial

    @property
    def experiment_address(self) -> str:
        """The address of the trial's experiment."""
        return TrialXCom.parse(self.trial).experiment

    @property
    def trial_id(self) -> str:
        """Id of the trial in the plan."""
        return TrialXCom.parse(self.trial).trial_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Run an attempt of the trial, or take the outcome of an earlier try, and judge the outcome."""
        with as_airflow_errors():
            self.parse_runner_user()  # refused before anything is claimed
            task = self.open_task(TrialXCom.parse(self.trial).restore_id)
            return self.conclude(task, self.run_attempt(context, task))

    def conclude(self, task: AttemptTask, outcome: RunnerOutcome) -> dict[str, Any]:
        """Return a summary of the finished trial; every other outcome fails the task."""
        item = TrialXCom.parse(self.trial)
        return judge(task.store, task.plan, item, outcome, log=self.log)
