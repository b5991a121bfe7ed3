"""Continues the search of an experiment whose samples were not all drawn, in one pod, as one task."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.hooks.window import Window
from airflow_tune_restore.operators import continue_search_steps
from airflow_tune_restore.operators.attempt_task import AttemptTask
from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator
from airflow_tune_restore.operators.map_index_label import EXPERIMENT_LABEL
from airflow_tune_restore.operators.next_step import COMMITTED_NOW
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.commit import commit_restore


class ContinueSearchKubernetesOperator(RunnerPodOperator):
    """Does the same as `ContinueSearchOperator`, in a pod with a Ray of its own.

    A sample's resources are not known before it is drawn. The first pod has `concurrent_trials` CPUs; if
    the trainable requests more for the recorded configs, a pod of that size follows.
    `container_resources` have priority.

    Args:
        experiment: Address of the experiment, or one element of `CommitRestoreOperator`'s output.
            (templated)
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds.
        ignore_tuner, trust_name, until, max_duration: As in `BuildRestorePlanOperator`. (templated)
        **kwargs: Arguments of `RunnerPodOperator` and `KubernetesPodOperator`.
    """

    map_index_label = EXPERIMENT_LABEL
    template_fields = (
        *RunnerPodOperator.template_fields,
        "experiment",
        "ignore_tuner",
        "trust_name",
        "until",
        "max_duration",
    )
    template_fields_renderers = {  # noqa: RUF012  as Airflow declares it
        **RunnerPodOperator.template_fields_renderers,
        "experiment": "json",
    }

    kept_words = COMMITTED_NOW

    def __init__(
        self,
        *,
        experiment: Any,
        stale_after: timedelta | float | str = 0,
        ignore_tuner: bool | str = False,
        trust_name: bool | str = False,
        until: str | None = None,
        max_duration: timedelta | float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.stale_after = stale_after
        self.ignore_tuner = ignore_tuner
        self.trust_name = trust_name
        self.until = until
        self.max_duration = max_duration
        self.check_literals(vars(self))

    @property
    def experiment_address(self) -> str:
        """The address of the experiment (AirflowSkipException if it has no samples left)."""
        return continue_search_steps.experiment_to_continue(self.experiment)

    @property
    def trial_id(self) -> str:
        """The whole-experiment run."""
        return layout.WHOLE_EXPERIMENT

    @contextmanager
    def plain_errors(self, context: Context) -> Iterator[None]:
        """Raise errors as Airflow's; after the last try, commit the samples of a run that broke off."""
        committed = continue_search_steps.commit_after_last_try(
            context, lambda: self.open_experiment().store, self.log
        )
        with committed, super().plain_errors(context):
            yield

    def run_task(self, context: Context, event: dict[str, Any] | None) -> dict[str, Any]:
        """Plan, run in a pod, commit."""
        experiment = self.open_experiment()
        options = continue_search_steps.continued_search_options(
            *(self.stale_after, self.param_space, self.search_alg),
            *(self.ignore_tuner, self.trust_name, self.parse_recipes()),
            Window.of(context, self.until, self.max_duration),
        )
        plan, summary = continue_search_steps.start_continued_search(
            context, experiment.store, options, log=self.log
        )
        if plan is not None:  # else an earlier try has committed it, and died
            self.use_recipe(experiment.store, plan.trainable_name)
            task = AttemptTask(experiment, plan, self.trial_id)
            continue_search_steps.raise_unless_ended(plan, self.run_attempt(context, task, event))
            summary = commit_restore(task.store, plan.restore_id)
        report = continue_search_steps.report_commit(experiment.address, summary, log=self.log)
        return self.push_summary(context, report)
