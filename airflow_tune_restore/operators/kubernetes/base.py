"""A `KubernetesPodOperator` whose pod is a runner: what both operators that run one share."""

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, Never

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import KeyExistsError, PodLostError
from airflow_tune_restore.launch.kubernetes import pod_resources
from airflow_tune_restore.launch.kubernetes.api import (
    POLL_SECONDS,
    describe_error,
    is_gone,
)
from airflow_tune_restore.launch.kubernetes.attempt_pod import AttemptPods
from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
from airflow_tune_restore.launch.kubernetes.pod_spec import (
    GRACE_SECONDS,
    START_SECONDS,
    keep_one_shm,
    name_of,
    trial_label,
)
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.operators.kubernetes.followed_pod import FollowedPodOperator
from airflow_tune_restore.operators.kubernetes.pod_arguments import (
    check_env,
    parse_grace_period,
    parse_object_store,
    parse_patience,
    parse_ttl,
)
from airflow_tune_restore.operators.kubernetes.pod_template import (
    apply_request_to_spec,
    check_template,
    given_resources,
)
from airflow_tune_restore.operators.map_index_label import MapIndexLabelOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.triggers.runner_pod import RunnerPodTrigger

LOG_SECONDS = 10


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
        storage_conn_id: Airflow connection with which this task reads the experiment. The pod never
            sees it.
        object_store_memory: Bytes of Ray's object store; `/dev/shm` is sized for it.
        gpu_resource: What the cluster calls a GPU.
        custom_resources: What the cluster calls the custom resources of trials, by Ray's name.
        ttl: How long the pod may live at most, timedelta or seconds (rounded up to whole ones, at least
            one); Kubernetes ends it then, even if Airflow is gone.
        deferrable: Wait in the triggerer.
        termination_grace_period: Seconds the pod is given to save a snapshot when it is to end.
        startup_timeout_seconds: Seconds a pod may take to be scheduled, and then to start.
        logging_interval: With `deferrable`: how often the log is fetched.
        termination_message_policy: Where Kubernetes takes the container's last words from.
        log_pod_spec_on_failure: Whether the provider may put the whole spec into its error.
        **kwargs: Arguments of `KubernetesPodOperator`.
    """

    def __init__(  # noqa: PLR0913  what to run, and the provider's arguments with defaults of ours
        self,
        *,
        trainable: str,
        param_space: str | None = None,
        search_alg: str | None = None,
        imports: Sequence[str] = (),
        python: str | None = None,
        env: Mapping[str, str] | None = None,
        storage_conn_id: str | None = None,
        object_store_memory: int = pod_resources.OBJECT_STORE_BYTES,
        gpu_resource: str = pod_resources.GPU_RESOURCE,
        custom_resources: Mapping[str, str] | None = None,
        ttl: timedelta | float | None = None,
        termination_grace_period: int | None = GRACE_SECONDS,
        startup_timeout_seconds: int = START_SECONDS,
        logging_interval: int | None = LOG_SECONDS,
        termination_message_policy: str = "FallbackToLogsOnError",
        log_pod_spec_on_failure: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            termination_grace_period=termination_grace_period,
            startup_timeout_seconds=startup_timeout_seconds,
            logging_interval=logging_interval,
            termination_message_policy=termination_message_policy,
            log_pod_spec_on_failure=log_pod_spec_on_failure,
            **kwargs,
        )
        self.trainable = trainable
        self.param_space = param_space
        self.search_alg = search_alg
        self.imports = imports
        self.python = python
        self.env = env
        self.storage_conn_id = storage_conn_id
        self.object_store_memory = object_store_memory
        self.gpu_resource = gpu_resource
        self.custom_resources = custom_resources
        self.ttl = ttl
        self._request: RunnerRequest | None = None
        self._metric: str | None = None
        self._is_alive = False

    @property
    def shape(self) -> PodSpecOptions:
        """What of the pod does not depend on the trial (InvalidInputError if no pod has that)."""
        return PodSpecOptions(
            python=parse_text(self.python) or "python",
            object_store_bytes=parse_object_store(self.object_store_memory),
            gpu_resource=self.gpu_resource,
            custom_resources=self.custom_resources or {},
        )

    @cached_property
    def attempt_pods(self) -> AttemptPods:
        """The pods of attempts, whoever made them."""
        return AttemptPods(
            pods=self.pods,
            deletes_ended=self.on_finish_action.value == "delete_pod",
        )

    def check_arguments(self) -> None:
        """Refuse arguments that no pod can be made of: not in `__init__`, since a DAG file must parse.

        Raises:
            InvalidInputError: If there is one.
        """
        _ = self.shape
        parse_ttl(self.ttl)
        parse_grace_period(self.termination_grace_period)
        parse_patience("startup_timeout_seconds", self.startup_timeout_seconds)
        parse_patience("schedule_timeout_seconds", self.schedule_timeout_seconds)
        check_env(self.env)
        check_template(self)

    def runner_arguments(self, *, concurrent: int = 1) -> RunnerSettings:
        """Return what a runner is told that the plan does not say."""
        return RunnerSettings(
            trainable=str(self.trainable),
            param_space=parse_text(self.param_space),
            search_alg=parse_text(self.search_alg),
            imports=self.imports,
            can_grow=True,
            concurrent=concurrent,
            memory=self.read_memory_limit(),
            sized=True,
        )

    def find_or_claim(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        trial_id: str,
        claim_next: Callable[[int, RunnerRequest | None], RunnerRequest],
    ) -> RunnerRequest:
        """Return the attempt whose pod is alive, or claim the next one.

        Of several tries at the same instant one claims, and the others attach to its pod.

        Args:
            store: Rooted at the experiment.
            plan: The plan.
            trial_id: Trial id in the plan.
            claim_next: Claims the attempt of a number, or takes one that was claimed and never started.
        """
        while True:
            newest = self.attempt_pods.find_attempt(store, plan, trial_id)
            self._is_alive = newest.alive is not None
            if newest.alive is not None:
                return newest.alive
            outcome = AttemptRecords(store, plan.restore_id, trial_id).outcome()
            if outcome is not None and outcome.result == Result.FINISHED:
                self._is_alive = True  # it was, until a moment ago: there is nothing more to start
                return AttemptRecords(store, plan.restore_id, trial_id).request(outcome.attempt)
            try:
                return claim_next(newest.number + 1, newest.unstarted)
            except KeyExistsError:
                self.log.info(
                    "Another try of this task has just claimed attempt %d.", newest.number + 1
                )
                time.sleep(POLL_SECONDS)  # a disk of the network may list it late

    def follow_attempt(self, context: Context, request: RunnerRequest, metric: str | None) -> None:
        """Create the attempt's pod, or attach to it, and follow it to its end; or defer."""
        self._take(request, metric)
        self.follow(context, name_of(request), is_there=self._is_alive)

    def resume_attempt(
        self, context: Context, event: dict[str, Any], request: RunnerRequest, metric: str | None
    ) -> None:
        """Go on after a deferral."""
        self._take(request, metric)
        self.resume(context, event, name_of(request))

    def start_pod(self, context: Context, request: RunnerRequest, metric: str | None) -> None:
        """Create the attempt's pod, and show its log for as long as this process lives."""
        self._take(request, metric)
        pod = self.build_pod_request_obj(context)
        self.create(pod)

        def show() -> None:
            try:
                while self.pods.is_pending(name_of(request)):
                    time.sleep(POLL_SECONDS)
                self.pod_manager.fetch_container_logs(
                    pod,
                    self.base_container_name,
                    follow=True,
                    log_formatter=self.log_formatter,
                )
            except Exception as error:  # noqa: BLE001  the log of others is shown as long as it can be
                if not is_gone(error, name_of(request)):
                    self.log.warning("The log ends here: %s", printable(describe_error(error)))

        threading.Thread(target=show, name="pod-log", daemon=True).start()

    def _take(self, request: RunnerRequest, metric: str | None) -> None:
        self._request, self._metric = request, metric
        self.pod_purpose = f"{trial_label(request)} of {request.experiment}"
        of_many = request.trial_id == layout.WHOLE_EXPERIMENT
        if self.log_formatter is None:
            self.log_formatter = lambda _container, line: describe_line(
                line, metric, of_many=of_many
            )

    def conclude(
        self,
        context: Context,
        store: ObjectStore,
        plan: RestorePlan,
        request: RunnerRequest,
        claim_next: Callable[[int, RunnerRequest | None], RunnerRequest],
    ) -> RunnerOutcome:
        """Return how the attempt ended that was followed.

        If its pod was too small for what the trainable asks for now, the next attempt is claimed, which
        asks for that, and followed in a pod of its size; or deferred to.

        Raises:
            PodLostError: If the pod was lost.
            InvalidInputError: If the second pod was too small again.
        """
        end = self.attempt_pods.judge(store, plan, request, self.end)
        if isinstance(end, PodLostError):
            raise end
        if not end.resources:
            return end
        larger = self.find_or_claim(store, plan, request.trial_id, claim_next)
        self.follow_attempt(context, larger, plan.metric)
        return self.conclude(context, store, plan, larger, claim_next)

    def say(self, context: Context, summary: dict[str, Any]) -> dict[str, Any]:
        """Push the summary: the provider takes `do_xcom_push` for a wish to have a sidecar."""
        if not self.do_xcom_push:
            context["ti"].xcom_push(key="return_value", value=summary)
        return summary

    def read_memory_limit(self) -> float | None:
        """Return how much memory the trial has where the user, and not the trial, says so."""
        limit = given_resources(self)["limits"].get("memory")
        return pod_resources.trial_memory(limit, self.shape)

    # what the provider calls

    def build_pod_request_obj(
        self, context: Context | None = None, *, dry_run: bool = False
    ) -> Any:
        """Build the pod: the provider's, for the runner of the attempt that is followed."""
        shaped = copy.copy(self)
        if self._request is not None:
            apply_request_to_spec(shaped, self._request, self.shape)
        pod = super(RunnerPodOperator, shaped).build_pod_request_obj(context, dry_run=dry_run)
        keep_one_shm(pod, pod.spec.containers[0])
        return pod

    def defer(self, *, trigger: Any, **kwargs: Any) -> Never:
        """Defer to our trigger in the place of the provider's."""
        _, arguments = trigger.serialize()
        of_many = self._request is not None and self._request.trial_id == layout.WHOLE_EXPERIMENT
        ours = RunnerPodTrigger(metric=self._metric, of_many=of_many, **arguments)
        super().defer(trigger=ours, **kwargs)
