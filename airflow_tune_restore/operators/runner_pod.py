"""A `KubernetesPodOperator` whose pod is a runner: what both operators that run one share."""

import copy
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Never

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import PodLaunchFailedException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    PodLaunchTimeoutException,
    detect_pod_terminate_early_issues,
)
from airflow.sdk import Context
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
)

from airflow_tune_restore.exceptions import KeyExistsError, PodLostError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.printable import printable
from airflow_tune_restore.hooks.arguments import parse_text
from airflow_tune_restore.hooks.kubernetes_api import (
    describe_error,
    is_gone,
    is_mistake,
    is_no_answer,
    is_outage,
    provider_errors,
)
from airflow_tune_restore.hooks.pods import PatientKubernetesHook, PatientPodManager
from airflow_tune_restore.launch import pod_resources
from airflow_tune_restore.launch.pod_end import PodWatch
from airflow_tune_restore.launch.pod_resources import PodShape
from airflow_tune_restore.operators.attempt import RunnerArguments
from airflow_tune_restore.operators.attempt_pods import POLL_SECONDS, AttemptPods, name_of
from airflow_tune_restore.operators.labelled import LabelledOperator
from airflow_tune_restore.operators.pod_arguments import (
    parse_grace_period,
    parse_object_store,
    parse_ttl,
)
from airflow_tune_restore.operators.pod_template import (
    given_resources,
    keep_one_shm,
    read_template,
    take_shape,
)
from airflow_tune_restore.restore.lines import describe_line
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.request import RunnerOutcome, RunnerRequest
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.triggers.runner_pod import RunnerPodTrigger

if TYPE_CHECKING:
    from airflow_tune_restore.launch.pod_end import PodEnd

GRACE_SECONDS = 120
"""What a pod is given to save a snapshot in; Kubernetes gives 30 s, which a large checkpoint outlasts."""

START_SECONDS = 300
"""How long a pod may wait for a node, and then for its image. Together less than the lease of a restore:
nobody renews that until the runner does."""

LOG_SECONDS = 10


class RunnerPodOperator(LabelledOperator, KubernetesPodOperator):
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
        self._watch = PodWatch(self.base_container_name)
        self._end: PodEnd | None = None
        self._attaches = False
        self._timed_out = False
        self._given_up: str | None = None
        self._own_pod: str | None = None

    @property
    def shape(self) -> PodShape:
        """What of the pod does not depend on the trial (InvalidInputError if no pod has that)."""
        return PodShape(
            python=parse_text(self.python) or "python",
            object_store_bytes=parse_object_store(self.object_store_memory),
            gpu_resource=self.gpu_resource,
            custom_resources=self.custom_resources or {},
        )

    @cached_property
    def hook(self) -> PatientKubernetesHook:
        """The connection to the cluster."""
        return PatientKubernetesHook(
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            config_file=self.config_file,
            cluster_context=self.cluster_context,
        )

    @cached_property
    def pod_manager(self) -> PatientPodManager:
        """Whoever creates, reads and follows pods."""
        _ = self.client  # the provider's callbacks want to know of it
        return PatientPodManager(
            self.hook, self._watch, self.base_container_name, callbacks=self.callbacks
        )

    @cached_property
    def pods(self) -> AttemptPods:
        """The pods of attempts, whoever made them."""
        return AttemptPods(
            hook=self.hook,
            manager=self.pod_manager,
            namespace=self.pod_namespace,
            watch=self._watch,
            deletes_ended=self.on_finish_action.value == "delete_pod",
            log=self.log,
        )

    def check_arguments(self) -> None:
        """Refuse arguments that no pod can be made of: not in `__init__`, since a DAG file must parse.

        Raises:
            InvalidInputError: If there is one.
        """
        _ = self.shape
        parse_ttl(self.ttl)
        parse_grace_period(self.termination_grace_period)

    def runner_arguments(self, *, concurrent: int = 1) -> RunnerArguments:
        """Return what a runner is told that the plan does not say."""
        return RunnerArguments(
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
            newest = self.pods.find_attempt(store, plan, trial_id)
            self._attaches = newest.alive is not None
            if newest.alive is not None:
                return newest.alive
            try:
                return claim_next(newest.number + 1, newest.unstarted)
            except KeyExistsError:
                self.log.info(
                    "Another try of this task has just claimed attempt %d.", newest.number + 1
                )

    def follow_pod(self, context: Context, request: RunnerRequest, metric: str | None) -> None:
        """Create the attempt's pod, or attach to it, and follow it to its end; or defer.

        What the provider makes of a pod that failed is left to `ended`, which knows more.
        """
        self._take(request, metric)
        self._own_pod = name_of(request)
        try:
            super().execute(context)
        except (AirflowSkipException, AirflowFailException):
            raise
        except provider_errors() as error:
            self._refuse(error, self._own_pod, existed=self.pod is not None)

    def resume_following(
        self, context: Context, event: dict[str, Any], request: RunnerRequest, metric: str | None
    ) -> None:
        """Go on after a deferral."""
        self._take(request, metric)
        name = self._own_pod = name_of(request)
        self._watch.remember(
            name, seen=str(event.get("seen") or ""), is_lost=bool(event.get("is_lost"))
        )
        try:
            event = self._without_old_timeout(event, request)
            self._timed_out = event["status"] == "timeout"
            super().trigger_reentry(context, event)
        except (AirflowSkipException, AirflowFailException):
            raise
        except provider_errors() as error:
            self._refuse(error, name, existed=True)

    def _without_old_timeout(self, event: dict[str, Any], request: RunnerRequest) -> dict[str, Any]:
        """Return an event that does not give up a pod which has started since it was fired."""
        deadline = event.get("_execution_deadline")
        is_overdue = deadline is not None and datetime.now(UTC).timestamp() >= deadline
        if event["status"] != "timeout" or is_overdue or self.pods.is_pending(request):
            return event
        return {**event, "status": "error"}  # the provider defers again

    def start_pod(self, context: Context, request: RunnerRequest, metric: str | None) -> None:
        """Create the attempt's pod, and show its log for as long as this process lives."""
        self._take(request, metric)
        self._own_pod = None  # killing a task stops its trial alone
        pod = self.build_pod_request_obj(context)
        self.pod_manager.create_pod(pod)

        def show() -> None:
            try:
                while self.pods.is_pending(request):
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
        self._end, self._given_up, self._timed_out = None, None, False
        # the provider's own, of the attempt before
        self.pod = self.pod_request_obj = self.remote_pod = None
        of_many = request.trial_id == layout.EVERY_TRIAL
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
        claim_next: Callable[[], RunnerRequest],
    ) -> RunnerOutcome:
        """Return how the attempt ended that was followed.

        If its pod was too small for what the trainable asks for now, the next attempt is claimed, which
        asks for that, and followed in a pod of its size; or deferred to.

        Raises:
            PodLostError: If the pod was lost.
            InvalidInputError: If the second pod was too small again.
        """
        end = self.pods.judge(store, plan, request, self._end)
        if isinstance(end, PodLostError):
            raise end
        if not end.resources:
            return end
        larger = claim_next()
        self._attaches = False
        self.follow_pod(context, larger, plan.metric)
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

    def _refuse(self, error: Exception, name: str, *, existed: bool) -> None:
        """Raise what the provider raised, in short, unless the pod has ended: then that is told."""
        if self._end is not None:
            return
        if is_gone(error, name):
            self._end = self.pods.look(name)
            return
        why = _cause(error)
        if not existed:
            kind = AirflowFailException if is_mistake(error) else AirflowException
            raise kind(f"Pod {name} could not be created: {why}") from error
        if self._given_up is None:
            raise AirflowException(
                f"Pod {name} cannot be followed: {why}. It goes on; a retry attaches to it."
            ) from error
        raise AirflowException(f"Pod {name} did not start: {self._given_up or why}") from error

    @cached_property
    def pod_namespace(self) -> str:
        """The namespace of the pods, found as the provider finds it."""
        template = read_template(self)
        given = template.metadata.namespace if template is not None and template.metadata else None
        found = self.namespace or given or self.hook.get_namespace() or self._incluster_namespace
        return str(found or "default")

    # what the provider calls

    def build_pod_request_obj(
        self, context: Context | None = None, *, dry_run: bool = False
    ) -> Any:
        """Build the pod: the provider's, for the runner of the attempt that is followed."""
        shaped = copy.copy(self)
        if self._request is not None:
            take_shape(shaped, self._request, self.shape)
        pod = super(RunnerPodOperator, shaped).build_pod_request_obj(context, dry_run=dry_run)
        keep_one_shm(pod)
        return pod

    def find_pod(
        self, namespace: str, context: Context, *, exclude_checked: bool = True
    ) -> Any | None:
        """Return the attempt's pod by its name; the provider looks for labels, which tries share."""
        del context, exclude_checked
        if self._request is None:
            return None
        name = name_of(self._request)
        try:
            return self.hook.get_pod(name, namespace)
        except Exception as error:
            if is_gone(error, name):
                return None
            raise

    def get_or_create_pod(self, pod_request_obj: Any, context: Context) -> Any:
        """Attach to the attempt's pod, or create it. Its name says which one it is."""
        del context
        if self._attaches:
            return self.pod_manager.read_pod(pod_request_obj)
        return self.pod_manager.create_pod(pod_request_obj)

    def on_kill(self) -> None:
        """Delete the pod that this task follows; it saves a snapshot first."""
        self._killed = True
        if self._own_pod is None:
            return
        if self.on_kill_action.value == "keep_pod":
            self.log.info("Pod %s goes on: on_kill_action is keep_pod.", self._own_pod)
            return
        self.pods.delete(self._own_pod)

    def defer(self, *, trigger: Any, **kwargs: Any) -> Never:
        """Defer to our trigger in the place of the provider's."""
        _, arguments = trigger.serialize()
        of_many = self._request is not None and self._request.trial_id == layout.EVERY_TRIAL
        ours = RunnerPodTrigger(metric=self._metric, of_many=of_many, **arguments)
        super().defer(trigger=ours, **kwargs)

    def post_complete_action(self, *, pod: Any, remote_pod: Any, **kwargs: Any) -> None:
        """Look how the pod ended, before the provider deletes it; one that goes on is left alone.

        Whatever was raised: a pod that has not ended is deleted only if it cannot start, or if the user's
        `execution_timeout` is over.
        """
        name, raised = pod.metadata.name, sys.exception()
        if remote_pod is None or self._killed:
            return  # it was never there, or is deleted already
        if is_outage(raised, name):
            self.log.warning("Pod %s goes on unseen; a retry attaches to it.", name)
            return
        self._end = self.pods.look(name)
        remote_pod = self.find_pod(pod.metadata.namespace, kwargs["context"])
        if remote_pod is None:
            return  # nothing is left to clean
        if self._end is None and not self._may_give_up(raised, remote_pod):
            self.log.warning("Pod %s has not ended, and goes on; a retry attaches to it.", name)
            return
        if self._end is None:
            self._given_up = self.pods.why_not_started(name)
        super().post_complete_action(pod=pod, remote_pod=remote_pod, **kwargs)

    def _may_give_up(self, raised: BaseException | None, pod: Any) -> bool:
        has_no_time = (PodLaunchTimeoutException, PodLaunchFailedException, AirflowTaskTimeout)
        return (
            self._timed_out
            or isinstance(raised, has_no_time)
            or detect_pod_terminate_early_issues(pod) is not None
        )

    def _write_logs(  # type: ignore[override]  # the provider's is wrapped by tenacity
        self,
        pod: Any,
        follow: bool = False,  # noqa: FBT001, FBT002  as the provider declares it
        since_time: Any = None,
    ) -> None:
        """Show what the triggerer has not: results in words, as it does."""
        where = (pod.metadata.namespace, pod.metadata.name, self.base_container_name)
        if since_time is not None:
            self.pod_manager.container_log_times[where] = since_time
        self.pod_manager.fetch_requested_container_logs(
            pod=pod,
            containers=self.container_logs,
            follow_logs=follow,
            container_name_log_prefix_enabled=self.container_name_log_prefix_enabled,
            log_formatter=self.log_formatter,
        )


@contextmanager
def plain_answers() -> Iterator[None]:
    """Raise what an API server answered, or did not, as an `AirflowException` of one sentence."""
    try:
        yield
    except Exception as error:
        if not is_no_answer(error):
            raise
        raise AirflowException(
            f"The Kubernetes API does not answer as it should: {describe_error(error)}. Pods go on; a "
            "retry attaches to them."
        ) from error


def _cause(error: BaseException) -> str:
    """Return what an error began with: the provider raises another one while it cleans up."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return describe_error(error)
