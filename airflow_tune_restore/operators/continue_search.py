"""Continues the search of one experiment, as one task."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_limit
from airflow_tune_restore.hooks.window import Window
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.operators.attempt_task import AttemptOperator, AttemptTask, OpenExperiment
from airflow_tune_restore.operators.continue_search_steps import (
    commit_after_last_try,
    continued_search_options,
    experiment_to_continue,
    find_started_restore,
    raise_unless_ended,
    report_commit,
    start_continued_search,
)
from airflow_tune_restore.operators.map_index_label import EXPERIMENT_LABEL
from airflow_tune_restore.operators.next_step import COMMITTED_NOW
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.check_request import build_check_request
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.prepared import PreparedRestore


class ContinueSearchOperator(AttemptOperator):
    """Draws the samples that are left of an experiment with its original searcher, and commits them.

    It runs a real `Tuner.restore(…).fit()` in which every existing trial stays as it is. A searcher that
    learns (Optuna, HyperOpt) first receives the results of the trials that were restored without it. With
    a param_space, an experiment whose driver died before its first snapshot is started in its directory.
    The task is skipped if no samples are left.

    Killing the task saves a snapshot, and a retry continues from it; so give it `retries` of 1 or more. A
    run that breaks off fails the task; its samples are committed after the last try. Trials that fail are
    committed with their progress and do not fail the task. If the searcher is lost and no `search_alg` is
    given, the task fails before anything starts.

    Returns what `CommitRestoreOperator` returns for one experiment.

    Args:
        experiment: Address of the experiment, or one element of `CommitRestoreOperator`'s output.
            (templated)
        trainable: `package.module:attribute`, or a name registered with Tune. (templated)
        param_space: `package.module:attribute` of the param_space. Needed only for an experiment that
            never started. (templated)
        search_alg: As in `RestoreTrialOperator`. (templated)
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds.
        ignore_tuner, trust_name, check_timeout, until, max_duration: As in `BuildRestorePlanOperator`.
            (templated)
        ray_address: Ray cluster to run on; by default a private Ray on all CPUs. (templated)
        **kwargs: The other arguments of `RestoreTrialOperator`, except `trial` and `retry_policy`.
    """

    map_index_label = EXPERIMENT_LABEL
    kept_words = COMMITTED_NOW
    template_fields = (
        "experiment",
        "ignore_tuner",
        "trust_name",
        "until",
        "max_duration",
        "check_timeout",
        *AttemptOperator.template_fields,
    )
    template_fields_renderers = {"experiment": "json"}  # noqa: RUF012  as Airflow declares it

    def __init__(
        self,
        *,
        experiment: Any,
        stale_after: timedelta | float | str = 0,
        ignore_tuner: bool | str = False,
        trust_name: bool | str = False,
        until: str | None = None,
        max_duration: timedelta | float | str | None = None,
        check_timeout: timedelta | float | str = DEFAULT_CHECK_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.stale_after = stale_after
        self.ignore_tuner = ignore_tuner
        self.trust_name = trust_name
        self.until = until
        self.max_duration = max_duration
        self.check_timeout = check_timeout
        self.check_literals(vars(self))

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, run and commit the continued search."""
        with (
            commit_after_last_try(context, lambda: self._open().store, self.log),
            self.errors_of(context),
        ):
            self.parse_runner_user()  # refused before anything is leased
            experiment = self._open()
            options = continued_search_options(
                self.stale_after,
                self.param_space,
                self.search_alg,
                self.ignore_tuner,
                self.trust_name,
                self.parse_recipes(),
                Window.of(context, self.until, self.max_duration),
            )
            plan, settled = start_continued_search(
                *(context, experiment.store, options),
                check=lambda prepared: self._check(experiment, prepared),
                log=self.log,
            )
            if plan is None:
                return report_commit(experiment.address, settled, log=self.log)
            self.use_recipe(experiment.store, plan.trainable_name)
            task = AttemptTask(experiment, plan, layout.WHOLE_EXPERIMENT)
            return self.conclude(task, self.run_attempt(context, task))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue after the trigger has fired."""
        with commit_after_last_try(context, lambda: self._open().store, self.log):
            return super().execute_complete(context, event)

    def open_task(self, restore_id: str) -> AttemptTask:
        """Open the experiment and read the plan of the continued search."""
        experiment = self._open()
        plan = read_plan(experiment.store, restore_id)
        self.use_recipe(experiment.store, plan.trainable_name)
        return AttemptTask(experiment, plan, layout.WHOLE_EXPERIMENT)

    def find_restore(self, context: Context) -> str | None:
        """Return the restore that an earlier step of this task has started, if it is not committed."""
        return find_started_restore(context, self._open().store)

    def conclude(self, task: AttemptTask, outcome: RunnerOutcome) -> dict[str, Any]:
        """Commit the drawn samples; a run that broke off fails the task."""
        raise_unless_ended(task.plan, outcome)
        summary = commit_restore(task.store, task.plan.restore_id)
        return report_commit(task.experiment.address, summary, log=self.log)

    def _open(self) -> OpenExperiment:
        return self.open_experiment(experiment_to_continue(self.experiment))

    def _check(self, experiment: OpenExperiment, prepared: PreparedRestore) -> None:
        """Refuse a trainable that does not fit; the runner of a Ray job checks its own."""
        if self.launcher == LauncherName.RAY:
            return
        self.use_recipe(experiment.store, prepared.plan.trainable_name)
        request = build_check_request(self.runner_settings(), [prepared])
        timeout = parse_limit("check_timeout", self.check_timeout)
        with self.local_launcher(experiment) as launcher:
            (answer,) = launcher.check(request, timeout)
        if (error := answer.error()) is not None:
            raise error
        if answer.message:
            self.log.warning("%s: %s", experiment.address, answer.message)
