"""Runs a sweep's own script in a pod, as one task, and restores the sweep if the task is tried again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import check_new_place, parse_entrypoint
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.operators import run_tune_sweep_steps as steps
from airflow_tune_restore.operators.attempt_task import AttemptTask
from airflow_tune_restore.operators.continue_search_steps import commit_after_last_try
from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator
from airflow_tune_restore.operators.map_index_label import EXPERIMENT_LABEL
from airflow_tune_restore.operators.next_step import KEPT_IN_EXPERIMENT
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.plan import read_plan


class RunTuneSweepKubernetesOperator(RunnerPodOperator):
    """Does the same as `RunTuneSweepOperator`, in a pod with a Ray of its own.

    `RunTuneSweepOperator(launcher="kubernetes", …)` makes one. The pod of the script has
    `concurrent_trials` CPUs, whose number is in TUNE_RESTORE_CPUS; `container_resources` have priority.

    Args:
        entrypoint, experiment, resume_unfinished, resume_errored, stale_after, ignore_tuner, trust_name:
            As in `RunTuneSweepOperator`. (templated)
        **kwargs: Arguments of `RunnerPodOperator` and `KubernetesPodOperator`.
    """

    map_index_label = EXPERIMENT_LABEL
    kept_words = KEPT_IN_EXPERIMENT
    template_fields = (*RunnerPodOperator.template_fields, *steps.SWEEP_FIELDS)

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
        self.check_literals(vars(self))

    @property
    def experiment_address(self) -> str:
        """The address of the experiment."""
        return self.experiment

    @property
    def trial_id(self) -> str:
        """The script, or the whole-experiment run."""
        return layout.WHOLE_EXPERIMENT

    @contextmanager
    def plain_errors(self, context: Context) -> Iterator[None]:
        """Raise errors as Airflow's; commit a restore that broke off, release a dead script's lease."""

        def open_store() -> Any:
            return self.open_experiment().store

        committed = commit_after_last_try(context, open_store, self.log)
        with committed, super().plain_errors(context), steps.ending_sweep(context, open_store):
            yield

    def run_task(self, context: Context, event: dict[str, Any] | None) -> dict[str, Any]:
        """Run the script, attach to it, or restore what it left; with an event, continue."""
        parse_entrypoint("entrypoint", self.entrypoint)
        check_new_place("experiment", self.experiment)
        experiment = self.open_experiment()
        running = steps.find_running(context, experiment.store) if event is not None else None
        if running is not None:
            plan = read_plan(experiment.store, running)
            task = AttemptTask(experiment, plan, self.trial_id, is_alone=True)
        else:
            event = None
            run = steps.SweepRun(
                context=context,
                experiment=experiment,
                options=steps.sweep_options(self, self.parse_recipes()),
                is_alive=lambda task: self.attempt_pods(task).find_attempt().alive is not None,
                check_trainable=lambda _prepared: None,  # its runner does: the image has the code
                log=self.log,
            )
            next_task = run.next_task()
            if next_task is None:
                return self.push_summary(context, run.report_finished())
            task = next_task
        if not task.plan.is_sweep:
            self.use_recipe(task.store, task.plan.trainable_name)
        outcome = self.run_attempt(context, task, event)
        return self.push_summary(context, steps.conclude(task, outcome, self.log))

    def runner_settings(self) -> RunnerSettings:
        """Return the settings of the runner, with the script that it runs first."""
        return replace(
            super().runner_settings(),
            entrypoint=self.entrypoint,
            checks=steps.has_one_trainable(self.trainable),
        )
