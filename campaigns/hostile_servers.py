"""Dashboards and API servers that answer anything: a thread on 127.0.0.1, and our clients.

One answer is bytes, whatever was asked: mutated JSON in a whole answer, a status or a header that makes
no sense, a body that is packed, cut off, too long or of another length than it says, or one that comes
byte by byte for as long as the client listens.
"""

import asyncio
import contextlib
import gzip
import json
import random
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.hooks import pod_logs, pods, pods_async
from airflow_tune_restore.hooks.pods import PatientKubernetesHook
from airflow_tune_restore.hooks.pods_async import PatientAsyncKubernetesHook
from airflow_tune_restore.launch.kubernetes import api, bounded_client, named_pods
from airflow_tune_restore.launch.kubernetes.api import (
    describe_error,
    describe_outage,
    is_api_error,
    is_gone,
    is_mistake,
    is_refusal,
    is_taken,
)
from airflow_tune_restore.launch.kubernetes.container_log import ContainerLog
from airflow_tune_restore.launch.kubernetes.named_pods import NamedPods
from airflow_tune_restore.launch.kubernetes.pod_exit import PodWatch, read_pod_end
from airflow_tune_restore.launch.kubernetes.pod_start import has_started, why_not_started
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.launch.ray import jobs_api
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.job_log import JobLog
from airflow_tune_restore.launch.ray.jobs_api import AsyncRayJobs, RayJob, RayJobs
from campaigns import guards
from campaigns import hostile_inputs as inputs
from campaigns.hostile_lab import Lab, assert_shown, output_of
from tests.support.kubernetes.api import KubernetesApi

DEADLINE_SECONDS = 0.3
"""What every limit on time of our clients is set to here."""

DRIPS, DRIP_SECONDS = 200, 0.05
"""A client that has not hung up after so many bytes, one every so often, never will."""

MOST_LINES = 50
PACKED_BYTES = 1536 * 1024**2
"""What a packed body of some megabytes holds: more than is left of the child's address space."""


class Server:
    """Answers every connection with the same bytes.

    Attributes:
        answer: What is sent to each.
        drips: Whether the last byte of it is repeated until the client hangs up.
        dripped: How many bytes were sent in that way.
    """

    def __init__(self) -> None:
        self.answer, self.drips, self.dripped = b"", False, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        guards.SERVERS.add(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5.0)
                _read_request(connection)
                connection.sendall(self.answer)
                self._drip(connection)

    def _drip(self, connection: socket.socket) -> None:
        while self.drips and self.dripped < DRIPS:
            connection.sendall(self.answer[-1:])
            self.dripped += 1
            time.sleep(DRIP_SECONDS)


def _read_request(connection: socket.socket) -> None:
    """Read all of it: what is not read when we close would reset the connection, answer and all."""
    size = 0
    with connection.makefile("rb") as asked:
        while (line := asked.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        asked.read(size)


@cache
def server() -> Server:
    """Return the one server of this process; all limits on time are short from now on."""
    for module in (jobs_api, api, bounded_client, named_pods, pod_logs, pods, pods_async):
        for name, value in vars(module).items():
            if name.endswith("_SECONDS") and isinstance(value, float | int):
                setattr(module, name, min(value, DEADLINE_SECONDS))
    for defaults in (api.Patience.__init__.__kwdefaults__,):
        defaults["seconds"] = 0.0  # it asks once
    named_pods.REFUSAL_SECONDS = 0.0
    return Server()


# What is answered.

_JOB = {
    "type": "SUBMISSION", "job_id": "01000000", "submission_id": "j", "status": "RUNNING",
    "entrypoint": "python -m airflow_tune_restore.runner run", "message": "it runs",
    "metadata": {"a": "b"}, "driver_info": {"id": "1", "pid": "2"},
    "start_time": 1764000000000, "driver_exit_code": None,
}  # fmt: skip
_POD = {
    "kind": "Pod", "apiVersion": "v1",
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"},
                 "creationTimestamp": "2026-11-24T13:51:40Z", "deletionGracePeriodSeconds": 30},
    "spec": {"nodeName": "node", "terminationGracePeriodSeconds": 30,
             "containers": [{"name": "base", "image": "i", "resources": {"requests": {"cpu": "1"}}}]},
    "status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
               "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "x"},
                              {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
               "containerStatuses": [{"name": "base", "ready": False, "restartCount": 0, "image": "i",
                    "imageID": "", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
}  # fmt: skip
_STATUS = {
    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
    "message": 'pods "p" not found', "details": {"name": "p", "kind": "pods"}, "code": 404,
}  # fmt: skip

_VERSIONS = ("2.60.0", "2." + "9" * 5000, "9" * 5000 + ".1", "2.60.0\x1b[31m", "2.60" + "x" * 10**6)
_STATUSES = (
    b"0", b"99", b"100", b"101", b"199", b"204", b"206", b"301", b"302", b"304", b"307", b"308", b"400",
    b"401", b"403", b"404", b"409", b"413", b"422", b"429", b"500", b"503", b"599", b"999", b"99999",
    b"-1", b"abc", b"", b"\xff", b"2 00",
)  # fmt: skip
_HEADERS = (
    b"Location: http://127.0.0.1:1/elsewhere", b"Location: \x1b[31m",
    b"Location: //", b"Location: file:///",
    b"Retry-After: 1000000000", b"Retry-After: -1", b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT",
    b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: br",
    b"Content-Encoding: zstd",
    b"Content-Encoding: gzip, gzip, gzip", b"Content-Type: text/html; charset=utf-7",
    b"Content-Type: application/json; charset=hex", b"Content-Type: text/plain; charset=\x00",
    b"Content-Type: application/json; charset=" + b"x" * 5000, b"Content-Type: x/y; charset=undefined",
    b"Content-Type: text/plain; charset=idna", b"Content-Type: text/plain; charset=utf-16",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Content-Length: 1", b"Content-Length: -1", b"Content-Length: 99999999999999999999",
    b"Content-Length: 5, 6", b"Content-Length: abc", b"X: " + b"y" * 100_000, b"No colon", b": nothing",
    b"Folded: a\r\n b", b"Set-Cookie: a=b", b"Connection: upgrade\r\nUpgrade: websocket", b"\xff: \xff",
    b"Server: \x1b]0;title\x07",
)  # fmt: skip


def _answer(rng: random.Random, genuine: Any, status: bytes = b"200") -> bytes:
    """Return what a server may send in the place of a genuine answer."""
    body = json.dumps(genuine).encode()
    if rng.random() < 0.75:
        body = inputs.hostile_json(rng, body)
    status = rng.choice(_STATUSES) if rng.random() < 0.15 else status
    headers = [b"Content-Type: application/json"]
    if rng.random() < 0.85:
        headers.append(b"Content-Length: %d" % len(body))
    if rng.random() < 0.2:
        body = _packed(rng, body, headers)
    for _ in range(rng.choice((0, 0, 0, 1, 2, 3))):
        headers.insert(rng.randrange(len(headers) + 1), rng.choice(_HEADERS))
    if rng.random() < 0.01:
        headers = [b"X%d: y" % number for number in range(20_000)]
    line = b"HTTP/1.1 " + status + rng.choice((b" OK", b"", b" \xff", b" " + b"x" * 5000))
    whole = b"\r\n".join((line, *headers, b"", body))
    return inputs.mutate_bytes(rng, whole) if rng.random() < 0.1 else whole


def _packed(rng: random.Random, body: bytes, headers: list[bytes]) -> bytes:
    headers[:] = [name for name in headers if not name.startswith(b"Content-Length")]
    if rng.random() < 0.02:
        headers.append(b"Content-Encoding: gzip")
        return _bomb()
    if rng.random() < 0.5:
        headers.append(b"Content-Encoding: " + rng.choice((b"gzip", b"x-gzip", b"deflate")))
        return rng.choice((gzip.compress(body), zlib.compress(body), body))
    headers.append(b"Transfer-Encoding: chunked")
    size = rng.choice((b"%x" % len(body), b"ffffffffffffffff", b"-1", b"", b"0", b"g", b"1;a=b"))
    return (
        size + b"\r\n" + body + rng.choice((b"\r\n0\r\n\r\n", b"", b"\r\n0\r\nTrailer: x\r\n\r\n"))
    )


@cache
def _bomb() -> bytes:
    """Return gzip of blanks: one block of it is packed, and stands there again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = 8 * 1024**2
    block = packer.compress(b" " * size) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * (PACKED_BYTES // size)


def _prepare(rng: random.Random, lab: Lab, genuine: Any, status: bytes = b"200") -> Server:
    """Let the server answer something; return it."""
    asked = server()
    asked.answer = lab.keep("answer", _answer(rng, genuine, status))
    asked.drips, asked.dripped = rng.random() < 0.01, 0
    if asked.drips:
        asked.answer = rng.choice(
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n ",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1",
                b"HTTP/1.1 200 OK\r\nX: a",
                b"H",
            )
        )
    return asked


def _check_hung_up(asked: Server) -> None:
    assert asked.dripped < DRIPS, "a byte now and then holds us for ever"


# Who asks.


def dashboards(rng: random.Random, lab: Lab) -> None:
    """A dashboard, asked by a worker."""
    question, genuine = rng.choice(_QUESTIONS)
    asked = _prepare(rng, lab, genuine)
    jobs = RayJobs(Cluster(address=f"http://127.0.0.1:{asked.port}", token="t0ken"))  # noqa: S106
    try:
        _check_told(question(jobs))
    except TuneRestoreError as error:
        _check_error(error)
    _check_hung_up(asked)


def _logs(jobs: RayJobs) -> list[str]:
    log = JobLog(results=None)
    jobs.read_log("j", log)
    return log.newest.take("see the log")


_QUESTIONS: tuple[tuple[Callable[[RayJobs], Any], Any], ...] = (
    *((lambda jobs: jobs.version(), {"ray_version": version}) for version in _VERSIONS),
    *((lambda jobs: jobs.find("j"), _JOB) for _ in range(3)),
    *((_logs, {"logs": "a line\nand another\n"}) for _ in range(3)),
    (lambda jobs: jobs.list_all(), [_JOB, _JOB]),
    (lambda jobs: jobs.submit({"submission_id": "j"}), {"submission_id": "j"}),
    (lambda jobs: jobs.stop("j"), {"stopped": True}),
    (lambda jobs: jobs.has_package("x"), {}),
    (lambda jobs: jobs.upload_package("x", b"code"), {}),
)  # fmt: skip


def _check_told(told: Any) -> None:
    """Check what is made of an answer where it is shown."""
    if isinstance(told, RayJob):
        json.dumps(told.status)
    if isinstance(told, str):
        assert_shown(told)
    if isinstance(told, list):
        for line in told[:MOST_LINES]:
            assert_shown(describe_line(line, None) if isinstance(line, str) else line.status)


def _check_error(error: TuneRestoreError) -> None:
    output_of(lambda: output.print_error(error))
    assert_shown(str(error))


def triggerers(rng: random.Random, lab: Lab) -> None:
    """A dashboard, asked by a triggerer."""
    question, genuine = rng.choice(_ASYNC_QUESTIONS)
    asked = _prepare(rng, lab, genuine)
    try:
        _check_told(asyncio.run(_ask(asked, question)))
    except TuneRestoreError as error:
        _check_error(error)
    _check_hung_up(asked)


async def _ask(asked: Server, question: Callable[[AsyncRayJobs], Awaitable[Any]]) -> Any:
    jobs = AsyncRayJobs(Cluster(address=f"http://127.0.0.1:{asked.port}"))
    try:
        return await question(jobs)
    finally:
        await jobs.close()


async def _logs_async(jobs: AsyncRayJobs) -> list[str]:
    log = JobLog(results=None, most=1024**2)
    await jobs.read_log("j", log)
    return log.newest.take("see the log")


_ASYNC_QUESTIONS: tuple[tuple[Callable[[AsyncRayJobs], Awaitable[Any]], Any], ...] = (
    (lambda jobs: jobs.list_all(), [_JOB, _JOB]),
    (_logs_async, {"logs": "a line\nand another\n"}),
    (lambda jobs: jobs.stop("j"), {"stopped": True}),
)


def api_servers(rng: random.Random, lab: Lab) -> None:
    """A Kubernetes API server, asked for a pod by a worker or a triggerer."""
    genuine, status = rng.choice(
        ((_POD, b"200"), (_POD, b"200"), (_STATUS, b"404"), (_STATUS, b"409"))
    )
    asked = _prepare(rng, lab, genuine, status)
    question = rng.choice(_POD_QUESTIONS)
    try:
        told = question(_kubeconfig(lab, asked))
    except Exception as error:
        if not isinstance(error, TuneRestoreError) and not is_api_error(error):
            raise
        assert_shown(describe_error(error))
        assert_shown(describe_outage(error))
        for tell in (is_refusal, is_gone):
            tell(error, "p")
        _ = is_taken(error), is_mistake(error)
    else:
        if isinstance(told, list):
            _check_told(told)
        elif hasattr(told, "to_dict"):
            _check_pod(told.to_dict(serialize=True))
    _check_hung_up(asked)


def _check_pod(pod: dict[str, Any]) -> None:
    """Check what is made of a pod."""
    end = read_pod_end(pod, "base") or PodWatch("base").look(pod)
    if end is not None:
        assert_shown(end.message)
        json.dumps(end.exit_code)
    has_started(pod, "base")
    assert_shown(why_not_started(pod, ()))


def _kubeconfig(lab: Lab, asked: Server) -> str:
    api = KubernetesApi(rules=None)
    api.url = f"http://127.0.0.1:{asked.port}"
    return api.kubeconfig(Path(lab.scratch, "kubeconfig.json"))


def _worker(config: str) -> PatientKubernetesHook:
    return PatientKubernetesHook(conn_id=None, config_file=config)


def _named(config: str) -> NamedPods:
    hook = _worker(config)
    watch = PodWatch("base")
    return NamedPods(core=hook.core_v1_client, namespace="n", watch=watch, renew=hook.renew)


def _pod() -> Any:
    from kubernetes.client import models

    return models.V1Pod(
        metadata=models.V1ObjectMeta(name="p", namespace="n", uid="u", resource_version="7"),
        spec=models.V1PodSpec(containers=[models.V1Container(name="base")]),
    )


def _triggerer(config: str) -> PatientAsyncKubernetesHook:
    return PatientAsyncKubernetesHook(
        conn_id=None, config_dict=json.loads(Path(config).read_text())
    )


async def _pod_log(hook: PatientAsyncKubernetesHook) -> list[str]:
    log = ContainerLog(lambda _at: True)
    await hook.read_log("p", "n", "base", None, log)
    return log.newest.take("see the log")


_POD_QUESTIONS: tuple[Callable[[str], Any], ...] = (
    lambda config: _worker(config).get_pod("p", "n"),
    lambda config: _named(config).create(_pod()),
    lambda config: _named(config).delete("p"),
    lambda config: _named(config).delete_unchanged(_pod()),
    lambda config: asyncio.run(_triggerer(config).get_pod("p", "n")),
    lambda config: asyncio.run(_triggerer(config).delete_pod("p", "n")),
    lambda config: asyncio.run(_pod_log(_triggerer(config))),
)
