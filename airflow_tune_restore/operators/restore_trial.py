"""Runs one trial of a restore, as one (mapped) task."""

from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.operators.attempt_task import AttemptOperator, AttemptTask
from airflow_tune_restore.operators.map_index_label import TRIAL_LABEL
from airflow_tune_restore.operators.planned_trial import PlannedTrialOperator
from airflow_tune_restore.operators.trial_outcome import judge
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.plan import read_part


class RestoreTrialOperator(PlannedTrialOperator, AttemptOperator):
    """Resumes or restarts one trial according to the plan, and follows it until it ends.

    `RestoreTrialOperator.partial(task_id=…, trainable=…).expand(trial=plan.output)` makes one task per
    trial. The task's log shows the runner's output line by line. If the task is killed (by hand, by
    `execution_timeout`), the runner saves a snapshot first. A retry continues from the newest snapshot or
    checkpoint; so give the task `retries` of 1 or more. A trial that fails again fails the task; its
    progress is kept and committed.

    Trials that have little left to do share a driver (strategy `auto`; `per_trial` and `shared_driver`
    force either). The first task starts it, the others hand their trials over. Each trial stays
    independent: it has its own attempt, log, snapshot and outcome, and killing its task stops it alone.
    If the driver dies, the trials that it had begun go on, each in a driver of its own, and so does each
    retry. A task whose worker ends with it (a pod of the KubernetesExecutor, a job of the RayExecutor)
    shares nothing: the driver would end with that worker.

    If trials depend on each other (strategy `whole_experiment`), all tasks of an experiment share one
    real `Tuner.restore(…).fit()`. The first task starts this run. Each task follows its own trial, and
    killing a task stops only its trial. The run outlives the task that started it, unless the worker
    ends with that task: then the task stays until the run has ended.

    Args:
        trial: One item of `BuildRestorePlanOperator`'s output. (templated)
        trainable: `package.module:attribute`, or a name registered with Tune. It must have the recorded
            name and be importable where the trial runs. (templated)
        param_space: `package.module:attribute` of a re-specified param_space, a dict or a function
            without arguments; its flat keys must be the recorded ones. (templated)
        search_alg: `package.module:attribute` of a searcher, a function without arguments that makes one,
            a Tuner or a TuneConfig. Used only if `tuner.pkl` is lost and samples are left that Ray's
            default searcher cannot draw. (templated)
        launcher: `local`: the trial runs in a child process of the worker. `ray`: it runs as a job on the
            cluster of `ray_conn_id`. (templated)
        python: Interpreter that has Ray and the trainable; the worker's own by default. (templated)
        runner_user: Name or uid of the user for runners on the worker (`launcher="local"`), if the worker
            is root. By default runners have the worker's own user and can read its files and, in `/proc`,
            Airflow's secrets in its environment. Airflow's `run_as_user` is different: it starts the
            whole task as that user, with Airflow's variables (`sudo -E`), and a runner of the same user
            can read them. (templated)
        ray_address: Ray cluster to run on, for example `ray://head:10001` or `head:6379`. By default the
            runner starts a private Ray that is as large as the trial requests. (templated)
        imports: Modules the runner imports first; they may register trainables or environments.
        env: Environment variables of the runner. No secrets: the DAG's code and its serialized form
            contain them. Credentials belong in the storage connection.
        storage_conn_id: Airflow connection to open the experiment with; by default the one in the
            trial's address. (templated)
        retry_policy: By default `TrialRetryPolicy`: no retry of a failure that repeats, and a longer wait
            for a store or after running out of memory. None for Airflow's plain retries.
        ray_conn_id: With `launcher="ray"`, as all that follow: connection of type `ray_jobs`. (templated)
        runtime_env: Ray runtime_env of the job, merged over that of the connection. Directories of this
            worker in `working_dir` and `py_modules` are uploaded. No secrets: Ray shows it. With
            `ray_address` it is the runtime_env of the connection to that cluster.
        entrypoint_num_cpus: CPUs for the driver itself, in addition to its trials.
        entrypoint_memory: Bytes for the driver; by default those of the connection, or 512 MiB, so that
            drivers spread over the cluster.
        entrypoint_resources: Custom resources for the driver.
        deferrable: Whether the job is waited for in the triggerer, without a worker slot.
        poll_interval: Seconds between two requests to the cluster, shared by all waiting tasks.
        **kwargs: Arguments of every operator.
    """

    map_index_label = TRIAL_LABEL
    template_fields = ("trial", *AttemptOperator.template_fields)
    template_fields_renderers = {"trial": "json"}  # noqa: RUF012  as Airflow declares it

    def __init__(self, *, trial: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trial = trial

    def execute(self, context: Context) -> dict[str, Any]:
        """Run an attempt of the trial, or take the outcome of an earlier try, and judge the outcome."""
        with self.errors_of(context):
            self.parse_runner_user()  # refused before anything is claimed
            task = self.open_task(TrialXCom.parse(self.trial).restore_id)
            return self.conclude(task, self.run_attempt(context, task))

    def open_task(self, restore_id: str) -> AttemptTask:
        """Open the experiment of the trial and read its part of the plan."""
        item = TrialXCom.parse(self.trial)
        experiment = self.open_experiment(item.experiment)
        part = read_part(experiment.store, restore_id, item.trial_id)
        self.use_recipe(experiment.store, part.trainable_name)
        return AttemptTask(experiment, part, item.trial_id)

    def find_restore(self, context: Context) -> str | None:
        """Return the restore of the trial."""
        del context
        return TrialXCom.parse(self.trial).restore_id

    def conclude(self, task: AttemptTask, outcome: RunnerOutcome) -> dict[str, Any]:
        """Return a summary of the finished trial; every other outcome fails the task."""
        item = TrialXCom.parse(self.trial)
        return judge(task.store, task.plan, item, outcome, log=self.log)
