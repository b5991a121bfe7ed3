"""Stands in for the dashboard of a Ray cluster, over HTTP: for what a real head does not do on demand.

A real head runs in `tests/executor`.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "t0ken"


class JobsServer(ThreadingHTTPServer):
    """A dashboard whose jobs do what a test sets.

    Attributes:
        jobs: The jobs by submission id.
        packages: The packages by name.
        stopped: Ids of jobs for which a stop was requested.
        deleted: Ids of jobs for which a deletion was requested.
        token: The token that is accepted.
        broken: Answers everything with 503.
        unrouted: Answers everything with 404, as a proxy that does not know its cluster.
        refused: How often it did so.
        refusal: The answer to a submission, with status 400; "" to accept it.
        fault: The same, with status 500.
        looks: How often a job or all jobs were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.stopped: list[str] = []
        self.deleted: list[str] = []
        self.posted: list[dict[str, Any]] = []
        self.token = TOKEN
        self.broken = False
        self.unrouted = False
        self.refused = 0
        self.refusal = ""
        self.fault = ""
        self.looks = 0
        self.log = ""

    def end_job(self, job_id: str, status: str = "SUCCEEDED", message: str = "") -> None:
        """End a job."""
        self.jobs[job_id] |= {"status": status, "message": message}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON of an answer."""
        kind, _, rest = path.removeprefix("/api/").partition("/")
        job_id, _, action = rest.partition("/")
        if kind == "version":
            return 200, {"ray_version": "2.60.0"}
        if kind == "packages":
            self.packages[rest.rpartition("/")[2]] = body
            return 200, None
        if method == "POST" and not job_id:
            return self._submit(json.loads(body))
        self.looks += method == "GET"
        if not job_id:
            return 200, list(self.jobs.values())
        if job_id not in self.jobs:
            return 404, "no such job"
        if action == "stop":
            self.stopped.append(job_id)
            return 200, {"stopped": True}
        if action == "logs":
            return 200, {"logs": self.log}
        if method == "DELETE":
            self.deleted.append(job_id)
            del self.jobs[job_id]
            return 200, {"deleted": True}
        return 200, self.jobs[job_id]

    def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        job_id = body["submission_id"]
        if self.refusal:
            return 400, self.refusal
        if self.fault:
            return 500, self.fault
        if job_id in self.jobs:
            return 500, f"Job with submission_id {job_id} already exists."
        self.posted.append(body)
        self.jobs[job_id] = {"submission_id": job_id, "status": "PENDING", "message": ""}
        return 200, {"submission_id": job_id}


class _Handler(BaseHTTPRequestHandler):
    server: JobsServer
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.broken:
            status, found = 503, "not now"
        elif self.server.unrouted:
            self.server.refused += 1
            status, found = 404, "default backend"
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            status, found = 401, "no valid token"
        else:
            status, found = self.server.answer(self.command, self.path, body)
        sent = found.encode() if isinstance(found, str) else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_DELETE = do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def jobs_server() -> Iterator[JobsServer]:
    """Run one."""
    with JobsServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
