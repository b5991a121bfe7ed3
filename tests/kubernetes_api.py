"""A Kubernetes API server of our own, on 127.0.0.1, as far as a `KubernetesPodOperator` speaks to one.

    with kubernetes_api(kubelet_images) as api:
        api.kubeconfig(path)                       a kubeconfig with a token that is checked
        api.fail(500, seconds=20)                  answers 500 for a while; 429 and 409 likewise
        api.drop_streams()                         cuts every log and watch that is being followed
        api.kubelet.evict(api.pod_names()[0])      what a node may do to a pod: see tests/kubelet.py

It keeps pods as JSON, checks what is created against the published schema and the rules an API server
adds to it, and lets only do what the roles it is given allow. (kmock 0.8 was looked at: it keeps no
resource versions, knows no label selectors, no logs, no graceful deletion, and runs nothing.)
"""

import contextlib
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from tests.experiments import ROOT
from tests.kubelet import Kubelet, merge
from tests.restoring import TRAINABLE_ENV

NAMESPACE = "sweeps"
IMAGE = "registry.example.com/sweeps:1"
RBAC = ROOT / "docs" / "kubernetes" / "rbac.yaml"
TOKEN = "canary-token-of-the-cluster"
SCHEMA = "1.34"
"""Kubernetes release whose schema pods are checked against."""

_PATH = re.compile(
    r"/api/v1/namespaces/(?P<namespace>[^/]+)/(?P<kind>pods|events)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log))?"
)
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
        self, status: int, pattern: str = ".", *, seconds: float = 1e9, times: float = 1e9,
        after: bool = False,
    ) -> Fault:  # fmt: skip
        """Answer requests like these with an error, for so long or so often."""
        fault = Fault(status, pattern, time.monotonic() + seconds, times, after)
        self.faults.append(fault)
        return fault

    def drop_streams(self) -> None:
        """Cut every log and watch that is being followed."""
        self.streams += 1

    def pod_names(self) -> list[str]:
        with self.lock:
            return [name for _, name in self.pods]

    def wait_for(self, what: Any, seconds: float = 180, whom: str = "") -> Any:
        """Wait until `what(pods)` is true, and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self.lock:
                if found := what(list(self.pods.values())):
                    return found
            time.sleep(0.1)
        raise TimeoutError(f"{whom}: {json.dumps(list(self.pods.values()))[:3000]}")

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


def make_handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {self.path}"
            fault = next((f for f in api.faults if f.strikes(request)), None)
            try:
                if fault is not None and not fault.after:
                    raise Refusal(fault.status, "Emulated", "the cluster is not well")
                answer = self.route(json.loads(body) if body else {})
                if fault is not None:
                    raise Refusal(fault.status, "Emulated", "the answer was lost")
            except Refusal as refusal:
                api.requests.append((request, refusal.status))
                self.refuse(refusal)
                return
            except (BrokenPipeError, ConnectionError):
                return
            api.requests.append((request, 200))
            if answer is not None:
                self.answer(200, answer)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any

        def route(self, body: Any) -> Any:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refusal(401, "Unauthorized", "Unauthorized")
            match = _PATH.fullmatch(parts.path)
            if match is None:
                raise Refusal(404, "NotFound", f"no {parts.path} here")
            namespace, kind, name, sub = (
                match["namespace"],
                match["kind"],
                match["name"],
                match["sub"],
            )
            watches = query.get("watch") in ("true", "True", "1")
            self.allow(f"{kind}/{sub}" if sub else kind, name, watches)
            if kind == "events":
                return self.watch_events(query) if watches else self.list_events(query)
            if sub:
                return self.log(namespace, name, query)
            match self.command:
                case "POST":
                    return api.create(namespace, body)
                case "PATCH":
                    return api.patch(namespace, name, body)
                case "DELETE":
                    grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
                    return api.delete(namespace, name, None if grace is None else float(grace))
            if name:
                return api.get(namespace, name)
            items = api.select(namespace, query.get("labelSelector", ""))
            return self.as_list("PodList", items)

        def allow(self, resource: str, name: str | None, watches: bool) -> None:
            verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}.get(
                self.command, "watch" if watches else "get" if name else "list"
            )
            if api.rules is not None and (verb, resource) not in api.rules:
                raise Refusal(403, "Forbidden", f"the role does not allow to {verb} {resource}")

        def as_list(self, kind: str, items: list[dict[str, Any]]) -> dict[str, Any]:
            metadata = {"resourceVersion": str(api.version)}
            return {"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}

        def list_events(self, query: dict[str, str]) -> Any:
            return self.as_list("EventList", api.events_of(query.get("fieldSelector", "")))

        def watch_events(self, query: dict[str, str]) -> None:
            seen = int(query.get("resourceVersion") or 0)
            until = time.monotonic() + float(query.get("timeoutSeconds") or 60)
            with self.streaming("application/json") as send:
                while time.monotonic() < until:
                    for event in api.events_of(query.get("fieldSelector", ""), seen):
                        seen = int(event["metadata"]["resourceVersion"])
                        send(json.dumps({"type": "ADDED", "object": event}) + "\n")
                    time.sleep(0.2)
                    send("")

        def log(self, namespace: str, name: str, query: dict[str, str]) -> None:
            pod = api.get(namespace, name)
            if not (pod["status"].get("containerStatuses") or [{}])[0].get("started"):
                raise Refusal(400, "BadRequest", f'container in pod "{name}" is waiting to start')
            since = float(query.get("sinceSeconds") or 1e12)
            oldest = datetime.now(UTC).timestamp() - since
            stamped = query.get("timestamps") in ("true", "True")
            follows = query.get("follow") in ("true", "True")
            with self.streaming("text/plain") as send:
                for at, line in api.kubelet.lines(pod, follows=follows):
                    if line is None:
                        send("")
                    elif at >= oldest:
                        when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
                        send(f"{when} {line}\n" if stamped else f"{line}\n")

        @contextlib.contextmanager
        def streaming(self, content_type: str) -> Iterator[Any]:
            """Send chunks; when streams are dropped, break the connection in the middle of one."""
            generation = api.streams
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

            def send(text: str) -> None:
                if api.streams != generation:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    raise ConnectionError
                if body := text.encode():
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
                    self.wfile.flush()

            yield send
            self.wfile.write(b"0\r\n\r\n")

        def refuse(self, refusal: Refusal) -> None:
            self.answer(
                refusal.status,
                {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "status": "Failure",
                    "reason": refusal.reason,
                    "message": refusal.message,
                    "code": refusal.status,
                },
            )

        def answer(self, status: int, value: Any) -> None:
            with api.lock:
                body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def kubernetes_api(
    images: Mapping[str, Mapping[str, str]], *, rules: frozenset[tuple[str, str]] | None = None
) -> Iterator[KubernetesApi]:
    """Serve a cluster with one node, which knows these images: the variables of their processes."""
    api = KubernetesApi(rules=rules)
    api.kubelet.images = {name: dict(env) for name, env in images.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(api))
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.drop_streams()
        server.shutdown()
        server.server_close()
        api.kubelet.shut_down()


@contextlib.contextmanager
def cluster(**image_env: str) -> Iterator[KubernetesApi]:
    """Serve a cluster that allows what the roles in our documentation do, and nothing else."""
    env = {
        **TRAINABLE_ENV,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": ROOT.as_posix(),
        "AWS_EC2_METADATA_DISABLED": "true",
        "TUNE_TEST_HEALED": "1",
        **image_env,
    }
    rules = rules_of(yaml.safe_load_all(RBAC.read_text()))
    with kubernetes_api({IMAGE: env}, rules=rules) as api:
        yield api


def base(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runner's container in a pod's spec."""
    return next(c for c in pod["spec"]["containers"] if c["name"] == "base")
