"""A `KubernetesPodOperator` whose pod is a runner: what both operators that run one share."""

import copy
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Never

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_tune_restore.exceptions import PodLostError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.printable import printable
from airflow_tune_restore.hooks.arguments import parse_text
from airflow_tune_restore.hooks.pods import (
    PatientKubernetesHook,
    PatientPodManager,
    describe_error,
    is_outage,
    provider_errors,
    status_of,
)
from airflow_tune_restore.launch import kubernetes as shapes
from airflow_tune_restore.launch import pod_resources
from airflow_tune_restore.launch.pod_resources import PodShape
from airflow_tune_restore.operators.attempt import RunnerArguments
from airflow_tune_restore.operators.attempt_pods import (
    NOT_FOUND,
    POLL_SECONDS,
    AttemptPods,
    name_of,
)
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
        env: More environment variables of the pod. No secrets: they stand in its spec.
        storage_conn_id: Airflow connection with which this task reads the experiment. The pod never
            sees it.
        object_store_memory: Bytes of Ray's object store; `/dev/shm` is sized for it.
        gpu_resource: What the cluster calls a GPU.
        custom_resources: What the cluster calls the custom resources of trials, by Ray's name.
        ttl: How long the pod may live at most, timedelta or seconds; Kubernetes ends it then, even if
            Airflow is gone.
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
        self._end: PodEnd | None = None
        self._given_up = False
        self._seen = ""

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
        return PatientPodManager(kube_client=self.client, callbacks=self.callbacks)

    @cached_property
    def pods(self) -> AttemptPods:
        """The pods of attempts, whoever made them."""
        return AttemptPods(
            hook=self.hook,
            manager=self.pod_manager,
            namespace=self.pod_namespace,
            container=self.base_container_name,
            patience_seconds=(self.termination_grace_period or 0) + START_SECONDS,
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

    def follow_pod(self, context: Context, request: RunnerRequest, metric: str | None) -> None:
        """Create the attempt's pod, or attach to it, and follow it to its end; or defer.

        What the provider makes of a pod that failed is left to `ended`, which knows more.
        """
        self._take(request, metric)
        try:
            super().execute(context)
        except (AirflowSkipException, AirflowFailException):
            raise
        except provider_errors() as error:
            self._refuse(error, existed=self.pod is not None)

    def resume_following(
        self, context: Context, event: dict[str, Any], request: RunnerRequest, metric: str | None
    ) -> None:
        """Go on after a deferral."""
        self._take(request, metric)
        self._seen = str(event.get("seen") or "")
        try:
            super().trigger_reentry(context, event)
        except (AirflowSkipException, AirflowFailException):
            raise
        except provider_errors() as error:
            self._refuse(error, existed=True)

    def start_pod(self, context: Context, request: RunnerRequest, metric: str | None) -> None:
        """Create the attempt's pod, and show its log for as long as this process lives."""
        self._take(request, metric)
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
                if status_of(error) != NOT_FOUND:
                    self.log.warning("The log ends here: %s", printable(describe_error(error)))

        threading.Thread(target=show, name="pod-log", daemon=True).start()

    def _take(self, request: RunnerRequest, metric: str | None) -> None:
        self._request, self._metric = request, metric
        self._end, self._given_up, self._seen = None, False, ""
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

    def _refuse(self, error: Exception, *, existed: bool) -> None:
        """Raise what the provider raised, in short, unless the pod has ended: then that is told."""
        if self._end is not None:
            return
        name = name_of(self._request) if self._request is not None else "?"
        if is_outage(error):
            raise AirflowException(
                f"Pod {name} cannot be followed: {printable(describe_error(error))}. It goes on; a retry "
                "attaches to it."
            ) from error
        if existed and not self._given_up and self.pods.read(name) is None:
            self._end = self.pods.look(name, self._seen)
            return
        what = "was given up" if existed else "could not be created"
        raise AirflowException(f"Pod {name} {what}: {printable(_cause(error))}") from error

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
            shaped._take_shape(self._request)  # noqa: SLF001  a copy of ourselves
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
            if status_of(error) == NOT_FOUND:
                return None
            raise

    def get_or_create_pod(self, pod_request_obj: Any, context: Context) -> Any:
        """Attach to the attempt's pod, or create it. Its name says which one it is."""
        found = self.find_pod(pod_request_obj.metadata.namespace, context)
        if found is not None:
            return found
        return self.pod_manager.create_pod(pod_request_obj)

    def defer(self, *, trigger: Any, **kwargs: Any) -> Never:
        """Defer to our trigger in the place of the provider's."""
        _, arguments = trigger.serialize()
        of_many = self._request is not None and self._request.trial_id == layout.EVERY_TRIAL
        ours = RunnerPodTrigger(metric=self._metric, of_many=of_many, **arguments)
        super().defer(trigger=ours, **kwargs)

    def post_complete_action(self, *, pod: Any, remote_pod: Any, **kwargs: Any) -> None:
        """Look how the pod ended, before the provider deletes it; one that goes on is left alone."""
        if is_outage(sys.exception()):
            self.log.warning("The pod goes on unseen; a retry attaches to it.")
            return
        if remote_pod is not None and not self._killed:
            name = remote_pod.metadata.name
            self._end = self.pods.look(name, self._seen)
            self._given_up = self._end is None
            if self.pods.read(name) is None:
                return  # nothing is left to clean
        super().post_complete_action(pod=pod, remote_pod=remote_pod, **kwargs)

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

    def _take_shape(self, request: RunnerRequest) -> None:
        """Set the provider's own arguments for this attempt; they win over every template."""
        from airflow.providers.cncf.kubernetes.backcompat.backwards_compat_converters import (
            convert_env_vars_or_raise_error,
        )
        from kubernetes.client import models

        shape = self.shape
        self.name, self.random_name_suffix = name_of(request), False
        self.labels = {**self.labels, **shapes.pod_labels(request)}
        self.annotations = {
            **self.annotations,
            f"{shapes.LABEL_PREFIX}experiment": request.experiment,
            f"{shapes.LABEL_PREFIX}trial": request.trial_id,
        }
        command = shapes.runner_command(request, shape.python)
        self.cmds, self.arguments = command[:1], command[1:]
        given = {**shapes.size_env(request.resources, shape), **(self.env or {})}
        named = convert_env_vars_or_raise_error(self.env_vars) if self.env_vars else []
        taken = {variable.name for variable in named}
        fresh = {name: value for name, value in given.items() if name not in taken}
        self.env_vars = [*named, *convert_env_vars_or_raise_error(fresh)]
        asked = pod_resources.container_resources(request.resources, shape)
        resources = pod_resources.merge_resources(asked, given_resources(self))
        self.container_resources = models.V1ResourceRequirements(**resources)
        self.volumes = [*self.volumes, shapes.shm_volume(shape)]
        self.volume_mounts = [*self.volume_mounts, shapes.shm_mount()]
        if self.ttl is not None:
            self.active_deadline_seconds = parse_ttl(self.ttl)


def _cause(error: BaseException) -> str:
    """Return what an error began with: the provider raises another one while it cleans up."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return describe_error(error)
