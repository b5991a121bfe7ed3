"""Continues the search of an experiment whose samples were not all drawn, as one task."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.operators.attempt_task import (
    AttemptOperator,
    AttemptTask,
    OpenExperiment,
)
from airflow_tune_restore.operators.continued_search import (
    commit_after_last_try,
    continued_search_options,
    experiment_to_continue,
    raise_unless_ended,
    report_commit,
    start_continued_search,
)
from airflow_tune_restore.operators.map_index_label import EXPERIMENT_LABEL
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.prepare import PreparedRestore
from airflow_tune_restore.storage.base import ObjectStore


class ContinueSearchOperator(AttemptOperator):
    """Draws what is left of an experiment's samples with its original searcher, and commits them.

    One real `Tuner.restore(…).fit()` in which every trial that there is stays as it is. A searcher that
    learns (Optuna, HyperOpt) is first told the results of the trials that were restored without it. An
    experiment whose driver died before its first snapshot is started in its place, if a param_space is
    given. With nothing left to draw the task is skipped. Killing it saves a snapshot; a retry goes on
    from there, so give it `retries` of 1 or more. A run that breaks off fails the task, and what it has
    drawn is committed after the last try. Trials that fail are committed with what they have done, and do
    not fail the task. Samples whose searcher is lost, and that no `search_alg` draws, fail it before
    anything is started.

    Returns what `CommitRestoreOperator` returns for one experiment.

    Args:
        experiment: Address of the experiment, or one element of `CommitRestoreOperator`'s output.
            (templated)
        trainable: `package.module:attribute`, or a name registered with Tune. (templated)
        param_space: `package.module:attribute` of the param_space. Needed only for an experiment that
            never started. (templated)
        search_alg: `package.module:attribute` of a searcher, a function without arguments that makes one,
            a Tuner or a TuneConfig. Needed, and used, only where `tuner.pkl` is lost and samples are
            left that Ray's default searcher cannot draw. (templated)
        imports: Modules the runner imports first.
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds.
        ignore_tuner: As in `BuildRestorePlanOperator`. (templated)
        launcher: Where it runs: `local`, or `ray` as in `RestoreTrialOperator`. (templated)
        python: Interpreter that has Ray and the trainable; the worker's own by default. (templated)
        runner_user: As in `RestoreTrialOperator`. (templated)
        ray_address: Ray cluster to run on; without, a private Ray on all CPUs of the worker. (templated)
        env: Environment variables of the runner. No secrets.
        storage_conn_id: Airflow connection to open the experiment with; by default the one in its
            address. (templated)
        kwargs: With `launcher="ray"`: the arguments of `RayJobOperator`; and those of every operator.
    """

    map_index_label = EXPERIMENT_LABEL
    template_fields = ("experiment", "ignore_tuner", *AttemptOperator.template_fields)
    template_fields_renderers = {"experiment": "json"}  # noqa: RUF012  as Airflow declares it

    def __init__(
        self,
        *,
        experiment: Any,
        stale_after: timedelta | float | str = 0,
        ignore_tuner: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.stale_after = stale_after
        self.ignore_tuner = ignore_tuner

    @property
    def experiment_address(self) -> str:
        """The address of the experiment (AirflowSkipException if it has no samples left)."""
        return experiment_to_continue(self.experiment)

    @property
    def trial_id(self) -> str:
        """The whole-experiment run."""
        return layout.WHOLE_EXPERIMENT

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, run, commit."""
        with commit_after_last_try(context, self._open_store, self.log), as_airflow_errors():
            self.parse_runner_user()  # refused before anything is leased
            experiment = self.open_experiment()
            options = continued_search_options(
                self.stale_after, self.param_space, self.search_alg, self.ignore_tuner
            )
            plan, settled = start_continued_search(
                *(context, experiment.store, options),
                check=lambda prepared: self._check(experiment, prepared),
            )
            if plan is None:
                return report_commit(experiment.address, settled, log=self.log)
            task = AttemptTask(experiment, plan, self.trial_id)
            return self.conclude(task, self.run_attempt(context, task))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue after the trigger has fired."""
        with commit_after_last_try(context, self._open_store, self.log):
            return super().execute_complete(context, event)

    def conclude(self, task: AttemptTask, outcome: RunnerOutcome) -> dict[str, Any]:
        """Commit what the run has drawn; a run that broke off fails the task."""
        raise_unless_ended(task.plan, outcome)
        summary = commit_restore(task.store, task.plan.restore_id)
        return report_commit(task.experiment.address, summary, log=self.log)

    def _open_store(self) -> ObjectStore:
        return self.open_experiment().store

    def _check(self, experiment: OpenExperiment, prepared: PreparedRestore) -> None:
        """Refuse a trainable that does not fit; that of a Ray job is checked by its runner."""
        if self.launcher == LauncherName.RAY:
            return
        is_lost = prepared.experiment.searcher_lost
        with self.local_launcher(experiment) as launcher:
            launcher.check(
                experiment=prepared.plan.experiment,
                trainable=str(self.trainable),
                trainable_name=prepared.plan.trainable_name,
                param_space=parse_text(self.param_space),
                search_alg=parse_text(self.search_alg) if is_lost else None,
                imports=self.imports,
                ignore_tuner=prepared.plan.ignore_tuner,
            )
