"""HTTP in front of `api.py`: routes, tokens, roles, streams, and what goes wrong there."""

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support import ROOT
from tests.support.kubernetes.admission import Refusal
from tests.support.kubernetes.api import CUT, IMAGE, USER, Fault, KubernetesApi, rules_of
from tests.support.ray.real_restore import TRAINABLE_ENV

RBAC = ROOT / "docs" / "kubernetes" / "rbac.yaml"

_PATH = re.compile(
    r"/api/v1/namespaces/(?P<namespace>[^/]+)/(?P<kind>pods|events)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log))?"
)


def make_handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client has gone
                self.handle_it()

        def handle_it(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {self.path}"
            fault = api.struck_by(request)
            try:
                answer = None if fault and not fault.after else self.route(body)
                if fault is not None:
                    api.requests.append((request, fault.status))
                    self.go_wrong(fault)
                    return
            except Refusal as refusal:
                api.requests.append((request, refusal.status))
                self.answer(refusal.status, status_of(refusal))
                return
            api.requests.append((request, 200))
            if answer is not None:
                self.answer(200, answer)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any

        def go_wrong(self, fault: Fault) -> None:
            if fault.status == CUT:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(2)
            elif fault.body is not None:
                self.send(fault.status, fault.body.encode(), "text/html")
            else:
                self.answer(fault.status, status_of(self.usual_refusal(fault.status)))

        def usual_refusal(self, status: int) -> Refusal:
            """Return what an API server answers with a status, to a request like this."""
            match = _PATH.fullmatch(urlsplit(self.path).path)
            kind, name = (match["kind"], match["name"] or "") if match else ("pods", "")
            if status == 401:
                return Refusal(status, "Unauthorized", "Unauthorized")
            if status == 403:
                return self.forbidden(match)
            if status == 404:
                message = "the server could not find the requested resource"
                return Refusal(status, "NotFound", message, kind=kind)
            reasons = {409: "Conflict", 429: "TooManyRequests", 503: "ServiceUnavailable"}
            reason = reasons.get(status, "InternalError")
            return Refusal(status, reason, "the cluster is not well", name, kind)

        def forbidden(self, match: re.Match[str] | None) -> Refusal:
            kind, name, sub = (
                (match["kind"], match["name"], match["sub"]) if match else ("", "", "")
            )
            resource = f"{kind}/{sub}" if sub else kind
            verb = self.verb(name)
            about = f'{kind} "{name}"' if name else kind
            return Refusal(
                403,
                "Forbidden",
                f'{about} is forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group '
                f'"" in the namespace "{match["namespace"] if match else ""}"',
                name or "",
                kind,
            )

        def route(self, raw: bytes) -> Any:
            body = json.loads(raw) if raw else {}
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            if self.headers.get("Authorization") != f"Bearer {api.token}":
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
            resource = f"{kind}/{sub}" if sub else kind
            if api.rules is not None and (self.verb(name, watches), resource) not in api.rules:
                raise self.forbidden(match)
            if kind == "events":
                return self.watch_events(query) if watches else self.list_events(query)
            if sub:
                return self.log(namespace, name, query)
            match self.command:
                case "POST":
                    return api.create(namespace, body, dry_run="dryRun" in query)
                case "PATCH":
                    return api.patch(namespace, name, body)
                case "DELETE":
                    api.refuse_changed(namespace, name, body.get("preconditions") or {})
                    grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
                    return api.delete(namespace, name, None if grace is None else float(grace))
            if name:
                return api.get(namespace, name)
            items = api.select(namespace, query.get("labelSelector", ""))
            return self.as_list("PodList", items)

        def verb(self, name: str | None, watches: bool = False) -> str:  # noqa: FBT001, FBT002
            verbs = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}
            reads = "watch" if watches else "get" if name else "list"
            return verbs.get(self.command, reads)

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
            container = self.container_of_log(pod, query.get("container"))
            if not (api.kubelet.shows_logs and api.kubelet.is_reachable.is_set()):
                raise Refusal(
                    500,
                    "InternalError",
                    f'Get "https://127.0.0.1:10250/containerLogs/{namespace}/{name}/{container}": dial '
                    "tcp 127.0.0.1:10250: connect: no route to host",
                )
            since = float(query.get("sinceSeconds") or 1e12)
            oldest = datetime.now(UTC).timestamp() - since
            stamped = query.get("timestamps") in ("true", "True")
            follows = query.get("follow") in ("true", "True")
            with self.streaming("text/plain") as send:
                for at, line in api.kubelet.lines(pod, container, follows=follows):
                    if line is None:
                        send("")
                    elif at >= oldest:
                        when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
                        send(f"{when} {line}\n" if stamped else f"{line}\n")

        def container_of_log(self, pod: dict[str, Any], container: str | None) -> str:
            """Return whose log is asked for; refuse, as an API server does, if there is none yet."""
            name = pod["metadata"]["name"]
            names = [spec["name"] for spec in pod["spec"]["containers"]]
            if container is None and len(names) > 1:
                message = (
                    f"a container name must be specified for pod {name}, choose one of: {names}"
                )
                raise Refusal(400, "BadRequest", message)
            container = container or names[0]
            if container not in names:
                message = f"container {container} is not valid for pod {name}"
                raise Refusal(400, "BadRequest", message)
            if "nodeName" not in pod["spec"]:
                raise Refusal(400, "BadRequest", f"pod {name} does not have a host assigned")
            statuses = pod["status"].get("containerStatuses") or ()
            states = [status["state"] for status in statuses if status["name"] == container]
            if not states or "waiting" in states[0]:
                why = states[0]["waiting"]["reason"] if states else "ContainerCreating"
                message = f'container "{container}" in pod "{name}" is waiting to start: {why}'
                raise Refusal(400, "BadRequest", message)
            return container

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

        def answer(self, status: int, value: Any) -> None:
            with api.lock:
                body = json.dumps(value).encode()
            self.send(status, body, "application/json")

        def send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            if status in (429, 503):
                self.send_header("Retry-After", api.retry_after)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


def status_of(refusal: Refusal) -> dict[str, Any]:
    """Return a refusal as an API server writes it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": refusal.reason,
        "message": refusal.message,
        "details": refusal.details,
        "code": refusal.status,
    }


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
