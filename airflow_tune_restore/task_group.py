"""The whole restore in one line of a DAG."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, XComArg

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, RESTORABLE
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.xcom import CONTINUE_SEARCH_KEY, RESTORES_KEY, UNEXPECTED_KEY
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor

RETRIES = 1
"""Unless default_args say otherwise: stores and workers have their moments, every step can be redone."""

KUBERNETES = "kubernetes"
_OPERATORS: tuple[Any, Any] = (RestoreTrialOperator, ContinueSearchOperator)


class TuneRestoreTaskGroup(TaskGroup):
    """Find (or take) failed experiments, plan, run one task a trial, commit, draw what samples are left.

    Its tasks: `find` (with `prefix`), `plan`, `trial` (mapped), `commit`, `samples` (mapped; skipped for
    experiments whose samples were all drawn), and `done`, a last task that is upstream_failed if another
    one failed, and fails if the plan lost an experiment to an error that nobody foresaw, so that the DAG
    run's state tells. With nothing to restore the tasks are skipped and the DAG run succeeds.

    Args:
        group_id: Id of the group.
        trainable: `package.module:attribute`, or a name registered with Tune.
        prefix: Look for experiments here. Give this or `experiments`.
        experiments: Restore these: an address, a list of them, or another task's output.
        health: With `prefix`: which experiments.
        wait: With `prefix`: wait until there is one, rather than look once.
        deferrable: With `wait`: in the triggerer, without a worker slot. None for Airflow's default.
        stale_after: Silence after which an unfinished experiment counts as dead.
        storage_conn_id: Airflow connection for the store.
        resume_unfinished: As in `Tuner.restore`.
        resume_errored: As in `Tuner.restore`.
        restart_errored: As in `Tuner.restore`.
        resume_config: Per-status form of the three flags.
        ignore_tuner: Restore from the state alone, whatever `tuner.pkl` holds, as in
            `BuildRestorePlanOperator`.
        param_space: `package.module:attribute` of a re-specified param_space.
        search_alg: `package.module:attribute` of a searcher for samples whose own is lost.
        imports: Modules the runners import first.
        python: Interpreter that has Ray and the trainable.
        runner_user: Whom runners run as on a worker that is root, as in `RestoreTrialOperator`.
        ray_address: Ray cluster to run on; without, every trial gets a private Ray.
        launcher: Where trials run: `local`; `ray`, as jobs of the cluster that `ray_conn_id` names; or
            `kubernetes`, in pods, for which `trial_args` holds the image, the namespace and all else that
            a `KubernetesPodOperator` is given (`samples` gets the same). The last has operators of its
            own, so it cannot come from a template.
        ray_conn_id: Connection of type `ray_jobs`: with `launcher="ray"` trials run there. If given, its
            cluster is also asked whether a driver still runs for what looks dead.
        runtime_env: With `launcher="ray"`: Ray runtime_env of the jobs, over that of the connection.
        env: Environment variables of the runners. No secrets: they stand in the DAG's serialized form.
        max_attempts: Failed attempts over all nights after which a trial is quarantined.
        max_active_trials: How many trials run at the same time in one DAG run.
        find_args: More arguments of `FailedTuneExperimentSensor`, as `include`, `exclude` or `max_depth`.
        plan_args: More arguments of `BuildRestorePlanOperator`, as `strategy` or `trigger_rule`.
        trial_args: More arguments of `RestoreTrialOperator`, as `retries` or `execution_timeout`.
        commit_args: More arguments of `CommitRestoreOperator`.
        continue_search_args: More arguments of `ContinueSearchOperator`.
        **kwargs: Arguments of `TaskGroup`.

    Attributes:
        plan: The plan task.
        trial: The mapped trial task.
        commit: The commit task.
        samples: The mapped task that draws samples.
    """

    def __init__(  # noqa: PLR0913  one line of a DAG has its options by name
        self,
        group_id: str = "restore",
        *,
        trainable: str,
        prefix: str | None = None,
        experiments: Any = None,
        health: Iterable[str] = RESTORABLE,
        wait: bool = True,
        deferrable: bool | None = None,
        stale_after: timedelta | float | str = DEFAULT_STALE_AFTER,
        storage_conn_id: str | None = None,
        resume_unfinished: bool | str = True,
        resume_errored: bool | str = False,
        restart_errored: bool | str = False,
        resume_config: Mapping[str, Any] | None = None,
        ignore_tuner: bool | str = False,
        param_space: str | None = None,
        search_alg: str | None = None,
        imports: Sequence[str] = (),
        python: str | None = None,
        runner_user: str | None = None,
        ray_address: str | None = None,
        launcher: str = "local",
        ray_conn_id: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        max_attempts: int | str | None = None,
        max_active_trials: int | None = None,
        find_args: Mapping[str, Any] | None = None,
        plan_args: Mapping[str, Any] | None = None,
        trial_args: Mapping[str, Any] | None = None,
        commit_args: Mapping[str, Any] | None = None,
        continue_search_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if (prefix is None) == (experiments is None):
            raise InvalidInputError(
                f"TuneRestoreTaskGroup {group_id!r} needs either prefix= or experiments=."
            )
        super().__init__(group_id=group_id, **kwargs)
        from_dag = self.dag.default_args if self.dag else {}
        self.default_args = {"retries": RETRIES, **from_dag, **self.default_args}
        with self:
            if prefix is not None:
                find = {"deferrable": deferrable} if deferrable is not None else {}
                experiments = FailedTuneExperimentSensor(
                    **{
                        "task_id": "find",
                        "prefix": prefix,
                        "health": health,
                        "stale_after": stale_after,
                        "wait": wait,
                        "storage_conn_id": storage_conn_id,
                        "ray_conn_id": ray_conn_id,
                        **find,
                        **(find_args or {}),
                    }
                ).output
            shared = {
                "trainable": trainable,
                "param_space": param_space,
                "search_alg": search_alg,
                "imports": imports,
                "python": python,
                "env": env,
            }
            in_pods = launcher == KUBERNETES
            trial_operator, samples_operator = _pod_operators() if in_pods else _OPERATORS
            run = {
                "launcher": launcher,
                "runner_user": runner_user,
                "ray_address": ray_address,
                "runtime_env": runtime_env,
                **({"ray_conn_id": ray_conn_id} if ray_conn_id else {}),
            }
            run = {} if in_pods else run
            self.plan = BuildRestorePlanOperator(
                **{
                    "task_id": "plan",
                    "experiments": experiments,
                    "resume_unfinished": resume_unfinished,
                    "resume_errored": resume_errored,
                    "restart_errored": restart_errored,
                    "resume_config": resume_config,
                    "ignore_tuner": ignore_tuner,
                    "max_attempts": max_attempts,
                    "stale_after": stale_after,
                    "storage_conn_id": storage_conn_id,
                    "launcher": launcher,
                    "runner_user": runner_user,
                    "ray_conn_id": ray_conn_id,
                    **shared,
                    **(plan_args or {}),
                }
            )
            # the trials' addresses carry the connection already
            self.trial = trial_operator.partial(
                **{
                    "task_id": "trial",
                    "max_active_tis_per_dagrun": max_active_trials,
                    **shared,
                    **run,
                    **(trial_args or {}),
                }
            ).expand(trial=self.plan.output)
            self.commit = CommitRestoreOperator(
                **{
                    "task_id": "commit",
                    "restores": XComArg(self.plan, key=RESTORES_KEY),
                    "continue_search": XComArg(self.plan, key=CONTINUE_SEARCH_KEY),
                    **(commit_args or {}),
                }
            )
            self.samples = samples_operator.partial(
                **{
                    "task_id": "samples",
                    "ignore_tuner": ignore_tuner,
                    **shared,
                    **run,
                    **((trial_args or {}) if in_pods else {}),
                    **(continue_search_args or {}),
                }
            ).expand(experiment=self.commit.output)
            done = CheckRestoresOperator(
                task_id="done", unexpected=XComArg(self.plan, key=UNEXPECTED_KEY)
            )
            self.trial >> self.commit
            [self.trial, self.commit, self.samples] >> done


def _pod_operators() -> tuple[Any, Any]:
    """Import the operators that need the Kubernetes provider, which the package does without."""
    try:
        from airflow_tune_restore.operators.kubernetes import continue_search as samples
        from airflow_tune_restore.operators.kubernetes import restore_trial as trial
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("airflow.providers.cncf", "kubernetes")):
            raise
        raise InvalidInputError(
            f'launcher="{KUBERNETES}" needs the Kubernetes provider: '
            "pip install 'airflow-tune-restore[kubernetes]'."
        ) from error
    return trial.RestoreTrialKubernetesOperator, samples.ContinueSearchKubernetesOperator
