"""The pod of an attempt, from the user's template and arguments and from the needs of the attempt.

Arguments have priority over templates, as in every `KubernetesPodOperator`.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.kubernetes import pod_resources, pod_spec
from airflow_tune_restore.operators.kubernetes.pod_arguments import MOST_SECONDS, parse_ttl
from airflow_tune_restore.protocol import window
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import RunnerRequest

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    from airflow_tune_restore.operators.kubernetes.base import RunnerPodOperator


def apply_request_to_spec(
    operator: "RunnerPodOperator", request: RunnerRequest, options: pod_resources.PodSpecOptions
) -> None:
    """Set the arguments of the provider's operator for one attempt."""
    from airflow.providers.cncf.kubernetes.backcompat.backwards_compat_converters import (
        convert_env_vars_or_raise_error,
    )
    from kubernetes.client import models

    spec = pod_spec.attempt_spec(request, options, operator.env or {})
    operator.name, operator.random_name_suffix = spec.name, False
    operator.labels = {**operator.labels, **spec.labels}
    operator.annotations = {**operator.annotations, **spec.annotations}
    operator.cmds, operator.arguments = spec.command[:1], spec.command[1:]
    named = convert_env_vars_or_raise_error(operator.env_vars) if operator.env_vars else []
    taken = {variable.name for variable in named}
    fresh = {name: value for name, value in spec.env.items() if name not in taken}
    operator.env_vars = [*named, *convert_env_vars_or_raise_error(fresh)]
    asked = pod_resources.container_resources(request.resources, options)
    resources = pod_resources.merge_resources(asked, given_resources(operator))
    operator.container_resources = models.V1ResourceRequirements(**resources)
    operator.volumes = [*operator.volumes, pod_spec.shm_volume(options)]
    operator.volume_mounts = [*operator.volume_mounts, pod_spec.shm_mount()]
    operator.active_deadline_seconds = _longest_life(operator, request)


def _longest_life(operator: "RunnerPodOperator", request: RunnerRequest) -> int | None:
    """Return `activeDeadlineSeconds` of the pod: Kubernetes ends it even if Airflow is gone.

    The user's own limit, or the time until the end of the window if that is shorter.
    """
    given = (
        parse_ttl(operator.ttl) if operator.ttl is not None else operator.active_deadline_seconds
    )
    left = window.seconds_until(window.last_moment(request.pause_at), datetime.now(UTC))
    if left is None:
        return given
    template = read_template(operator)
    if given is None and template is not None and template.spec is not None:
        given = template.spec.active_deadline_seconds
    limits = [seconds for seconds in (given, max(1, math.ceil(left))) if seconds is not None]
    return min(MOST_SECONDS, *limits)


def read_template(operator: "KubernetesPodOperator") -> Any | None:
    """Return the pod that the operator's arguments are laid over; None without a template.

    Raises:
        InvalidInputError: If a template does not exist or is not a pod.
    """
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    path = operator.pod_template_file
    if path and not Path(path).is_file():  # the provider ignores that
        raise InvalidInputError(f"pod_template_file={path!r} does not exist on this worker.")
    try:
        if path:
            template = PodGenerator.deserialize_model_file(path)
        elif operator.pod_template_dict:
            template = PodGenerator.deserialize_model_dict(operator.pod_template_dict)
        else:
            return operator.full_pod_spec
        return PodGenerator.reconcile_pods(template, operator.full_pod_spec)
    except (YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        given = f"pod_template_file={path!r}" if path else "pod_template_dict"
        raise InvalidInputError(f"{given} is not a pod: {printable(str(error), 500)}") from None


def check_template(operator: "KubernetesPodOperator") -> None:
    """Check that a template can be read, and that its first container is the runner's.

    The provider lays the runner over the first container, whatever its name.
    """
    names = [container.name for container in _containers(operator)]
    base = operator.base_container_name
    if base in names[1:]:
        raise InvalidInputError(
            f"Container {base!r} of the pod template is not its first one. The first is the runner's: "
            "put sidecars after it."
        )


def given_resources(operator: "KubernetesPodOperator") -> dict[str, dict[str, Any]]:
    """Return the user's requests and limits, from argument and template."""
    of_template = [container.resources for container in _containers(operator)[:1]]
    return pod_resources.given_resources(*of_template, operator.container_resources)


def _containers(operator: "KubernetesPodOperator") -> list[Any]:
    template = read_template(operator)
    return (template.spec.containers if template is not None and template.spec else None) or []
