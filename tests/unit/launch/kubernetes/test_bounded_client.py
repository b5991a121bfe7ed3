"""API servers, or what stands before them, that answer anything: no answer is too long, slow or odd."""

import asyncio
import gzip
import itertools
import json
import time
import tracemalloc

import kubernetes
import kubernetes_asyncio
import pytest

from airflow_tune_restore.launch.kubernetes import bounded_client
from airflow_tune_restore.launch.kubernetes.api import (
    check_answer,
    describe_outage,
    is_api_error,
)
from tests.support.raw_server import chunk, endlessly, head, raw_server, trickle, whole

BOMB = gzip.compress(bytes(64 * 1024**2))
JSON = "Content-Type: application/json"
CHUNKED = head("Transfer-Encoding: chunked", JSON)


def read_pod(url):
    configuration = kubernetes.client.Configuration(host=url)
    configuration.retries = 0
    client = bounded_client.bound(kubernetes.client.ApiClient(configuration))
    return kubernetes.client.CoreV1Api(client).read_namespaced_pod("p", "n")


def read_pod_async(url):
    async def ask():
        client = kubernetes_asyncio.client.ApiClient(kubernetes_asyncio.client.Configuration(url))
        try:
            api = kubernetes_asyncio.client.CoreV1Api(bounded_client.bound_async(client))
            return await api.read_namespaced_pod("p", "n")
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.fixture(params=[read_pod, read_pod_async])
def fails(request):
    """Ask for a pod; return in words why there is no answer."""

    def ask(answer) -> str:
        with raw_server(lambda _head: answer()) as server:
            with pytest.raises(Exception) as raised:
                request.param(server.url)
            assert is_api_error(raised.value), raised.value
            assert all("accept-encoding: identity" in asked.lower() for asked in server.heads)
        return describe_outage(raised.value)

    return ask


def test_nobody_is_sent_elsewhere(fails):
    """By a redirect an API server could have anything asked from where Airflow runs."""
    with raw_server(lambda _head: [whole(b"{}", JSON)]) as elsewhere:
        words = fails(
            lambda: [whole(b"{}", JSON, f"Location: {elsewhere.url}/x", status="307 Moved")]
        )
        assert "307" in words
        assert elsewhere.heads == []


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error", "404 Not Found"])
def test_what_comes_packed_is_not_unpacked(fails, status):
    tracemalloc.start()
    try:
        words = fails(lambda: [whole(BOMB, "Content-Encoding: gzip", JSON, status=status)])
        assert words == (
            f"The Kubernetes API answers {status[:3]} compressed as gzip, although the "
            "request forbids it"
        )
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
@pytest.mark.parametrize(
    "answer",
    [
        lambda status: itertools.chain([head(status=status)], endlessly(b" " * 4096)),
        lambda status: itertools.chain(
            [head("Transfer-Encoding: chunked", status=status)], endlessly(chunk(b" " * 4096))
        ),
        lambda status: itertools.chain(
            [head(f"Content-Length: {10**15}", status=status)], endlessly(b" " * 4096)
        ),
    ],
)
def test_an_answer_has_a_length(fails, monkeypatch, answer, status):
    monkeypatch.setattr(bounded_client, "MOST_BYTES", 100_000)
    words = f"The Kubernetes API answers {status[:3]} and more than 100,000 bytes"
    assert fails(lambda: answer(status)) == words


@pytest.mark.parametrize(
    "answer",
    [
        lambda: itertools.chain([head(f"Content-Length: {10**6}", JSON)], trickle()),
        lambda: itertools.chain([CHUNKED], trickle(chunk(b" "))),
        lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], trickle(b"x")),
        lambda: trickle(b""),
    ],
)
def test_an_answer_has_a_deadline(fails, monkeypatch, answer):
    monkeypatch.setattr(bounded_client, "REQUEST_SECONDS", 0.2)
    assert fails(answer).startswith("The Kubernetes API cannot be reached")


@pytest.mark.parametrize(
    "answer",
    [
        lambda: [head("Content-Length: 100", JSON), b"{"],
        lambda: [CHUNKED, chunk(b"{")],
        list,
        lambda: [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**6 + b"\r\n\r\n"],
        lambda: [whole(b"", "Location: http://127.0.0.1:9/", status="302 Found")],
    ],
)
def test_an_answer_that_breaks_off_is_none(fails, answer):
    fails(answer)


GOOD = {
    "metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {"containers": [{"name": "base"}]},
    "status": {"phase": "Running", "containerStatuses": [], "conditions": []},
}
ODD = [None, True, 5, 10**400, "x", [], [[]], [5], {}, {"a": []}]


def paths(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from paths(inner, (*path, key))


def put(path, odd):
    if not path:
        return odd
    body = json.loads(json.dumps(GOOD))
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return body


BODIES = [json.dumps(put(path, odd)).encode() for path in paths(GOOD) for odd in ODD]
BODIES += [b"", b"{", b"5", b'"x"', b"\xff", BOMB, b"[" * 10**5, b"[" + b"[]," * 10**6 + b"[]]"]


@pytest.mark.parametrize("read", [read_pod, read_pod_async])
def test_a_shape_nobody_expects_is_no_answer_or_harmless(read):
    current = [b""]
    with raw_server(lambda _head: [whole(current[0], JSON)]) as server:
        for body in BODIES:
            current[0] = body
            try:
                check_answer(read(server.url), "p")
            except Exception as error:
                if not is_api_error(error):
                    raise


def test_a_log_that_is_followed_lasts_longer_than_the_deadline_of_a_request(monkeypatch):
    monkeypatch.setattr(bounded_client, "REQUEST_SECONDS", 0.2)
    begun = time.monotonic()

    def answer():
        yield CHUNKED
        for piece in trickle(chunk(b"x")):
            yield piece
            if time.monotonic() - begun > 0.5:
                break
        yield b"0\r\n\r\n"

    with raw_server(lambda _head: answer()) as server:
        configuration = kubernetes.client.Configuration(host=server.url)
        client = bounded_client.bound(kubernetes.client.ApiClient(configuration))
        stream = kubernetes.client.CoreV1Api(client).read_namespaced_pod_log(
            "p", "n", follow=True, _preload_content=False
        )
        read = b"".join(iter(lambda: stream.read1(100), b""))
    assert set(read) == {ord("x")}
    assert time.monotonic() - begun > 0.5
