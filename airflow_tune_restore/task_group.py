"""The whole restore in one line of a DAG."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Unpack

from airflow.sdk import TaskGroup, XComArg

from airflow_tune_restore.arguments import parse_count
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, RESTORABLE
from airflow_tune_restore.hooks.experiment_search import LEFT_ALONE_KEY
from airflow_tune_restore.hooks.literals import check_literals
from airflow_tune_restore.operators.approval import BODY_KEY, SUBJECT_KEY
from airflow_tune_restore.operators.approve_restores import (
    ApproveRestoresOperator,
    parse_approval,
)
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.group_arguments import (
    CheckArguments,
    FindArguments,
    GroupArguments,
    PassedArguments,
    PlanArguments,
    TaskArguments,
    pick,
    refuse_unknown,
)
from airflow_tune_restore.operators.preview_restore import PreviewRestoreOperator
from airflow_tune_restore.operators.repeat_run import RepeatRunOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.xcom import OUTCOMES_KEY, TOTALS_KEY
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor

RETRIES = 1
"""Default of `retries`: stores and workers fail now and then, and every step can be repeated."""

KUBERNETES = "kubernetes"
_OPERATORS: tuple[Any, Any] = (RestoreTrialOperator, ContinueSearchOperator)


class TuneRestoreTaskGroup(TaskGroup):
    """Restore failed experiments: find, plan, run one task per trial, commit, continue the search.

    Its tasks: `find` (with `prefix`), `plan`, `trial` (mapped over trials), `commit`, `continue_search`
    (mapped over experiments; skipped where no samples are left), `done` and, with `repeat`, `repeat`.
    `done` makes the DAG run fail if any of them failed, or if the plan skipped an experiment because of
    an unexpected error. With nothing to restore the tasks are skipped and the DAG run succeeds.

    With `require_approval`, `preview` and `approve` come before `plan`: a person sees what will run, and
    for how long, and says yes or no. After a no, the tasks are skipped and the DAG run succeeds.

    Args:
        trainable, recipes: What restores the experiments, as in
            `airflow_tune_restore.operators.recipe_operator.RecipeOperator`: `package.module:attribute`, a
            name registered with Tune, or a mapping from trainables or globs on paths below `prefix` to
            either of them or to records.
        prefix: Place to search for experiments. Either this or `experiments` is required.
        experiments: Experiments to restore: an address, a list of them, or another task's output.
        health, wait, deferrable: With `prefix`: as in `FailedTuneExperimentSensor`. `deferrable=None` is
            Airflow's default.
        stale_after: Silence after which an unfinished experiment counts as dead.
        storage_conn_id: Airflow connection for the store.
        resume_unfinished, resume_errored, restart_errored: As in `Tuner.restore`.
        resume_config, ignore_tuner, trust_name, max_attempts, param_space, search_alg: As in
            `BuildRestorePlanOperator`.
        imports: Modules that the runners import first.
        python: Interpreter that has Ray and the trainable.
        runner_user: User of the runners on a worker that runs as root, as in `RestoreTrialOperator`.
        ray_address: Ray cluster to run on; without it every trial gets a private Ray.
        launcher: Where trials run: `local`; `ray`, as jobs of the cluster of `ray_conn_id`; or
            `kubernetes`, in pods. For pods, `trial_args` contains the image, the namespace and other
            arguments of `KubernetesPodOperator` (`continue_search` gets the same). `kubernetes` cannot
            come from a template, because it uses other operators.
        ray_conn_id: Connection of type `ray_jobs`: with `launcher="ray"` trials run there. An experiment
            also counts as running if a live job of this cluster names it.
        runtime_env: With `launcher="ray"`: Ray runtime_env of the jobs, over that of the connection.
        env: Environment variables of the runners. No secrets: the serialized DAG contains them.
        max_active_trials: How many trials run at the same time in one DAG run.
        repeat: Whether the next DAG run is started, with the same conf, if trials wait and at least one
            that ran has finished or got further (`RepeatRunOperator`).
        until, max_duration: The end of the window: a time of day in the time zone of the DAG, as `07:00`,
            and how long it lasts. From then on nothing is started, and what runs is paused: its tasks are
            skipped, and the next DAG run goes on from its snapshots.
        require_approval: Whether a person must approve what will run. Each DAG run asks.
        approval_timeout: How long an answer is waited for; timedelta or seconds. Without one, `approve`
            fails. None: for ever.
        approval_default: `Approve` or `Reject`: the answer after the timeout.
        assigned_users, notifiers: As in Airflow's `ApprovalOperator`: who may answer, and who is told.
        find_args, plan_args, trial_args, commit_args, continue_search_args: Arguments for the operator of
            one task. They win over all others: `trial_args={"retries": 3}`. Trials return nothing: the
            commit returns all of it. `trial_args={"do_xcom_push": True}` makes them. `preview` gets
            those of `plan`.
        **more: Arguments that are passed on (`airflow_tune_restore.operators.group_arguments`): those of
            the sensor to `find`, for example `include` and `timeout`; those of a plan to `plan`, for
            example `strategy`; those of every Airflow task to all tasks, for example `retries`, `pool`
            and `execution_timeout`; those of `TaskGroup` to the group.

    Attributes:
        plan, trial, commit, continue_search: These tasks.
        preview, approve: These tasks; None without `require_approval`.
    """

    def __init__(  # noqa: PLR0913  one line of a DAG has its options by name
        self,
        group_id: str = "restore",
        *,
        trainable: str | Mapping[str, Any] | None = None,
        recipes: bool | Sequence[str] = False,
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
        trust_name: bool | str = False,
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
        repeat: bool = False,
        until: str | None = None,
        max_duration: timedelta | float | str | None = None,
        require_approval: bool = False,
        approval_timeout: timedelta | float | None = None,
        approval_default: str | None = None,
        assigned_users: Any = None,
        notifiers: Any = None,
        find_args: Mapping[str, Any] | None = None,
        plan_args: Mapping[str, Any] | None = None,
        trial_args: Mapping[str, Any] | None = None,
        commit_args: Mapping[str, Any] | None = None,
        continue_search_args: Mapping[str, Any] | None = None,
        **more: Unpack[PassedArguments],
    ) -> None:
        refuse_unknown(more, inspect.signature(TuneRestoreTaskGroup).parameters)
        if (prefix is None) == (experiments is None):
            wrong = "needs" if prefix is None else "cannot have both: give"
            raise InvalidInputError(
                f"TuneRestoreTaskGroup {group_id!r} {wrong} either prefix= or experiments=."
            )
        for_find = pick(more, FindArguments)
        if prefix is None and for_find:
            raise InvalidInputError(
                f"TuneRestoreTaskGroup {group_id!r}: {', '.join(for_find)} needs prefix=, because "
                "nothing is searched for without it."
            )
        check_literals({"repeat": repeat}, ())
        approval = parse_approval(
            require_approval=require_approval,
            approval_timeout=approval_timeout,
            approval_default=approval_default,
            assigned_users=assigned_users,
            notifiers=notifiers,
        )
        window: dict[str, Any] = {"until": until, "max_duration": max_duration}
        super().__init__(group_id=group_id, **pick(more, GroupArguments))
        from_dag = self.dag.default_args if self.dag else {}
        for_all = pick(more, TaskArguments)
        self.default_args = {"retries": RETRIES, **from_dag, **self.default_args, **for_all}
        with self:
            left_alone: dict[str, Any] = {}
            if prefix is not None:
                find = {"deferrable": deferrable} if deferrable is not None else {}
                sensor = FailedTuneExperimentSensor(
                    **{
                        "task_id": "find",
                        "prefix": prefix,
                        "health": health,
                        "stale_after": stale_after,
                        "wait": wait,
                        "storage_conn_id": storage_conn_id,
                        "ray_conn_id": ray_conn_id,
                        **window,
                        **find,
                        **for_find,
                        **(find_args or {}),
                    }
                )
                experiments = sensor.output
                left_alone = {"left_alone": XComArg(sensor, key=LEFT_ALONE_KEY)}
            shared = {
                "trainable": trainable,
                "recipes": recipes,
                "prefix": prefix,
                "param_space": param_space,
                "search_alg": search_alg,
                "imports": imports,
                "python": python,
                "env": env,
            }
            in_pods = launcher == KUBERNETES
            trial_operator, search_operator = _pod_operators() if in_pods else _OPERATORS
            place = {"launcher": launcher, "runner_user": runner_user}
            run: dict[str, Any] = {}
            if not in_pods:
                run = {**place, "ray_address": ray_address, "runtime_env": runtime_env}
                run |= {"ray_conn_id": ray_conn_id} if ray_conn_id else {}
            self._plan(
                {
                    "experiments": experiments,
                    "resume_unfinished": resume_unfinished,
                    "resume_errored": resume_errored,
                    "restart_errored": restart_errored,
                    "resume_config": resume_config,
                    "ignore_tuner": ignore_tuner,
                    "trust_name": trust_name,
                    "max_attempts": max_attempts,
                    "stale_after": stale_after,
                    "storage_conn_id": storage_conn_id,
                    "ray_conn_id": ray_conn_id,
                    **place,
                    **shared,
                    **window,
                    **pick(more, PlanArguments),
                    **(plan_args or {}),
                },
                approval,
            )
            # storage_conn_id is in the addresses that the plan returns
            self.trial = trial_operator.partial(
                **{
                    "task_id": "trial",
                    "do_xcom_push": False,
                    "max_active_tis_per_dagrun": parse_count(
                        "max_active_trials", max_active_trials
                    ),
                    **shared,
                    **run,
                    **(trial_args or {}),
                }
            ).expand(trial=self.plan.output)
            self.commit = CommitRestoreOperator(
                **{
                    "task_id": "commit",
                    "outcomes": XComArg(self.plan, key=OUTCOMES_KEY),
                    **left_alone,
                    "previewed": self.preview and XComArg(self.preview, key=OUTCOMES_KEY),
                    **(commit_args or {}),
                }
            )
            self.continue_search = search_operator.partial(
                **{
                    "task_id": "continue_search",
                    "ignore_tuner": ignore_tuner,
                    "trust_name": trust_name,
                    **shared,
                    **window,
                    **run,
                    **(pick(more, CheckArguments) if not in_pods else trial_args or {}),
                    **(continue_search_args or {}),
                }
            ).expand(experiment=self.commit.output)
            totals = XComArg(self.commit, key=TOTALS_KEY)
            done = CheckRestoresOperator(
                task_id="done", outcomes=XComArg(self.plan, key=OUTCOMES_KEY), totals=totals
            )
            self.trial >> self.commit
            [self.trial, self.commit, self.continue_search] >> done
            if repeat:
                again = RepeatRunOperator(
                    task_id="repeat",
                    totals=totals,
                    searches=self.continue_search.output,
                    **window,
                )
                [self.plan, self.trial, self.commit, self.continue_search] >> again

    def _plan(self, arguments: Mapping[str, Any], approval: Mapping[str, Any] | None) -> None:
        """Add the task `plan`; with an approval, behind `preview` and `approve`."""
        self.preview: PreviewRestoreOperator | None = None
        self.approve: ApproveRestoresOperator | None = None
        if approval is None:
            self.plan = BuildRestorePlanOperator(**{"task_id": "plan", **arguments})
            return
        self.preview = PreviewRestoreOperator(**{"task_id": "preview", **arguments})
        self.approve = ApproveRestoresOperator(
            task_id="approve",
            subject=XComArg(self.preview, key=SUBJECT_KEY),
            body=XComArg(self.preview, key=BODY_KEY),
            **approval,
        )
        approved = {
            "approved": self.preview.output,
            "previewed": XComArg(self.preview, key=OUTCOMES_KEY),
        }
        self.plan = BuildRestorePlanOperator(**{"task_id": "plan", **arguments, **approved})
        self.approve >> self.plan


def _pod_operators() -> tuple[Any, Any]:
    """Import the operators that need the Kubernetes provider, an optional dependency.

    Raises:
        InvalidInputError: If it is not installed.
    """
    from airflow_tune_restore.operators.kubernetes import continue_search, restore_trial

    return (
        restore_trial.RestoreTrialKubernetesOperator,
        continue_search.ContinueSearchKubernetesOperator,
    )
