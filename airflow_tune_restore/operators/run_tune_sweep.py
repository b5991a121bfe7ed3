"""Runs a sweep's own script as one task, and restores the sweep if the task is tried again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import check_new_place, parse_entrypoint, parse_limit
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.operators import run_tune_sweep_steps as steps
from airflow_tune_restore.operators.attempt_task import AttemptOperator, AttemptTask, OpenExperiment
from airflow_tune_restore.operators.continue_search_steps import commit_after_last_try
from airflow_tune_restore.operators.map_index_label import EXPERIMENT_LABEL
from airflow_tune_restore.operators.next_step import KEPT_IN_EXPERIMENT
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT, CheckRequest
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.check_request import build_check_request
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.prepared import PreparedRestore


class RunTuneSweepOperator(AttemptOperator):
    """Starts the script of a sweep. If the task is tried again, the sweep is restored, not started again.

    So `retries=3` is all that a sweep needs to survive a dead driver, a lost node or a failed trial. A
    retry attaches to a job or pod that lives. Else it restores what the script has left, all trials in
    one real `Tuner.restore(…).fit()`, through the same plan, lease and commit as every other restore.
    The script is started again only if it has died before it saved a first trial.

    The task succeeds when all trials have finished. It fails, and can be retried, if trials failed or
    were cut off, whatever the exit code of the script was. Killing the task stops the script as Ctrl-C
    does, so that Ray Tune saves its last snapshot. While the task runs it holds the lease of the
    experiment: no nightly recovery touches it.

    Returns what `CommitRestoreOperator` returns for one experiment.

    Args:
        entrypoint: Command line that runs the sweep, as of a Ray job: `python sweep.py --lr 0.1`. A shell
            runs it; `python` is the runner's interpreter. It finds the place of the experiment in
            TUNE_RESTORE_STORAGE_PATH and TUNE_RESTORE_NAME. No secrets: it is stored beside the
            experiment. (templated)
        experiment: Address of the experiment that it makes: the storage_path of its RunConfig, and its
            name. Give each DAG run one of its own. (templated)
        trainable: What the script trains, as `package.module:attribute` or a name registered with Tune,
            or a mapping. It is needed to restore, and checked before the script is started. (templated)
        resume_unfinished, resume_errored: Which trials a retry restores, as in `Tuner.restore`; both by
            default. With failed ones, those that `fail_fast` cut short. (templated)
        stale_after: Silence after which an experiment counts as dead that another process has made;
            timedelta or seconds. (templated)
        launcher: `local`, `ray` or `kubernetes`. For pods, this class makes a
            `RunTuneSweepKubernetesOperator`, with the arguments of `KubernetesPodOperator`, so
            `kubernetes` cannot come from a template.
        param_space, search_alg, ignore_tuner, trust_name, check_timeout: As in `ContinueSearchOperator`.
            (templated)
        **kwargs: The other arguments of `ContinueSearchOperator`. `env` reaches the script, too.
    """

    map_index_label = EXPERIMENT_LABEL
    kept_words = KEPT_IN_EXPERIMENT
    template_fields = (*steps.SWEEP_FIELDS, "check_timeout", *AttemptOperator.template_fields)

    def __new__(cls, *_args: Any, launcher: str = LauncherName.LOCAL, **kwargs: Any) -> Any:
        """Make the operator for pods if `launcher` names them."""
        if cls is RunTuneSweepOperator and launcher == LauncherName.KUBERNETES:
            return _pod_operator()(**kwargs)
        return super().__new__(cls)

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Set the arguments that all mapped tasks share."""
        if kwargs.get("launcher") == LauncherName.KUBERNETES:
            return _pod_operator().partial(**{k: v for k, v in kwargs.items() if k != "launcher"})
        return super().partial(**kwargs)

    def __init__(
        self,
        *,
        entrypoint: str,
        experiment: str,
        resume_unfinished: bool | str = True,
        resume_errored: bool | str = True,
        stale_after: timedelta | float | str = DEFAULT_STALE_AFTER,
        ignore_tuner: bool | str = False,
        trust_name: bool | str = False,
        check_timeout: timedelta | float | str = DEFAULT_CHECK_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entrypoint = entrypoint
        self.experiment = experiment
        self.resume_unfinished = resume_unfinished
        self.resume_errored = resume_errored
        self.stale_after = stale_after
        self.ignore_tuner = ignore_tuner
        self.trust_name = trust_name
        self.check_timeout = check_timeout
        self.check_literals(vars(self))

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the script, attach to it, or restore what it left."""
        with self._committing(context), self.errors_of(context):
            self.parse_runner_user()  # refused before anything is leased
            parse_entrypoint("entrypoint", self.entrypoint)
            check_new_place("experiment", self.experiment)
            run = self._begin(context)
            task = run.next_task()
            if task is None:
                return run.report_finished()
            self._use_recipe(task)
            return self.conclude(task, self.run_attempt(context, task))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue after the trigger has fired."""
        with self._committing(context):
            return super().execute_complete(context, event)

    def open_task(self, restore_id: str) -> AttemptTask:
        """Open the experiment and read the plan of the sweep, or of a restore of it."""
        experiment = self._open()
        plan = read_plan(experiment.store, restore_id)
        task = AttemptTask(experiment, plan, layout.WHOLE_EXPERIMENT, is_alone=True)
        self._use_recipe(task)
        return task

    def find_restore(self, context: Context) -> str | None:
        """Return the sweep or the restore that the task has started and not ended."""
        return steps.find_running(context, self._open().store)

    def conclude(self, task: AttemptTask, outcome: RunnerOutcome) -> dict[str, Any]:
        """Judge what the script has left, or commit the restore; trials that are left fail the task."""
        return steps.conclude(task, outcome, self.log)

    @contextmanager
    def errors_of(self, context: Context) -> Iterator[None]:
        """Raise errors as Airflow's; a script that has died, or fails for good, gives its lease back."""
        with super().errors_of(context), steps.ending_sweep(context, lambda: self._open().store):
            yield

    def runner_settings(self) -> RunnerSettings:
        """Return the settings of the runner, with the script that it runs first."""
        return replace(
            super().runner_settings(),
            entrypoint=self.entrypoint,
            checks=self.launcher == LauncherName.RAY and steps.has_one_trainable(self.trainable),
        )

    def _begin(self, context: Context) -> steps.SweepRun:
        experiment = self._open()
        return steps.SweepRun(
            context=context,
            experiment=experiment,
            options=steps.sweep_options(self, self.parse_recipes()),
            is_alive=lambda task: self.attempt_of(task).is_alive(context),
            check_trainable=lambda prepared: self._check(experiment, prepared),
            log=self.log,
        )

    def _committing(self, context: Context) -> Any:
        return commit_after_last_try(context, lambda: self._open().store, self.log)

    def _open(self) -> OpenExperiment:
        return self.open_experiment(self.experiment)

    def _use_recipe(self, task: AttemptTask) -> None:
        if not task.plan.is_sweep:
            self.use_recipe(task.store, task.plan.trainable_name)

    def _check(self, experiment: OpenExperiment, prepared: PreparedRestore | None) -> None:
        """Refuse a trainable that cannot be used or does not fit; the runner of a job checks it there.

        Before the sweep begins, only a trainable for all experiments is known.
        """
        if self.launcher == LauncherName.RAY:
            return
        if prepared is not None:
            self.use_recipe(experiment.store, prepared.plan.trainable_name)
            request = build_check_request(self.runner_settings(), [prepared])
        elif steps.has_one_trainable(self.trainable):
            settings = self.runner_settings()
            request = CheckRequest(
                trainable=settings.trainable,
                param_space=settings.param_space,
                imports=list(settings.imports),
            )
        else:
            return
        timeout = parse_limit("check_timeout", self.check_timeout)
        with self.local_launcher(experiment) as launcher:
            for answer in launcher.check(request, timeout):
                if (error := answer.error()) is not None:
                    raise error
                if answer.message:
                    self.log.warning("%s: %s", experiment.address, answer.message)


def _pod_operator() -> Any:
    """Import the operator that needs the Kubernetes provider, an optional dependency.

    Raises:
        InvalidInputError: If it is not installed.
    """
    from airflow_tune_restore.operators.kubernetes.run_tune_sweep import (
        RunTuneSweepKubernetesOperator,
    )

    return RunTuneSweepKubernetesOperator
