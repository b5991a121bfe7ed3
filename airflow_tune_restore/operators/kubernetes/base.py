"""A `KubernetesPodOperator` whose pod is a runner: the skeleton of both operators that run one."""

import copy
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Never

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import KeyExistsError
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.launch.kubernetes import api, pod_resources, pod_spec
from airflow_tune_restore.launch.kubernetes.api import POLL_SECONDS
from airflow_tune_restore.launch.kubernetes.attempt_pod import AttemptPods
from airflow_tune_restore.launch.kubernetes.pod_spec import name_of, trial_label
from airflow_tune_restore.launch.runner_log import RunnerLog
from airflow_tune_restore.operators.attempt_task import AttemptTask, OpenExperiment
from airflow_tune_restore.operators.kubernetes import pod_arguments, pod_template
from airflow_tune_restore.operators.kubernetes.followed_pod import (
    FollowedPodOperator,
    PodGivenUpError,
)
from airflow_tune_restore.operators.map_index_label import MapIndexLabelOperator
from airflow_tune_restore.operators.next_step import KEPT_BY_COMMIT, describe_next
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.protocol.resources import OBJECT_STORE_BYTES
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt, plan_of_unit
from airflow_tune_restore.restore.paused import find_final_outcome, is_window_over, paused_error
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.triggers.runner_pod import RunnerPodTrigger
from airflow_tune_restore.version_compat import AirflowException, fails_for_good

CONCURRENT_TRIALS = 4

LOG_FETCH_SECONDS = 10
"""With `deferrable`: time between two readings of the log, by default."""


class RunnerPodOperator(MapIndexLabelOperator, FollowedPodOperator):
    """Runs claimed attempts in pods of deterministic names.

    Args:
        trainable: `package.module:attribute`, or a name registered with Tune.
        param_space: `package.module:attribute` of a re-specified param_space.
        search_alg: `package.module:attribute` of a searcher for samples whose own is lost.
        imports: Modules the runner imports first.
        python: Interpreter in the image that has Ray, this package and the trainable.
        env: More environment variables of the pod, taken literally as by every launcher: in `env_vars`,
            Kubernetes expands `$(NAME)`. No secrets: they stand in the pod's spec.
        storage_conn_id: Airflow connection with which this task reads the experiment. It does not reach
            the pod.
        concurrent_trials: For how many trials at the same time the pod of a whole experiment is sized.
        object_store_memory: Bytes of Ray's object store; `/dev/shm` is sized for it.
        gpu_resource: The cluster's name of a GPU.
        custom_resources: The cluster's names of the custom resources of trials, by Ray's name.
        ttl: Longest life of the pod, timedelta or seconds (rounded up, at least one). Kubernetes then
            ends it, even if Airflow is gone.
        deferrable: Wait in the triggerer.
        termination_grace_period: Seconds the pod has to save a snapshot when it is to end.
        startup_timeout_seconds: Seconds a pod may take to be scheduled, and then to start.
        logging_interval: With `deferrable`: how often the log is fetched.
        termination_message_policy: Source of the container's last words.
        log_pod_spec_on_failure: Whether the provider may put the whole spec into its error.
        do_xcom_push: Whether the task returns its summary, which it reads from storage. The pod never has
            the sidecar with which the provider reads a file from a pod.
        **kwargs: Arguments of `KubernetesPodOperator`.
    """

    template_fields = (
        *FollowedPodOperator.template_fields,
        *MapIndexLabelOperator.template_fields,
        "storage_conn_id",
    )
    ui_color = "#e2f2e4"
    kept_words = KEPT_BY_COMMIT

    def __init__(  # noqa: PLR0913  what to run, and arguments of the provider with other defaults
        self,
        *,
        storage_conn_id: str | None = None,
        concurrent_trials: int = CONCURRENT_TRIALS,
        object_store_memory: int = OBJECT_STORE_BYTES,
        gpu_resource: str = pod_resources.GPU_RESOURCE,
        custom_resources: Mapping[str, str] | None = None,
        ttl: timedelta | float | None = None,
        termination_grace_period: int | None = pod_spec.GRACE_SECONDS,
        startup_timeout_seconds: int = pod_spec.START_SECONDS,
        logging_interval: int | None = LOG_FETCH_SECONDS,
        termination_message_policy: str = "FallbackToLogsOnError",
        log_pod_spec_on_failure: bool = False,
        do_xcom_push: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            termination_grace_period=termination_grace_period,
            startup_timeout_seconds=startup_timeout_seconds,
            logging_interval=logging_interval,
            termination_message_policy=termination_message_policy,
            log_pod_spec_on_failure=log_pod_spec_on_failure,
            do_xcom_push=False,
            **kwargs,
        )
        self.storage_conn_id = storage_conn_id
        self.concurrent_trials = concurrent_trials
        self.object_store_memory = object_store_memory
        self.gpu_resource = gpu_resource
        self.custom_resources = custom_resources
        self.ttl = ttl
        self._returns_summary = do_xcom_push
        self.check_literals(vars(self))
        self._request: RunnerRequest | None = None
        self._metric: str | None = None

    @property
    @abstractmethod
    def experiment_address(self) -> str:
        """The address of the experiment, as given."""

    @property
    @abstractmethod
    def trial_id(self) -> str:
        """Id of the trial in the plan; `layout.WHOLE_EXPERIMENT` for the whole-experiment run itself."""

    @property
    def options(self) -> pod_resources.PodSpecOptions:
        """The options of all pods (InvalidInputError if no pod can have them)."""
        return pod_resources.PodSpecOptions(
            python=parse_text(self.python) or "python",
            object_store_bytes=pod_arguments.parse_object_store(self.object_store_memory),
            gpu_resource=self.gpu_resource,
            custom_resources=self.custom_resources or {},
        )

    @abstractmethod
    def run_task(self, context: Context, event: dict[str, Any] | None) -> dict[str, Any]:
        """Run the attempt and return its summary; with an event of the triggerer, continue."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Check the arguments, and run the attempt."""
        with self.plain_errors(context):
            self.check_arguments()
            return self.run_task(context, None)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue after the trigger has fired."""
        self._pod_name = event["name"]  # a kill from here on deletes it
        with self.plain_errors(context):
            return self.run_task(context, event)

    @contextmanager
    def plain_errors(self, context: Context) -> Iterator[None]:
        """Raise errors of this package and of the API server as Airflow's, in one sentence."""
        with as_airflow_errors(
            lambda error: describe_next(self, context, error, kept=self.kept_words),
            lambda error: fails_for_good(self, error, context),
        ):
            try:
                yield
            except api.api_errors() as error:
                what = api.describe_error(error).rstrip(".")
                raise AirflowException(
                    f"The Kubernetes API does not answer as it should: {what}. Pods continue; a retry "
                    "attaches to them."
                ) from error

    def attempt_pods(self, task: AttemptTask) -> AttemptPods:
        """Return the pods of the trial's attempts, also those of other tries and tasks."""
        return AttemptPods(
            pods=self.pods,
            store=task.store,
            plan=task.plan,
            trial_id=task.trial_id,
            deletes_ended=self.on_finish_action.value == "delete_pod",
        )

    def check_arguments(self) -> None:
        """Check the arguments of the pod: not in `__init__`, since a DAG file must parse."""
        _ = self.options
        pod_arguments.parse_ttl(self.ttl)
        pod_arguments.parse_grace_period(self.termination_grace_period)
        for name in ("startup_timeout_seconds", "schedule_timeout_seconds"):
            pod_arguments.parse_patience(name, getattr(self, name))
        pod_arguments.check_env(self.env)
        pod_template.check_template(self)

    def open_experiment(self) -> OpenExperiment:
        """Open the experiment."""
        hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
        address = hook.address(self.experiment_address)
        return OpenExperiment(hook, address, hook.open(address))

    def run_attempt(
        self, context: Context, task: AttemptTask, event: dict[str, Any] | None
    ) -> RunnerOutcome:
        """Return the final outcome of an earlier try, or follow an attempt and return its outcome.

        With an event of the triggerer, continue to follow the attempt after a deferral.

        Raises:
            TaskDeferred: If the triggerer waits for the pod.
            PodLostError: If the pod was lost.
            InvalidInputError: If its second, larger pod was too small again.
            RestorePausedError: If it did not start, and the window of the restore has ended.
        """
        try:
            return self._run_attempt(context, task, event)
        except PodGivenUpError as error:
            if not is_window_over(task.store, task.plan):
                raise
            self.log.info("%s", error)
            raise paused_error(task.plan, task.trial_id) from error

    def _run_attempt(
        self, context: Context, task: AttemptTask, event: dict[str, Any] | None
    ) -> RunnerOutcome:
        if event is not None:
            request = self.attempt_pods(task).find_request(event["name"])
            self._set_request(request, task.plan.metric)
            self.resume(context, event, event["name"])
            return self._get_outcome(context, task, request)
        done = find_final_outcome(task.store, task.plan, task.trial_id)
        if done is not None:
            self.log.info("An earlier try of this task has the outcome (attempt %d).", done.attempt)
            self.attempt_pods(task).delete_ended()
            return done
        task.renew_lease(self)
        return self._follow_next(context, task)

    def claim(
        self, task: AttemptTask, attempt: int | None = None, unstarted: RunnerRequest | None = None
    ) -> RunnerRequest:
        """Claim an attempt, or take one that was claimed and never started (`claim_next_attempt`)."""
        plan = plan_of_unit(task.store, task.plan, task.trial_id)
        request = claim_next_attempt(
            *(task.store, plan, task.trial_id, self.pod_settings(plan)),
            log=self.log.info,
            attempt=attempt,
            unstarted=unstarted,
        )
        self.log.info(
            "%s of %s: %s in attempt %d of restore %s, pod %s",
            *(trial_label(request), request.experiment, request.action, request.attempt),
            *(request.restore_id, name_of(request)),
        )
        return request

    def pod_settings(self, plan: RestorePlan) -> RunnerSettings:
        """Return the settings of the runner; a whole experiment makes room for some of its trials."""
        concurrent = self.concurrent_trials
        if plan.to_run and not plan.only_continues_search:
            concurrent = min(concurrent, len(plan.to_run))
        limits = pod_template.given_resources(self)["limits"]
        return replace(
            self.runner_settings(),
            can_grow=True,
            concurrent=max(1, concurrent),
            memory=pod_resources.trial_memory(limits.get("memory"), self.options),
            sized=True,
        )

    def start_pod(self, context: Context, request: RunnerRequest, metric: str | None) -> None:
        """Create the attempt's pod, and show its log as long as this process lives."""
        self._set_request(request, metric)
        pod = self.build_pod_request_obj(context)
        self.create(pod)

        def show() -> None:
            try:
                while self.pods.is_pending(name_of(request)):
                    time.sleep(POLL_SECONDS)
                self.pod_manager.fetch_container_logs(
                    pod, self.base_container_name, follow=True, log_formatter=self.log_formatter
                )
            except Exception as error:  # noqa: BLE001  the log is shown as long as it can be read
                if not api.is_gone(error, name_of(request)):
                    self.log.warning("The log ends here: %s", printable(api.describe_error(error)))

        threading.Thread(target=show, name="pod-log", daemon=True).start()

    def push_summary(self, context: Context, summary: dict[str, Any]) -> dict[str, Any]:
        """Push the summary: for the provider, `do_xcom_push` is a sidecar."""
        if self._returns_summary:
            context["ti"].xcom_push(key="return_value", value=summary)
        return summary

    def _follow_next(self, context: Context, task: AttemptTask) -> RunnerOutcome:
        """Attach to the pod that is alive, or create the next one, and return its outcome; or defer."""
        request, is_there = self._attach_or_claim(task)
        self._set_request(request, task.plan.metric)
        self.follow(context, name_of(request), is_there=is_there)
        return self._get_outcome(context, task, request)

    def _attach_or_claim(self, task: AttemptTask) -> tuple[RunnerRequest, bool]:
        """Return the attempt to follow, and whether its pod exists.

        Of several tries at the same instant one claims, and the others attach to its pod.
        """
        while True:
            newest = self.attempt_pods(task).find_attempt()
            if newest.alive is not None:
                return newest.alive, True
            outcome = task.records.outcome()
            if outcome is not None and outcome.result == Result.FINISHED:  # in this moment
                return task.records.request(outcome.attempt), True
            number = newest.number + 1
            try:
                return self.claim(task, number, newest.unstarted), False
            except KeyExistsError:
                self.log.info("Another try of this task has just claimed attempt %d.", number)
                time.sleep(POLL_SECONDS)  # a network disk may list it late

    def _get_outcome(
        self, context: Context, task: AttemptTask, request: RunnerRequest
    ) -> RunnerOutcome:
        """Return the outcome of the followed attempt; if its pod was too small, that of the next one."""
        outcome = self.attempt_pods(task).get_outcome(request, self.end)
        return self._follow_next(context, task) if outcome.resources else outcome

    def _set_request(self, request: RunnerRequest, metric: str | None) -> None:
        self._request, self._metric = request, metric
        self.give_up_at = window.last_moment(request.pause_at)
        self.pod_purpose = f"{trial_label(request)} of {request.experiment}"
        is_whole = request.trial_id == layout.WHOLE_EXPERIMENT
        if self.log_formatter is None:
            # `PatientPodManager` gives it the lines
            self.log_formatter = RunnerLog(self.log, metric, of_many=is_whole)  # type: ignore[assignment]

    # called by the provider

    def build_pod_request_obj(
        self, context: Context | None = None, *, dry_run: bool = False
    ) -> Any:
        """Build the pod: the provider's, for the runner of the followed attempt."""
        operator = copy.copy(self)
        if self._request is not None:
            pod_template.apply_request_to_spec(operator, self._request, self.options)
        pod = super(RunnerPodOperator, operator).build_pod_request_obj(context, dry_run=dry_run)
        pod_spec.keep_one_shm(pod, pod.spec.containers[0])
        return pod

    def defer(self, *, trigger: Any, **kwargs: Any) -> Never:
        """Defer to `RunnerPodTrigger` in the place of the provider's trigger."""
        _, arguments = trigger.serialize()
        is_whole = self._request is not None and self._request.trial_id == layout.WHOLE_EXPERIMENT
        trigger = RunnerPodTrigger(
            metric=self._metric,
            of_many=is_whole,
            give_up_at=self.give_up_at.isoformat() if self.give_up_at is not None else "",
            **arguments,
        )
        super().defer(trigger=trigger, **kwargs)
