"""Draws the samples of an experiment that were never drawn, in one pod, as one task."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.launch.kubernetes.attempt_pod import find_request
from airflow_tune_restore.operators.continued_search import (
    commit_after_last_try,
    continued_search_options,
    experiment_to_continue,
    raise_unless_ended,
    report_commit,
    start_continued_search,
)
from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator
from airflow_tune_restore.operators.kubernetes.followed_pod import plain_answers
from airflow_tune_restore.operators.kubernetes.restore_trial import CONCURRENT_TRIALS
from airflow_tune_restore.operators.map_index_label import EXPERIMENT_LABEL
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result, RunnerRequest
from airflow_tune_restore.restore.claim import claim_next_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import PrepareOptions
from airflow_tune_restore.storage.base import ObjectStore


class ContinueSearchKubernetesOperator(RunnerPodOperator):
    """Does what `ContinueSearchOperator` does, in a pod with a Ray of its own.

    What one sample will ask for is not known before it is drawn. The pod begins with `concurrent_trials`
    CPUs; if the trainable asks for more with the configs there are, another one of that size follows.
    `container_resources` win.

    Args:
        experiment: Address of the experiment, or one element of `CommitRestoreOperator`'s output.
            (templated)
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds.
        ignore_tuner: As in `BuildRestorePlanOperator`. (templated)
        concurrent_trials: For how many trials at the same time the pod is sized.
        **kwargs: Arguments of `RunnerPodOperator` and `KubernetesPodOperator`.
    """

    map_index_label = EXPERIMENT_LABEL
    template_fields = (
        *RunnerPodOperator.template_fields,
        "experiment",
        "trainable",
        "param_space",
        "ignore_tuner",
        "search_alg",
        "python",
        "storage_conn_id",
    )
    template_fields_renderers = {  # noqa: RUF012  as Airflow declares it
        **RunnerPodOperator.template_fields_renderers,
        "experiment": "json",
    }
    ui_color = "#e2f2e4"

    def __init__(
        self,
        *,
        experiment: Any,
        stale_after: timedelta | float | str = 0,
        ignore_tuner: bool | str = False,
        concurrent_trials: int = CONCURRENT_TRIALS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.stale_after = stale_after
        self.ignore_tuner = ignore_tuner
        self.concurrent_trials = concurrent_trials

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, run in a pod, commit."""
        with (
            commit_after_last_try(context, self._open_store, self.log),
            as_airflow_errors(),
            plain_answers(),
        ):
            self.check_arguments()
            address, store = self._open()
            options = self._options()
            plan, settled = start_continued_search(context, store, options)
            if plan is None:
                return self.say(context, report_commit(address, settled, log=self.log))
            done = AttemptRecords(store, plan.restore_id, layout.WHOLE_EXPERIMENT).outcome()
            if done is not None and done.result == Result.FINISHED:
                self.log.info("An earlier try of this task has drawn them already.")
                self.attempt_pods.delete_ended(store, plan, layout.WHOLE_EXPERIMENT)
            else:
                request = self.find_or_claim(
                    store,
                    plan,
                    layout.WHOLE_EXPERIMENT,
                    lambda attempt, unstarted: self._claim(store, plan, attempt, unstarted),
                )
                self.follow_attempt(context, request, plan.metric)
                self._conclude(context, store, plan, request)
            return self._commit(context, address, store, plan)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Come back from the triggerer: commit, or wait on."""
        self._pod_name = event["name"]  # a kill from here on deletes it
        with (
            commit_after_last_try(context, self._open_store, self.log),
            as_airflow_errors(),
            plain_answers(),
        ):
            address, store = self._open()
            options = self._options()
            plan, settled = start_continued_search(context, store, options)
            if plan is None:  # committed before, by a try that died right after
                return self.say(context, report_commit(address, settled, log=self.log))
            request = find_request(store, plan, layout.WHOLE_EXPERIMENT, event["name"])
            self.resume_attempt(context, event, request, plan.metric)
            self._conclude(context, store, plan, request)
            return self._commit(context, address, store, plan)

    def _open(self) -> tuple[Address, ObjectStore]:
        hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
        address = hook.address(experiment_to_continue(self.experiment))
        return address, hook.open(address)

    def _open_store(self) -> ObjectStore:
        return self._open()[1]

    def _options(self) -> PrepareOptions:
        return continued_search_options(
            self.stale_after, self.param_space, self.search_alg, self.ignore_tuner
        )

    def _claim(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        attempt: int | None = None,
        unstarted: RunnerRequest | None = None,
    ) -> RunnerRequest:
        arguments = self.runner_arguments(concurrent=self.concurrent_trials)
        return claim_next_attempt(
            *(store, plan, layout.WHOLE_EXPERIMENT, arguments),
            log=self.log.info,
            attempt=attempt,
            unstarted=unstarted,
        )

    def _conclude(
        self, context: Context, store: ObjectStore, plan: RestorePlan, request: RunnerRequest
    ) -> None:
        outcome = self.conclude(
            *(context, store, plan, request),
            lambda attempt, unstarted: self._claim(store, plan, attempt, unstarted),
        )
        raise_unless_ended(plan, outcome)

    def _commit(
        self, context: Context, address: Address, store: ObjectStore, plan: RestorePlan
    ) -> dict[str, Any]:
        summary = commit_restore(store, plan.restore_id)
        return self.say(context, report_commit(address, summary, log=self.log))
