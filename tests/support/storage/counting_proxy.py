"""A proxy in front of an S3 server that counts what is asked of it. Bodies pass piece by piece."""

import re
import threading
from collections import Counter
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.storage.http_stream import Head, Stream
from tests.support.storage.proxy import Proxy

VERBS = ("GET", "PUT", "LIST", "HEAD", "DELETE", "POST")
"""A listing is a GET to HTTP, and a LIST here. SeaweedFS gets no POST, unless an object is in parts."""

STATE = re.compile(r"/experiment_state-[^/]+\.json$")


@dataclass(slots=True)
class Asked:
    """One request that was answered.

    Args:
        verb: One of `VERBS`.
        key: The object, or the prefix that was listed; without the bucket.
        size: Bytes of the body of the answer, as far as the client took it.
    """

    verb: str
    key: str
    size: int = 0


class CountingProxy(Proxy):
    """Writes down every request that was answered, also if the client does not take the whole answer."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._asked: list[Asked] = []
        self._under_way = 0
        self._is_idle = threading.Condition()

    def take(self) -> list[Asked]:
        """Return what was asked since the last call, once all of it is answered."""
        with self._is_idle:
            self._is_idle.wait_for(lambda: not self._under_way)
            taken, self._asked = self._asked, []
        return taken

    def _pass(self, client: Stream, server: Stream) -> bool:
        head = client.read_head()
        if head is None:
            return False
        with self._is_idle:
            self._under_way += 1
        try:
            return self._relay(head, client, server)
        finally:
            with self._is_idle:
                self._under_way -= 1
                self._is_idle.notify_all()

    def _relay(self, head: Head, client: Stream, server: Stream) -> bool:
        if head.get("expect"):
            client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        server.send(head.raw)
        client.relay_body(head, server)
        answer = server.read_head()
        while answer is not None and answer.status.startswith("1"):
            answer = server.read_head()
        if answer is None:
            return False
        asked = _read(head)
        with (
            self._is_idle
        ):  # now: a client may hang up before the end of a body that it does not need
            self._asked.append(asked)
        client.send(answer.raw)
        if asked.verb != "HEAD":
            for piece, framing in server.pieces(answer, is_answer=True):
                client.send(piece)
                asked.size += len(piece) - framing
        return not (answer.ends_connection or head.ends_connection)


def _read(head: Head) -> Asked:
    method, target, _ = head.first.split(" ", 2)
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "GET" and ("list-type" in query or "prefix" in query):
        return Asked("LIST", query.get("prefix", [""])[0])
    return Asked(method, unquote(parts.path).lstrip("/").partition("/")[2])


def by_verb(asked: list[Asked]) -> Counter[str]:
    """Return how many requests there were of each verb."""
    return Counter(one.verb for one in asked)


def state_reads(asked: list[Asked]) -> Counter[str]:
    """Return how often each state of an experiment was read."""
    read = (one.key for one in asked if one.verb == "GET" and ".tune_restore" not in one.key)
    return Counter(key for key in read if STATE.search(key))
