"""Runs one trial of a restore in a pod of its own, as one (mapped) task."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from airflow.sdk import Context, RetryPolicy
from airflow.sdk.exceptions import AirflowException

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import KeyExistsError
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.launch.kubernetes.attempt_pod import find_request
from airflow_tune_restore.launch.kubernetes.pod_spec import name_of
from airflow_tune_restore.launch.kubernetes.pod_start import has_no_image, is_pending
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator
from airflow_tune_restore.operators.kubernetes.followed_pod import plain_answers
from airflow_tune_restore.operators.map_index_label import TRIAL_LABEL
from airflow_tune_restore.operators.retry_policy import TRIAL_RETRY_POLICY
from airflow_tune_restore.operators.trial_outcome import judge
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.claim import claim_next_attempt
from airflow_tune_restore.restore.follow import Follower, ask_to_stop
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.storage.base import ObjectStore

CONCURRENT_TRIALS = 4
MOST_IN_VAIN = 3
"""How many pods of coupled trials may run out of memory in a row, while one try of a task looks on."""


class RestoreTrialKubernetesOperator(RunnerPodOperator):
    """Resumes or restarts one trial, as the plan says, in a pod with a Ray of its own.

    A `KubernetesPodOperator`: image, namespace, service account, templates, node selection and all else
    are given to it as usual. What the trial asks for becomes the pod's requests and limits, on top of
    what Ray itself needs; a trial that ran out of memory asks for twice as much. Storage credentials
    reach the pod through its service account, `env_from` or `secrets`, never through this task.

    A retry, of a task or of a worker that died, attaches to the pod that is still alive, else claims the
    next attempt, which goes on from the newest snapshot. Killing the task deletes the pod, which saves a
    snapshot first. Pods that Kubernetes took away (evicted, preempted, out of memory) fail the task with
    that reason, and the ledger has it.

    Where trials are coupled (strategy `whole_experiment`), all tasks of an experiment share one pod: the
    first to come creates it, each follows its own trial through storage, in a worker also if
    `deferrable`, and killing a task stops its trial alone.

    Args:
        trial: One item of `BuildRestorePlanOperator`'s output. (templated)
        concurrent_trials: For how many trials at the same time the one pod of coupled trials is sized.
        retry_policy: By default `TrialRetryPolicy`. None for Airflow's plain retries.
        **kwargs: Arguments of `RunnerPodOperator` and `KubernetesPodOperator`.
    """

    map_index_label = TRIAL_LABEL
    template_fields = (
        *RunnerPodOperator.template_fields,
        "trial",
        "trainable",
        "param_space",
        "search_alg",
        "python",
        "storage_conn_id",
    )
    template_fields_renderers = {**RunnerPodOperator.template_fields_renderers, "trial": "json"}  # noqa: RUF012  as Airflow declares it
    ui_color = "#e2f2e4"

    def __init__(
        self,
        *,
        trial: Any,
        concurrent_trials: int = CONCURRENT_TRIALS,
        retry_policy: RetryPolicy | None = TRIAL_RETRY_POLICY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.trial = trial
        self.concurrent_trials = concurrent_trials
        self._followed: tuple[ObjectStore, str, str] | None = None
        self._pending_since: dict[int, float] = {}

    def execute(self, context: Context) -> dict[str, Any]:
        """Attach to the trial's pod or claim an attempt and create one, and say how it ended."""
        with as_airflow_errors(), plain_answers():
            self.check_arguments()
            store, plan, item = self._open()
            if plan.is_whole_experiment:
                outcome = self._follow(context, store, plan, item)
                return self.say(context, judge(store, plan, item, outcome, log=self.log))
            done = AttemptRecords(store, plan.restore_id, item.trial_id).outcome()
            if done is not None and done.result == Result.FINISHED:
                self.log.info("An earlier try of this task has finished the trial already.")
                self.attempt_pods.delete_ended(store, plan, item.trial_id)
                return self.say(context, judge(store, plan, item, done, log=self.log))
            lease.keep_alive(store, plan.restore_id)
            request = self.find_or_claim(
                store, plan, item.trial_id, self._claim_next(store, plan, item.trial_id)
            )
            self.follow_attempt(context, request, plan.metric)
            return self._conclude(context, store, plan, item, request)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Come back from the triggerer: say how the pod ended, or wait on."""
        self._pod_name = event["name"]  # a kill from here on deletes it
        with as_airflow_errors(), plain_answers():
            store, plan, item = self._open()
            request = find_request(store, plan, item.trial_id, event["name"])
            self.resume_attempt(context, event, request, plan.metric)
            return self._conclude(context, store, plan, item, request)

    def on_kill(self) -> None:
        """Delete the pod: it saves a snapshot first. Of one pod for all, ask to stop this trial alone."""
        followed, self._followed = self._followed, None
        if followed is not None:
            self.log.info("Asking the run to stop this trial; the others go on.")
            ask_to_stop(*followed)
            return
        super().on_kill()

    def _open(self) -> tuple[ObjectStore, RestorePlan, TrialXCom]:
        item = TrialXCom.parse(self.trial)
        hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
        store = hook.open(hook.address(item.experiment))
        return store, read_plan(store, item.restore_id), item

    def _claim(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        trial_id: str,
        attempt: int | None = None,
        unstarted: RunnerRequest | None = None,
    ) -> RunnerRequest:
        side_by_side = max(
            1, min(self.concurrent_trials, len(plan.to_run) or self.concurrent_trials)
        )
        arguments = self.runner_arguments(concurrent=side_by_side)
        request = claim_next_attempt(
            *(store, plan, trial_id, arguments),
            log=self.log.info,
            attempt=attempt,
            unstarted=unstarted,
        )
        self.log.info(
            "%s trial %s of %s: attempt %d of restore %s in pod %s",
            *(request.action, trial_id, plan.experiment, request.attempt, plan.restore_id),
            name_of(request),
        )
        return request

    def _claim_next(
        self, store: ObjectStore, plan: RestorePlan, trial_id: str
    ) -> Callable[[int, RunnerRequest | None], RunnerRequest]:
        return lambda attempt, unstarted: self._claim(store, plan, trial_id, attempt, unstarted)

    def _conclude(
        self,
        context: Context,
        store: ObjectStore,
        plan: RestorePlan,
        item: TrialXCom,
        request: RunnerRequest,
    ) -> dict[str, Any]:
        outcome = self.conclude(
            context, store, plan, request, self._claim_next(store, plan, item.trial_id)
        )
        because = self.end.message if self.end is not None else ""
        return self.say(context, judge(store, plan, item, outcome, log=self.log, because=because))

    def _follow(
        self, context: Context, store: ObjectStore, plan: RestorePlan, item: TrialXCom
    ) -> RunnerOutcome:
        """Attach to the one run of the experiment, or start its pod, until this trial ends."""
        lease.keep_alive(store, plan.restore_id)

        # what ended before may have been mended since
        before = AttemptRecords(store, plan.restore_id, layout.WHOLE_EXPERIMENT).numbers()

        def start(attempt: int) -> None:
            newest = self.attempt_pods.find_attempt(store, plan, layout.WHOLE_EXPERIMENT)
            if newest.alive is not None:
                self._refuse_pending(plan, newest.alive)
                key = layout.request_key(plan.restore_id, layout.WHOLE_EXPERIMENT, newest.number)
                raise KeyExistsError(
                    store.uri, key
                )  # it is only slow: it waits for a node, perhaps
            if newest.number not in before and newest.ended is not None and newest.end is not None:
                self.attempt_pods.refuse_unstarted(store, plan, newest.ended, newest.end)
            self._refuse_hopeless(store, plan, range(max(before, default=0) + 1, attempt))
            request = self._claim(store, plan, layout.WHOLE_EXPERIMENT, attempt)
            self.start_pod(context, request, plan.metric)

        follower = Follower(store, item.restore_id, item.trial_id, start)
        self._followed = (store, item.restore_id, item.trial_id)
        try:
            for progress in follower.progress():
                if progress is not None:
                    self.log.info("%s", describe_line(progress.to_line(), plan.metric))
            self._followed = None
        except Exception:
            self._followed = None  # the run goes on without us; a retry attaches again
            raise
        finally:
            self.on_kill()  # a timeout: this trial is given back
        assert follower.outcome is not None  # noqa: S101  progress() ends with one
        return follower.outcome

    def _refuse_pending(self, plan: RestorePlan, request: RunnerRequest) -> None:
        """Give up a pod that has waited too long to start, or that waits for an image there is not."""
        name, now = name_of(request), time.monotonic()
        pod = self.pods.read(name) or {}
        if not is_pending(pod):
            self._pending_since.pop(request.attempt, None)
            return
        waited = now - self._pending_since.setdefault(request.attempt, now)
        if waited <= self.startup_timeout_seconds and not has_no_image(pod):
            return
        why = self.pods.delete_unstarted(name)
        if why is not None:
            raise AirflowException(
                f"All trials of {plan.experiment}: pod {name} in namespace {self.pod_namespace} did not "
                f"start: {why or 'Kubernetes gives no reason'}. It was deleted; the next try makes "
                "another one."
            )

    def _refuse_hopeless(
        self, store: ObjectStore, plan: RestorePlan, attempts: Sequence[int]
    ) -> None:
        """Make no further pod where the last few ran out of memory: the next has no more of it."""
        ends = [
            AttemptRecords(store, plan.restore_id, layout.WHOLE_EXPERIMENT).exit(attempt)
            for attempt in attempts[-MOST_IN_VAIN:]
        ]
        failures = [classify_exit(end.exit_code, end.message) for end in ends if end is not None]
        causes = [failure.cause for failure in failures if failure is not None]
        if causes == [Cause.OUT_OF_MEMORY] * MOST_IN_VAIN:
            raise AirflowException(
                f"All trials of {plan.experiment}: {MOST_IN_VAIN} pods in a row ran out of memory, so no "
                "other is made. Give them more (container_resources), or let fewer trials run at the "
                "same time (concurrent_trials)."
            )
