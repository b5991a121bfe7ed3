"""The launcher of `tune-restore restore --on kubernetes`: it starts attempts in pods, from a shell."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KubernetesConnectionError,
    RunnerError,
)
from airflow_tune_restore.launch.kubernetes import api, pod_resources, pod_template
from airflow_tune_restore.launch.kubernetes.bounded_client import bound
from airflow_tune_restore.launch.kubernetes.named_pods import NamedPods
from airflow_tune_restore.launch.kubernetes.pod_exit import PodWatch
from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
from airflow_tune_restore.launch.kubernetes.pod_spec import START_SECONDS
from airflow_tune_restore.launch.kubernetes.run import KubernetesRun
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings

CHECK_SECONDS = 10.0
"""How long the cluster may take to answer the first request."""

_MALFORMED = (ValueError, TypeError, AttributeError, LookupError)
"""Errors of the client for a kubeconfig that is not text, or has an unexpected structure."""

_CHECKED_POD = "tune-restore-check"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KubernetesLauncher:
    """Starts runners in pods, each with a Ray of its own.

    The cluster is that of the kubeconfig; without a kubeconfig, the cluster that this process runs in.
    If the outcome of an attempt has `resources`, its pod was too small: claim the next attempt, whose pod
    has that size.

    Args:
        image: Image with Ray, this package and the trainable. By default the template's.
        namespace: By default the namespace of the template, else of the kubeconfig's context.
        pod_template: YAML or JSON file of a pod. The runner is its container `base`, else its first one.
        context: Context of the kubeconfig; by default the current one.
        kubeconfig: Path of the kubeconfig; by default that of `kubectl`.
        env: More variables of the container, taken literally. No secrets: they stand in the pod's spec.
        options: Interpreter, size of Ray's object store, names of GPUs and custom resources.
        start_seconds: How long a pod may wait for a node, and then for its image.
    """

    image: str | None = None
    namespace: str | None = None
    pod_template: str | Path | None = None
    context: str | None = None
    kubeconfig: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    options: PodSpecOptions = field(default_factory=PodSpecOptions)
    start_seconds: float = START_SECONDS

    def settings(self, settings: RunnerSettings) -> RunnerSettings:
        """Return the settings with the launcher's own added.

        Raises:
            InvalidInputError: If the template is not valid, or if no image is given.
            KubernetesConnectionError: If the cluster of the kubeconfig cannot be used.
        """
        container = pod_template.runner_container(self._template)
        if not (self.image or container.image):
            raise InvalidInputError("No image is given, neither by --image nor by a pod template.")
        self._check_cluster(self.image or container.image)
        limits = pod_resources.given_resources(container.resources)["limits"]
        memory = pod_resources.trial_memory(limits.get("memory"), self.options)
        return replace(settings, sized=True, can_grow=True, memory=memory)

    def start(self, request: RunnerRequest) -> KubernetesRun:
        """Create the pod of a claimed attempt, or attach to it.

        Raises:
            InvalidInputError: If the pod is not valid.
            RunnerError: If the cluster refuses it, or does not answer.
        """
        run = self._run(request)
        pod = pod_template.build_pod(
            *(self._template, request, self.options),
            namespace=self._pods.namespace,
            image=self.image,
            env=self.env,
        )
        try:
            self._pods.create(pod)
        except api.api_errors() as error:
            failed = f"{run.label} could not be created: {api.describe_error(error).rstrip('.')}."
            if api.is_mistake(error):
                raise InvalidInputError(
                    f"{failed} Correct the options or the pod template."
                ) from error
            advice = f"If it was created nevertheless, delete it: {run.stop_command}"
            if api.is_refusal(error, run.name):
                advice = "Nothing ran."
            raise RunnerError(f"{failed} {advice}") from error
        return run

    def find(self, request: RunnerRequest) -> KubernetesRun | None:
        """Return the run of an attempt that another process started; None without a pod."""
        run = self._run(request)
        return run if run.has_pod() else None

    def stop_command(self, request: RunnerRequest) -> str:
        """Return the shell command that stops the run of an attempt."""
        return self._run(request).stop_command

    def _check_cluster(self, image: str) -> None:
        """Ask once whether this shell may create pods in the namespace; the dry run creates none."""
        from kubernetes.client import models

        core, namespace = self._pods.core, self._pods.namespace
        pod = models.V1Pod(
            api_version="v1",
            kind="Pod",
            metadata=models.V1ObjectMeta(name=_CHECKED_POD),
            spec=models.V1PodSpec(containers=[models.V1Container(name="base", image=image)]),
        )
        try:
            answer = core.create_namespaced_pod(
                namespace, pod, dry_run="All", _request_timeout=CHECK_SECONDS
            )
            api.check_answer(answer, _CHECKED_POD)
        except api.api_errors() as error:
            status, is_refusal = api.status_of(error), api.is_refusal(error, _CHECKED_POD)
            if is_refusal and status != api.NOT_FOUND:
                return  # a quota or a policy is about a pod: `start` reports it
            why = f"{api.describe_outage(error).rstrip('.')}."
            if is_refusal:
                why = f"Namespace {namespace} does not exist. Correct it, or create it."
            elif status == api.UNAUTHORIZED:
                refused = api.describe_error(error)
                why = f"The Kubernetes API refused the credentials of the kubeconfig: {refused}."
            host = core.api_client.configuration.host or "A kubeconfig without a server"
            raise KubernetesConnectionError(f"{host} cannot be used. {why}") from error

    def _run(self, request: RunnerRequest) -> KubernetesRun:
        return KubernetesRun(self._pods, request, self.start_seconds)

    @cached_property
    def _template(self) -> Any:
        return pod_template.read_template(self.pod_template)

    @cached_property
    def _pods(self) -> NamedPods:
        from kubernetes.client import CoreV1Api

        core = CoreV1Api(connect(self.kubeconfig, self.context))

        def renew() -> None:
            try:
                core.api_client = connect(self.kubeconfig, self.context)
            except KubernetesConnectionError as error:  # its file may just be written
                logger.warning("%s", error)

        return NamedPods(
            core=core,
            namespace=self._find_namespace(),
            watch=PodWatch(pod_template.runner_container(self._template).name),
            renew=renew,
        )

    def _find_namespace(self) -> str:
        if given := self.namespace or self._template.metadata.namespace:
            return str(given)
        from kubernetes.config import ConfigException, list_kube_config_contexts

        try:
            contexts, current = list_kube_config_contexts(self.kubeconfig)
        except ConfigException:
            return _OWN_NAMESPACE.read_text() if _OWN_NAMESPACE.is_file() else "default"
        used = [found for found in contexts if found["name"] == self.context] or [current]
        return str(used[0]["context"].get("namespace") or "default")


def connect(kubeconfig: str | None = None, context: str | None = None) -> Any:
    """Return a bounded `ApiClient` of the kubeconfig; without one, of the cluster this process runs in.

    Raises:
        KubernetesConnectionError: If no kubeconfig is valid, and this process does not run in a pod.
    """
    from kubernetes import client, config
    from yaml import YAMLError

    settings = client.Configuration()
    try:
        config.load_kube_config(kubeconfig, context, settings)
    except (config.ConfigException, YAMLError, OSError, *_MALFORMED) as error:
        if kubeconfig or context or "KUBERNETES_SERVICE_HOST" not in os.environ:
            why = api.describe_error(error).rstrip(".")
            if isinstance(error, _MALFORMED):
                why = f"the kubeconfig is not valid ({why})"
            raise KubernetesConnectionError(
                f"No connection to Kubernetes: {why}. Check the kubeconfig: kubectl config view"
            ) from error
        config.load_incluster_config(client_configuration=settings)
    return bound(client.ApiClient(settings))
