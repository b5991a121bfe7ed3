"""A Kubernetes API server of our own, on 127.0.0.1, as far as a `KubernetesPodOperator` speaks to one.

    with cluster() as api:                         see server.py
        api.kubeconfig(path)                       a kubeconfig with a token that is checked
        api.fail(500).until = …                    answers 500 until then; 429 and 409 likewise
        api.drop_streams()                         cuts every log and watch that is being followed
        api.kubelet.evict(api.pod_names()[0])      what a node may do to a pod: see kubelet.py

It keeps pods as JSON, checks what is created against the published schema and the rules an API server
adds to it, and lets only do what the roles it is given allow. (kmock 0.8 was looked at: it keeps no
resource versions, knows no label selectors, no logs, no graceful deletion, and runs nothing.)
"""

import json
import math
import re
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate

from tests.support.kubernetes.kubelet import Kubelet, merge
from tests.support.waiting import PATIENCE_SECONDS

NAMESPACE = "sweeps"
IMAGE = "registry.example.com/sweeps:1"
TOKEN = "canary-token-of-the-cluster"
SCHEMA = "1.34"
"""Kubernetes release whose schema pods are checked against."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", re.ASCII)


class Refusal(Exception):  # noqa: N818
    """An answer other than 2xx."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


@dataclass
class Fault:
    """What goes wrong with requests like these.

    Args:
        status: What is answered.
        pattern: Of method and path, as `GET /api/v1/namespaces/x/pods/y`.
        until: By the monotonic clock; and
        left: how often.
        after: Whether the request is carried out all the same: the answer alone is lost.
    """

    status: int
    pattern: str
    until: float
    left: float
    after: bool = False
    hits: int = 0

    def strikes(self, request: str) -> bool:
        if self.left <= 0 or time.monotonic() > self.until or not re.search(self.pattern, request):
            return False
        self.left -= 1
        self.hits += 1
        return True


@dataclass
class KubernetesApi:
    """The server's state; every access under the lock."""

    rules: frozenset[tuple[str, str]] | None = None
    pods: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    secrets: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    config_maps: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    streams: int = 0
    url: str = ""
    _version: int = 0

    def __post_init__(self) -> None:
        self.kubelet = Kubelet(self)

    # for tests

    def kubeconfig(self, path: Path, token: str = TOKEN) -> str:
        """Write a kubeconfig and return its path."""
        name = {"name": "emulated"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{**name, "cluster": {"server": self.url}}],
            "users": [{**name, "user": {"token": token}}],
            "contexts": [{**name, "context": {"cluster": "emulated", "user": "emulated"}}],
            "current-context": "emulated",
        }
        path.write_text(json.dumps(config))
        return str(path)

    def fail(
        self, status: int, pattern: str = ".", *, times: float = 1e9,
        after: bool = False,
    ) -> Fault:  # fmt: skip
        """Answer requests like these with an error, so often or until the fault says."""
        fault = Fault(status, pattern, math.inf, times, after)
        self.faults.append(fault)
        return fault

    def drop_streams(self) -> None:
        """Cut every log and watch that is being followed."""
        self.streams += 1

    def pod_names(self) -> list[str]:
        with self.lock:
            return [name for _, name in self.pods]

    def wait_for(self, what: Any) -> Any:
        """Wait until `what(pods)` is true, and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with self.lock:
                if found := what(list(self.pods.values())):
                    return found
            time.sleep(0.1)
        raise TimeoutError(json.dumps(list(self.pods.values()))[:3000])

    # the resources

    def create(self, namespace: str, pod: dict[str, Any]) -> dict[str, Any]:
        refuse_invalid(pod)
        metadata = pod["metadata"]
        key = (namespace, metadata["name"])
        with self.lock:
            if key in self.pods:
                raise Refusal(409, "AlreadyExists", f'pods "{key[1]}" already exists')
            metadata |= {
                "namespace": namespace,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": timestamp(),
            }
            pod["status"] = {"phase": "Pending", "qosClass": "Burstable", "conditions": []}
            self.created.append(json.loads(json.dumps(pod)))
            self.pods[key] = pod
            self._touch(pod)
            self.kubelet.take(pod)
            return dict(pod)

    def get(self, namespace: str, name: str) -> dict[str, Any]:
        with self.lock:
            try:
                return self.pods[namespace, name]
            except KeyError:
                raise Refusal(404, "NotFound", f'pods "{name}" not found') from None

    def select(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        with self.lock:
            found = [pod for (where, _), pod in self.pods.items() if where == namespace]
            return [pod for pod in found if selects(selector, pod["metadata"].get("labels", {}))]

    def patch(self, namespace: str, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            pod = self.get(namespace, name)
            merge(pod, changes)
            self._touch(pod)
            return pod

    def set_status(self, pod: dict[str, Any], **changes: Any) -> None:
        """For the kubelet: a pod that is gone meanwhile keeps its status for itself."""
        with self.lock:
            merge(pod["status"], changes)
            self._touch(pod)

    def delete(self, namespace: str, name: str, grace_seconds: float | None) -> dict[str, Any]:
        with self.lock:
            pod = self.get(namespace, name)
            if grace_seconds is None:
                grace_seconds = pod["spec"].get("terminationGracePeriodSeconds", 30)
            pod["metadata"] |= {
                "deletionTimestamp": timestamp(),
                "deletionGracePeriodSeconds": int(grace_seconds),
            }
            self._touch(pod)
        self.kubelet.stop(pod, grace_seconds)
        return pod

    def remove(self, pod: dict[str, Any]) -> None:
        with self.lock:
            key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
            if self.pods.get(key) is pod:
                del self.pods[key]
                self._touch(pod)

    def report(
        self, pod: Mapping[str, Any], reason: str, message: str, kind: str = "Normal"
    ) -> None:
        """Add an event of a pod."""
        with self.lock:
            self._version += 1
            metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
            self.events.append(
                {
                    "kind": "Event",
                    "apiVersion": "v1",
                    "metadata": {
                        "name": f"{metadata['name']}.{self._version}",
                        "namespace": metadata["namespace"],
                        "uid": str(uuid.uuid4()),
                        "resourceVersion": str(self._version),
                    },
                    "involvedObject": {"kind": "Pod", **metadata},
                    "reason": reason,
                    "message": message,
                    "type": kind,
                    "firstTimestamp": timestamp(),
                    "lastTimestamp": timestamp(),
                }
            )

    def events_of(self, selector: str, after: int = 0) -> list[dict[str, Any]]:
        name = selector.removeprefix("involvedObject.name=")
        with self.lock:
            return [
                event
                for event in self.events
                if event["involvedObject"]["name"] == name
                and int(event["metadata"]["resourceVersion"]) > after
            ]

    @property
    def version(self) -> int:
        return self._version

    def _touch(self, pod: dict[str, Any]) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rules_of(manifests: Iterable[Mapping[str, Any]]) -> frozenset[tuple[str, str]]:
    """Return what Roles allow: pairs of verb and resource."""
    return frozenset(
        (verb, resource)
        for manifest in manifests
        if manifest["kind"] in ("Role", "ClusterRole")
        for rule in manifest["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    )


def refuse_invalid(pod: dict[str, Any]) -> None:
    """Check what the schema says, and the rules of a real API server that a pod of ours may break."""
    wrong: list[str] = []
    try:
        kubernetes_validate.validate(pod, SCHEMA, strict=True)
    except kubernetes_validate.ValidationError as error:
        wrong.append(str(error)[:500])
    metadata, spec = pod["metadata"], pod["spec"]
    if not _NAME.fullmatch(metadata.get("name", "")):
        wrong.append(f"metadata.name: {metadata.get('name')!r}")
    for key, value in (metadata.get("labels") or {}).items():
        prefix, _, last = key.rpartition("/")
        if not _LABEL.fullmatch(value) or not _LABEL.fullmatch(last) or len(prefix) > 253:
            wrong.append(f"metadata.labels: {key}={value}")
    names = [volume["name"] for volume in spec.get("volumes") or ()]
    for container in spec["containers"]:
        paths = [mount["mountPath"] for mount in container.get("volumeMounts") or ()]
        wrong += [f"{path} is mounted twice" for path in paths if paths.count(path) > 1]
        wrong += [
            f"no volume {mount['name']}"
            for mount in container.get("volumeMounts") or ()
            if mount["name"] not in names
        ]
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in set(requests) | set(limits):
            is_extended = "/" in name
            if is_extended and requests.get(name) != limits.get(name):
                wrong.append(f"{name}: request and limit of an extended resource must be equal")
    wrong += [f"volume {name} twice" for name in names if names.count(name) > 1]
    if wrong:
        message = f'Pod "{metadata.get("name")}" is invalid: {"; ".join(wrong)}'
        raise Refusal(422, "Invalid", message)


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    for term in filter(None, selector.split(",")):
        if term.startswith("!"):
            fits = term[1:] not in labels
        elif "!=" in term:
            key, _, value = term.partition("!=")
            fits = labels.get(key) != value
        else:
            key, _, value = term.replace("==", "=").partition("=")
            fits = labels.get(key) == value
        if not fits:
            return False
    return True


def base(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runner's container in a pod's spec."""
    return next(c for c in pod["spec"]["containers"] if c["name"] == "base")
