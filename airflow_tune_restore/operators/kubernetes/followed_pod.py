"""A `KubernetesPodOperator` that follows one pod to its end, whatever an API server answers."""

import sys
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import PodLaunchFailedException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    PodLaunchTimeoutException,
    detect_pod_terminate_early_issues,
)
from airflow.sdk import Context

from airflow_tune_restore.hooks.pods import PatientKubernetesHook, PatientPodManager
from airflow_tune_restore.launch.kubernetes import api
from airflow_tune_restore.launch.kubernetes.named_pods import NamedPods
from airflow_tune_restore.launch.kubernetes.pod_exit import PodExit, PodWatch
from airflow_tune_restore.launch.kubernetes.pod_start import has_started
from airflow_tune_restore.operators.kubernetes.pod_template import read_template
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
)


class PodGivenUpError(AirflowException):
    """A pod did not start, or was given up for another reason, and was deleted."""


class FollowedPodOperator(KubernetesPodOperator):
    """Follows a pod that is known by its name; the provider looks for labels, which tries share.

    `follow` and `resume` return when the pod has ended, and set `end`. The provider's own error for a pod
    that failed is dropped.

    Attributes:
        end: How the pod ended; None before that is known.
        give_up_at: When a pod is given up that has not started (UTC); None: only after the timeouts.
        pod_purpose: The purpose of the pod, in the words that begin a message about it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.end: PodExit | None = None
        self.give_up_at: datetime | None = None
        self.pod_purpose = "A task"
        self._watch = PodWatch(self.base_container_name)
        self._pod_name: str | None = None
        self._is_there = False
        self._has_waited = False
        self._why_given_up: str | None = None

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
        """Creates, reads and follows pods."""
        _ = self.client  # the provider's property; it notifies the callbacks
        return PatientPodManager(self.pods, callbacks=self.callbacks)

    @cached_property
    def pods(self) -> NamedPods:
        """The pods of the namespace."""
        return NamedPods(
            core=self.hook.core_v1_client,
            namespace=self.pod_namespace,
            watch=self._watch,
            renew=self.hook.renew,
        )

    @cached_property
    def pod_namespace(self) -> str:
        """The namespace of the pods, found as the provider finds it."""
        template = read_template(self)
        given = template.metadata.namespace if template is not None and template.metadata else None
        found = self.namespace or given or self.hook.get_namespace() or self._incluster_namespace
        return str(found or "default")

    def follow(self, context: Context, name: str, *, is_there: bool) -> None:
        """Create the pod of this name, or attach to it, and follow it; or defer.

        Raises:
            AirflowException: If it was not created, did not start, or can no longer be followed. Only in
                the last case the pod continues.
            AirflowFailException: If it is not valid for the API server.
        """
        self._forget(name)
        self._is_there = is_there
        self.pod_manager.give_up_at = self.give_up_at
        try:
            super().execute(context)
        except _provider_errors() as error:
            self._raise_unless_ended(error, name, was_there=self.pod is not None)

    def resume(self, context: Context, event: dict[str, Any], name: str) -> None:
        """Continue after a deferral."""
        self._forget(name)
        if event.get("end"):
            self._watch.remember(name, PodExit.from_event(event["end"]))
        if _is_overdue(event):
            self._end_for_time()
            raise AirflowException(f"{self._describe(name)} was given up: {event.get('message')}")
        if event.get("outage"):
            raise self._not_followed(name, str(event["outage"]))
        try:
            if event["status"] == "timeout" and not self.pods.is_pending(name):
                # it has started since: the provider defers again
                event = {**event, "status": "error"}
            self._has_waited = event["status"] == "timeout"
            super().trigger_reentry(context, event)
        except _provider_errors() as error:
            self._raise_unless_ended(error, name, was_there=True)

    def create(self, pod: Any) -> None:
        """Create a pod that this task does not follow; it raises as `follow` does."""
        try:
            self.pod_manager.create_pod(pod)
        except _provider_errors() as error:
            raise self._not_created(error, pod.metadata.name) from error

    def _forget(self, name: str) -> None:
        self._pod_name, self.end = name, None
        self._has_waited, self._why_given_up = False, None
        self.pod = self.pod_request_obj = self.remote_pod = None  # the provider's own

    # called by the provider

    def find_pod(
        self, namespace: str, context: Context, *, exclude_checked: bool = True
    ) -> Any | None:
        """Return the followed pod."""
        del namespace, context, exclude_checked
        return None if self._pod_name is None else self.pods.find(self._pod_name)

    def get_or_create_pod(self, pod_request_obj: Any, context: Context) -> Any:
        """Attach to the pod, or create it."""
        del context
        if self._is_there:
            return self.pod_manager.read_pod(pod_request_obj)
        return self.pod_manager.create_pod(pod_request_obj)

    def on_kill(self) -> None:
        """Delete the pod that this task follows; it saves a snapshot first."""
        self._killed = True
        self._end_for_time()

    def post_complete_action(self, *, pod: Any, remote_pod: Any, **kwargs: Any) -> None:
        """Set `end`, before the provider deletes an ended pod.

        A pod that has not ended is deleted only if it does not start, or if the task's time is over.
        """
        name, raised = pod.metadata.name, sys.exception()
        if remote_pod is None or self._killed:
            return  # it never existed, or is deleted already
        if isinstance(raised, AirflowTaskTimeout):
            self._end_for_time()
            return
        if api.is_outage(raised, name):
            self.log.warning("Pod %s continues; a retry attaches to it.", name)
            return
        self.end, remote_pod = self.pods.look(name), self.pods.find(name)
        if remote_pod is None:
            return  # already deleted
        if self.end is not None:
            super().post_complete_action(pod=pod, remote_pod=remote_pod, **kwargs)
            return
        if self._is_given_up(raised, remote_pod):
            # also if pods are kept: a retry would attach to it, and it has no log
            self._why_given_up = self.pods.delete_unstarted(name)
        if self._why_given_up is None:
            self.log.warning("Pod %s has not ended and continues; a retry attaches to it.", name)

    def _clean(self, event: dict[str, Any], result: Any, context: Context) -> None:
        """Wait for the pod's end and clean up, unless the time of the task is over."""
        if isinstance(sys.exception(), AirflowTaskTimeout):
            self._end_for_time()
        else:
            super()._clean(event=event, result=result, context=context)

    def _is_given_up(self, raised: BaseException | None, pod: Any) -> bool:
        return (
            self._has_waited
            or isinstance(raised, PodLaunchTimeoutException | PodLaunchFailedException)
            or detect_pod_terminate_early_issues(pod) is not None
        )

    def _end_for_time(self) -> None:
        """Delete the followed pod, if any, unless the user keeps the pods of killed tasks."""
        if self._pod_name is None:
            return
        if self.on_kill_action.value == "keep_pod":
            self.log.info("Pod %s continues: on_kill_action is keep_pod.", self._pod_name)
        else:
            self.pods.delete(self._pod_name)

    def _write_logs(  # type: ignore[override]  # the provider's is wrapped by tenacity
        self,
        pod: Any,
        follow: bool = False,  # noqa: FBT001, FBT002  as the provider declares it
        since_time: Any = None,
    ) -> None:
        """Show the lines that the triggerer has not shown, in the same form."""
        follow = follow and has_started(pod.to_dict(serialize=True), self.base_container_name)
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

    def _raise_unless_ended(self, error: Exception, name: str, *, was_there: bool) -> None:
        """Raise a short form of the provider's error, unless the pod has ended: then `end` counts."""
        if isinstance(error, AirflowSkipException | AirflowFailException):
            raise error
        if self.end is not None:
            return
        what, why = self._describe(name), _cause(error)
        if self._why_given_up is None:
            if api.is_gone(error, name) or (
                not api.is_api_error(error) and self.pods.read(name) is None
            ):
                self.end = self.pods.look(name)
                return
            if not was_there:
                raise self._not_created(error, name) from error
            raise self._not_followed(name, why) from error
        if self._why_given_up:
            raise PodGivenUpError(
                f"{what} did not start: {self._why_given_up.rstrip('.')}. It was deleted; a retry "
                "creates another one."
            ) from error
        raise PodGivenUpError(f"{what} was given up: {why}") from error

    def _not_created(self, error: Exception, name: str) -> AirflowException:
        what, why = self._describe(name), _cause(error)
        failed = f"{what} could not be created: {why.rstrip('.')}."
        if api.is_mistake(error):
            return AirflowFailException(f"{failed} Correct the arguments or the pod template.")
        if api.is_refusal(error, name):
            return AirflowException(f"{failed} Nothing ran; a retry tries again.")
        return AirflowException(
            f"{failed} If it was created nevertheless, a retry attaches to it; else a retry creates it."
        )

    def _not_followed(self, name: str, why: str) -> AirflowException:
        return AirflowException(
            f"{self._describe(name)} cannot be followed: {why.rstrip('.')}. It continues; a retry "
            "attaches to it."
        )

    def _describe(self, name: str) -> str:
        return f"{self.pod_purpose}: pod {name} in namespace {self.pod_namespace}"


def _provider_errors() -> tuple[type[Exception], ...]:
    """Return the kinds of errors of the provider's operator: its own, and those of the client it uses."""
    return (AirflowException, *api.api_errors())


def _is_overdue(event: dict[str, Any]) -> bool:
    """Whether the triggerer has stopped because the task's `execution_timeout` is over."""
    deadline = event.get("_execution_deadline")
    is_over = deadline is not None and datetime.now(UTC).timestamp() >= deadline
    return is_over and event["status"] == "timeout"


def _cause(error: BaseException) -> str:
    """Return the first error of a chain: the provider raises others while it cleans up."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return api.describe_error(error).rstrip(". ")
