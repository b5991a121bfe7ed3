"""A proxy in front of an S3 server that does harm when told to, and writes down every write.

Signatures stay valid: clients sign the proxy's own address, and the Host header goes through as it is.
"""

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.storage.http_stream import Stream

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
INSIDE, AFTER = "inside", "after"
"""Where a write is cut: half of it sent and so never done, or done but never answered."""


@dataclass(frozen=True)
class Write:
    """One object that the server has said is written."""

    key: str
    sha256: str
    at: float


@dataclass
class Fault:
    """What is done to the requests that match.

    Args:
        how: `refuse`, `delay`, `slow_down`, `inside`, `after` or `drop_answer`.
        pattern: What the method and key, as in `PUT exp/result.json`, must hold.
        nth: Which matching request is the first to be hit.
        times: How many are hit from then on.
        seconds: How long a delay takes.
        then: What to do at that moment, as to kill the writer.
    """

    how: str
    pattern: str = ""
    nth: int = 1
    times: int = 1
    seconds: float = 0.0
    then: Callable[[], None] = lambda: None
    seen: int = 0
    hits: list[str] = field(default_factory=list)

    def strikes(self, request: str) -> bool:
        """Count a request, and say whether it is to be hit."""
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class Proxy:
    """Listens on a free port of 127.0.0.1 while it is entered."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._parts: dict[str, dict[int, bytes]] = {}
        self.writes: list[Write] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._closed = False

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def add(self, fault: Fault) -> Fault:
        """Do this from now on."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Let everything pass again."""
        with self._lock:
            self._faults.clear()

    def _note(self, request: str, body: bytes) -> None:
        """Write down an object that is now whole; pyarrow uploads even small ones in parts."""
        match = re.fullmatch(r"(PUT|POST) (.*?)(?:\?(.*))?", request)
        if match is None:
            return
        method, key, query = match[1], match[2], parse_qs(match[3] or "", keep_blank_values=True)
        upload = query.get("uploadId", [""])[0]
        with self._lock:
            if method == "PUT" and upload:
                self._parts.setdefault(upload, {})[int(query["partNumber"][0])] = body
                return
            if method == "POST" and upload:
                parts = self._parts.pop(upload, {})
                if not parts:
                    return  # the answer was lost, and the client asks once more
                body = b"".join(parts[number] for number in sorted(parts))
            elif method == "POST" or query:
                return
            sha = hashlib.sha256(body).hexdigest()
            self.writes.append(Write(key, sha, time.monotonic()))

    def _choose(self, request: str) -> Fault | None:
        with self._lock:
            struck = [fault for fault in self._faults if fault.strikes(request)]
            for fault in struck[:1]:
                fault.hits.append(request)
        return struck[0] if struck else None

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass requests of one connection on until one side has had enough, or harm is done."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = None
        try:
            server = socket.create_connection(self._upstream, timeout=60)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends = Stream(client), Stream(server)
            while self._pass(*ends):
                pass
        except OSError:
            pass  # whoever hung up
        finally:
            for end in (client, server):
                if end is not None:
                    end.close()

    def _pass(self, client: Stream, server: Stream) -> bool:
        """Pass one request and its answer; False to hang up."""
        head = client.read_head()
        if head is None:
            return False
        method, target, _ = head.first.split(" ", 2)
        parts = urlsplit(target)
        # bucket/key -> key; a query makes it no write of an object
        request = f"{method} {unquote(parts.path).lstrip('/').partition('/')[2]}"
        if parts.query and "x-id" not in parts.query:
            request += f"?{parts.query}"
        fault = self._choose(request)
        how = fault.how if fault is not None else ""
        if fault is not None and how in ("refuse", "delay"):
            fault.then()
            time.sleep(fault.seconds)
            if how == "refuse":
                return False
        if head.get("expect"):
            client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = client.read_body(head)
        if how == "slow_down":
            client.send(
                b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: "
                + str(len(SLOW_DOWN)).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else SLOW_DOWN)
            )  # fmt: skip
            return True
        if fault is not None and how == INSIDE:
            server.send(head.raw + body[: len(body) // 2])
            fault.then()
            return False
        server.send(head.raw + body)
        answer = server.read_head()
        while answer is not None and answer.status.startswith("1"):
            answer = server.read_head()
        if answer is None:
            return False
        content = b"" if method == "HEAD" else server.read_body(answer, is_answer=True)
        if answer.status == "200":
            self._note(request, head.payload(body))
        if fault is not None and how == AFTER:
            fault.then()
            return False
        if fault is not None and how == "drop_answer":
            client.send((answer.raw + content)[: (len(answer.raw) + len(content)) // 2])
            return False
        client.send(answer.raw + content)
        return not (answer.ends_connection or head.ends_connection)
