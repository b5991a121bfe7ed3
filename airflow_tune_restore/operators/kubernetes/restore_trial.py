"""Runs one trial of a restore in a pod of its own, as one (mapped) task."""

from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.operators.attempt_task import AttemptTask
from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator
from airflow_tune_restore.operators.kubernetes.shared_pod import SharedPod
from airflow_tune_restore.operators.map_index_label import TRIAL_LABEL
from airflow_tune_restore.operators.planned_trial import PlannedTrialOperator
from airflow_tune_restore.operators.trial_outcome import judge
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.restore.plan import read_part


class RestoreTrialKubernetesOperator(PlannedTrialOperator, RunnerPodOperator):
    """Resumes or restarts one trial, as the plan says, in a pod with a Ray of its own.

    A `KubernetesPodOperator`: image, namespace, service account, templates, node selection and all else
    are given to it as usual. The trial's resources become the pod's requests and limits, on top of what
    Ray itself needs; a trial that ran out of memory requests twice as much. Storage credentials reach the
    pod through its service account, `env_from` or `secrets`, never through this task.

    A retry, of a task or of a worker that died, attaches to the pod that is still alive. Else it claims
    the next attempt, which continues from the newest snapshot. Killing the task deletes the pod, which
    saves a snapshot first. If Kubernetes took the pod away (evicted, preempted, out of memory), the task
    fails with that reason, and the ledger has it.

    Where trials are coupled (strategy `whole_experiment`), all tasks of an experiment share one pod. The
    first task creates it. Each task follows its own trial through storage, in a worker even if
    `deferrable`; killing a task stops its trial alone.

    Args:
        trial: One item of `BuildRestorePlanOperator`'s output. (templated)
        retry_policy: By default `TrialRetryPolicy`. None for Airflow's plain retries.
        **kwargs: Arguments of `RunnerPodOperator` and `KubernetesPodOperator`.
    """

    map_index_label = TRIAL_LABEL
    template_fields = (*RunnerPodOperator.template_fields, "trial")
    template_fields_renderers = {**RunnerPodOperator.template_fields_renderers, "trial": "json"}  # noqa: RUF012  as Airflow declares it

    def __init__(self, *, trial: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trial = trial
        self._shared: SharedPod | None = None

    @property
    def experiment_address(self) -> str:
        """The address of the trial's experiment."""
        return TrialXCom.parse(self.trial).experiment

    @property
    def trial_id(self) -> str:
        """Id of the trial in the plan."""
        return TrialXCom.parse(self.trial).trial_id

    def run_task(self, context: Context, event: dict[str, Any] | None) -> dict[str, Any]:
        """Run an attempt of the trial, or take the outcome of an earlier try, and judge the outcome."""
        task = self.open_task()
        if task.plan.is_whole_experiment:
            self._shared = SharedPod(self, task)
            outcome = self._shared.follow(context)
        else:
            outcome = self.run_attempt(context, task, event)
        item = TrialXCom.parse(self.trial)
        because = self.end.message if self.end is not None else ""
        summary = judge(task.store, task.plan, item, outcome, log=self.log, because=because)
        return self.push_summary(context, summary)

    def on_kill(self) -> None:
        """Delete the pod: it saves a snapshot first. In a shared pod, stop this trial alone."""
        if self._shared is not None:
            self._shared.stop()
        else:
            super().on_kill()

    def open_task(self) -> AttemptTask:
        """Open the experiment and read the trial's part of the plan."""
        experiment = self.open_experiment()
        item = TrialXCom.parse(self.trial)
        plan = read_part(experiment.store, item.restore_id, item.trial_id)
        self.use_recipe(experiment.store, plan.trainable_name)
        return AttemptTask(experiment, plan, self.trial_id)
