"""Clients of Kubernetes with bounds on the size and the duration of an answer.

Both clients (kubernetes 36, kubernetes_asyncio 36) read bodies of any length, decompress them, and have
timeouts between two bytes but not for a whole answer. For streams (a followed log, a watch) the deadline
ends when they begin; their readers bound what they take.
"""

import asyncio
import contextlib
import functools
import http.client
import io
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airflow_tune_restore.launch.kubernetes.api import UnreadableAnswerError
from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.printable import printable

REQUEST_SECONDS = 60.0
"""Longest duration of an answer."""

MOST_BYTES = 16 * 1024**2
"""Size limit of an answer. A pod has 1.5 MiB at most (etcd), a list of its events less, a log 10 MiB."""

MOST_VALUES = 500_000
"""Most values in one answer; each takes a hundred bytes and more when it is decoded."""

PIECE_BYTES = 64 * 1024
_PLAIN = {"Accept-Encoding": "identity"}
_ODD = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""Errors of the clients for an answer with an unexpected structure."""


def bound(client: Any) -> Any:
    """Bound the answers of a client of `kubernetes`, and return it.

    It does not obey a `Retry-After` within a request, since a proxy may send any: `api.Patience` repeats.
    """
    pool = client.rest_client.pool_manager
    pool.connection_pool_kw["retries"] = urllib3.Retry(0, respect_retry_after_header=False)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    pool.request = _bounded_request(pool.request)
    client.call_api = _readable()(client.call_api)
    return client


def bound_async(client: Any) -> Any:
    """Bound the answers of a client of `kubernetes_asyncio`, and return it."""
    rest = client.rest_client
    session = rest.pool_manager
    session.request = functools.partial(
        session.request,
        allow_redirects=False,
        auto_decompress=False,  # aiohttp before 3.14 unpacks more than it is asked for
    )
    rest.request = _bounded_async_request(rest.request)
    client.call_api = _checked_async(client.call_api)
    return client


def refuse_compressed(status: int, headers: Any) -> None:
    """Refuse a compressed answer (UnreadableAnswerError): the request forbids it."""
    packed = headers.get("Content-Encoding") or "identity"
    if packed.strip().lower() != "identity":
        raise UnreadableAnswerError(
            f"The Kubernetes API answers {status} compressed as {printable(packed, 40)}, although the "
            "request forbids it"
        )


def _too_long(status: int) -> UnreadableAnswerError:
    return UnreadableAnswerError(
        f"The Kubernetes API answers {status} and more than {MOST_BYTES:,} bytes"
    )


def _check_values(body: bytes) -> bytes:
    """Return a body (UnreadableAnswerError if it becomes too large when it is decoded)."""
    if bounded_json.count_marks(body, ",[{") > MOST_VALUES:
        raise UnreadableAnswerError(
            f"The Kubernetes API answers with more than {MOST_VALUES:,} values"
        )
    return body


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except _ODD as error:
        raise UnreadableAnswerError(
            f"The Kubernetes API sent an unreadable answer: {printable(str(error))}"
        ) from error


# the client that blocks


@dataclass
class _Deadline:
    """The end of a request's time, by the monotonic clock; None for a stream that has begun."""

    at: float | None


_deadline: ContextVar[_Deadline | None] = ContextVar("deadline of a request", default=None)


def _bounded_request(request: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(request)
    def bounded(
        method: str, url: str, *, preload_content: bool = True, headers: Any = None, **given: Any
    ) -> Any:
        deadline = _Deadline(time.monotonic() + REQUEST_SECONDS)
        token = _deadline.set(deadline)
        try:
            answer = request(
                *(method, url),
                preload_content=False,
                redirect=False,
                headers={**(headers or {}), **_PLAIN},
                **given,
            )
        finally:
            _deadline.reset(token)
        if not preload_content and is_success(answer.status):
            with _closed_if_refused(answer):
                refuse_compressed(answer.status, answer.headers)
            deadline.at = None
            return answer
        return _read(answer)

    return bounded


def is_success(status: int) -> bool:
    """Whether a request succeeded."""
    return 200 <= status <= 299  # noqa: PLR2004


@contextlib.contextmanager
def _closed_if_refused(answer: urllib3.BaseHTTPResponse) -> Iterator[None]:
    """Close a connection whose answer is not read to its end."""
    try:
        yield
    except BaseException:
        answer.close()
        raise


def _read(answer: urllib3.BaseHTTPResponse) -> urllib3.HTTPResponse:
    """Return the answer with all of its body, which is read now."""
    body = bytearray()
    with _closed_if_refused(answer):
        refuse_compressed(answer.status, answer.headers)
        for piece in answer.stream(PIECE_BYTES, decode_content=False):
            body += piece
            if len(body) > MOST_BYTES:
                raise _too_long(answer.status)
    answer.release_conn()
    return urllib3.HTTPResponse(
        body=_check_values(bytes(body)),
        headers=answer.headers,
        status=answer.status,
        reason=answer.reason,
        decode_content=False,
    )


class _TimedReads(io.RawIOBase):
    """Reads from a socket until the deadline of the request it answers."""

    def __init__(self, raw: io.RawIOBase, sock: Any, deadline: _Deadline) -> None:
        self._raw = raw
        self._sock = sock
        self._timeout = sock.gettimeout()
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        timeout, at = self._timeout, self._deadline.at
        if at is not None:
            left = at - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"The answer has not ended after {REQUEST_SECONDS:g} s")
            timeout = left if timeout is None else min(left, timeout)
        self._sock.settimeout(timeout)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """An answer whose head and body are read before the deadline."""

    def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        deadline = _deadline.get()
        if deadline is not None:
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_TimedReads(raw, sock, deadline))


class _Connection(HTTPConnection):
    response_class = _TimedResponse


class _SecureConnection(HTTPSConnection):
    response_class = _TimedResponse


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


# the client of an event loop


def _checked_async(call_api: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call_api)
    async def checked(*arguments: Any, **options: Any) -> Any:
        with _readable():
            return await call_api(*arguments, **options)

    return checked


def _bounded_async_request(request: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(request)
    async def bounded(
        method: str, url: str, *, _preload_content: bool = True, headers: Any = None, **given: Any
    ) -> Any:
        from kubernetes_asyncio.client import ApiException
        from kubernetes_asyncio.client.rest import RESTResponse

        headers = {**(headers or {}), **_PLAIN}
        async with asyncio.timeout(REQUEST_SECONDS):
            answer = await request(method, url, headers=headers, _preload_content=False, **given)
            refuse_compressed(answer.status, answer.headers)
            if not _preload_content:
                return answer
            read = RESTResponse(answer, _check_values(await read_async(answer)))
        if not is_success(read.status):
            raise ApiException(http_resp=read)  # type: ignore[arg-type]  # as the client does
        return read

    return bounded


async def read_async(answer: Any) -> bytes:
    """Return the body of an answer of `aiohttp` (UnreadableAnswerError if it is too long)."""
    return b"".join([piece async for piece in pieces(answer)])


async def pieces(answer: Any) -> AsyncIterator[bytes]:
    """Yield the body of an answer of `aiohttp` (UnreadableAnswerError if it is too long)."""
    length = 0
    async for piece in answer.content.iter_chunked(PIECE_BYTES):
        length += len(piece)
        if length > MOST_BYTES:
            answer.close()
            raise _too_long(answer.status)
        yield piece
        await asyncio.sleep(0)  # a fast server must not block the event loop
