"""An emulated Kubernetes API server on 127.0.0.1, as far as a `KubernetesPodOperator` uses one.

    with cluster() as api:                         see server.py
        api.kubeconfig(path)                       a kubeconfig with a token that is checked
        api.fail(500).until = …                    answers 500 until then; every other status likewise
        api.fail(CUT)                              breaks the connection
        api.restart()                              is gone, then accepts no token, then lacks some roles
        api.drop_streams()                         cuts every log and watch that is being followed
        api.kubelet.evict(api.pod_names()[0])      what a node may do to a pod: see kubelet.py

It keeps pods as JSON, checks and completes what is created as the real one does (admission.py), and
allows only what the roles it is given allow. (kmock 0.8 was looked at: it keeps no resource versions,
knows no label selectors, no logs, no graceful deletion, and runs nothing.) A full control plane and a
real kubelet did things that this one once did not; it has learned them.
"""

import json
import math
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.kubernetes.admission import Refusal, default, refuse_invalid, refuse_unknown
from tests.support.kubernetes.container import timestamp
from tests.support.kubernetes.kubelet import Kubelet, merge
from tests.support.waiting import PATIENCE_SECONDS

NAMESPACE = "sweeps"
IMAGE = "registry.example.com/sweeps:1"
TOKEN = "canary-token-of-the-cluster"
ACCOUNTS = frozenset({"default", "runner", "tune-restore-runner"})
"""Service accounts of the namespace."""

USER = "system:serviceaccount:airflow:airflow-worker"


CUT = 0
"""In the place of a status: the connection is cut."""


@dataclass
class Fault:
    """What goes wrong with requests like these.

    Args:
        status: What is answered; `CUT` for a connection that is.
        pattern: Of method and path, as `GET /api/v1/namespaces/x/pods/y`.
        left: How often.
        body: What is answered; None for what an API server answers with that status.
        after: Whether the request is carried out all the same: the answer alone is lost.
        until: Until when, by the monotonic clock.
        strikes_once: Whether it stays after that until it has struck: a busy client may ask late.
        follows: It begins when this one is over.
    """

    status: int
    pattern: str = "."
    left: float = math.inf
    body: str | None = None
    after: bool = False
    until: float = math.inf
    strikes_once: bool = False
    follows: "Fault | None" = None
    hits: int = 0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until and (self.hits > 0 or not self.strikes_once)

    def strikes(self, request: str) -> bool:
        if self.left <= 0 or self.is_over:
            return False
        if self.follows is not None and not self.follows.is_over:
            return False
        if not re.search(self.pattern, request):
            return False
        self.left -= 1
        self.hits += 1
        return True


@dataclass
class KubernetesApi:
    """The server's state; every access under the lock.

    Attributes:
        accounts: The service accounts there are; and
        priorities: the priority classes.
        turns: Faults for one request after another, None for none.
        token: The one that is known.
        retry_after: Seconds that a throttled client has to wait.
        finalizers: Put on every pod that is created, as a webhook of Kueue's does.
    """

    rules: frozenset[tuple[str, str]] | None = None
    pods: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    secrets: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    config_maps: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    turns: Iterator[Fault | None] | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    accounts: set[str] = field(default_factory=lambda: set(ACCOUNTS))
    priorities: set[str] = field(default_factory=set)
    finalizers: list[str] = field(default_factory=list)
    token: str = TOKEN
    retry_after: str = "1"
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

    def fail(self, status: int, pattern: str = ".", **details: Any) -> Fault:
        """Answer requests like these with an error, as often or as long as the fault is set."""
        fault = Fault(status, pattern, **details)
        self.faults.append(fault)
        return fault

    def struck_by(self, request: str) -> Fault | None:
        """Return what goes wrong with a request; None if nothing does."""
        with self.lock:
            turn = next(self.turns, None) if self.turns is not None else None
            return turn or next((fault for fault in self.faults if fault.strikes(request)), None)

    def restart(self, seconds: float = 1.0) -> tuple[Fault, ...]:
        """Be away for some seconds, then accept no token, then no role, then not all of the roles.

        A real one does the last three within its first second or two, before its caches are filled.
        Each of the first three meets a request, however late it comes.
        """
        ends = [time.monotonic() + n * seconds for n in range(1, 5)]
        away = Fault(CUT, until=ends[0], strikes_once=True)
        unknown = Fault(401, until=ends[1], strikes_once=True, follows=away)
        forbidden = Fault(403, until=ends[2], strikes_once=True, follows=unknown)
        half = Fault(403, "(POST|DELETE|PATCH|/log|/events)", until=ends[3], follows=forbidden)
        self.drop_streams()
        self.faults += [away, unknown, forbidden, half]
        return away, unknown, forbidden, half

    def recover(self) -> None:
        """Be well again, and forget what was asked."""
        self.faults.clear()
        self.turns = None
        self.created.clear()
        self.requests.clear()
        self.finalizers.clear()
        self.kubelet.recover()

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

    def create(
        self, namespace: str, pod: dict[str, Any], *, dry_run: bool = False
    ) -> dict[str, Any]:
        metadata = pod["metadata"]
        metadata["namespace"] = namespace
        default(pod)
        refuse_unknown(pod, self.accounts, self.priorities)
        refuse_invalid(pod)
        key = (namespace, metadata["name"])
        with self.lock:
            if key in self.pods:
                being = "object is being deleted: " * (
                    "deletionTimestamp" in self.pods[key]["metadata"]
                )
                message = f'{being}pods "{key[1]}" already exists'
                raise Refusal(409, "AlreadyExists", message, key[1])
            if self.finalizers:
                metadata["finalizers"] = [*metadata.get("finalizers", ()), *self.finalizers]
            metadata |= {
                "uid": str(uuid.uuid4()),
                "creationTimestamp": timestamp(),
            }
            pod["status"] = {"phase": "Pending", "qosClass": "Burstable"}
            if dry_run:
                return pod
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
                raise Refusal(404, "NotFound", f'pods "{name}" not found', name) from None

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
            if "nodeName" not in pod["spec"] or pod["status"]["phase"] in ("Succeeded", "Failed"):
                grace_seconds = 0
            ends_at = datetime.now(UTC) + timedelta(seconds=grace_seconds)
            pod["metadata"] |= {
                "deletionTimestamp": ends_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "deletionGracePeriodSeconds": int(grace_seconds),
            }
            self._touch(pod)
        self.kubelet.stop(pod, grace_seconds)
        return pod

    def refuse_changed(self, namespace: str, name: str, conditions: Mapping[str, str]) -> None:
        """Refuse a deletion of a pod that is not any more as it was read."""
        with self.lock:
            metadata = self.get(namespace, name)["metadata"]
            for key, value in conditions.items():
                if metadata.get(key) != value:
                    message = f"Precondition failed: {key} in precondition: {value}"
                    raise Refusal(409, "Conflict", message, name)

    def remove(self, pod: dict[str, Any]) -> None:
        """Remove a pod that was deleted and has ended, unless a finalizer still holds it."""
        with self.lock:
            key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
            if self.pods.get(key) is pod and not pod["metadata"].get("finalizers"):
                del self.pods[key]
                self._touch(pod)

    def finalize(self, name: str) -> None:
        """Remove the finalizers of a pod, as their owner does in the end."""
        with self.lock:
            pod = self.get(NAMESPACE, name)
            pod["metadata"].pop("finalizers", None)
            if self.kubelet.life(name).over.is_set() and "deletionTimestamp" in pod["metadata"]:
                self.remove(pod)

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
