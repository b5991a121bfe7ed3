"""One request to a server that may answer anything: within a deadline, up to a size, as plain text.

httpx has a timeout between two bytes and none for an answer, and unpacks whatever comes packed.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.printable import printable

MOST_VALUES = 1_000_000
"""Values in one JSON answer; an empty list of two bytes takes 64 once it is decoded."""

PLAIN = {"Accept-Encoding": "identity"}
_PIECE_BYTES = 16 * 1024


class BrokenAnswerError(Exception):
    """An answer breaks a bound."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    Args:
        status: HTTP status.
        body: All of it, as it came.
        location: Where it sends us; "" if nowhere.
    """

    status: int
    body: bytes
    location: str = ""

    @property
    def is_success(self) -> bool:
        """Whether it did what it was asked."""
        return httpx.codes.is_success(self.status)

    @property
    def text(self) -> str:
        """The body as text, whatever it is."""
        return self.body.decode(errors="replace")


async def ask(
    client: httpx.AsyncClient,
    request: httpx.Request,
    *,
    seconds: float,
    most_bytes: int,
    take: Callable[[bytes], bool] | None = None,
) -> Answer:
    """Send a request and read the answer.

    Args:
        client: Has the connection.
        request: The request.
        seconds: How long all of it may take, from the connection to the last byte.
        most_bytes: How long the body may be.
        take: Gets the body of a success in pieces instead, and says when it has enough.

    Raises:
        BrokenAnswerError: If the answer is too long, too slow, or packed.
        httpx.HTTPError: If there is none.
    """
    try:
        async with asyncio.timeout(seconds):
            response = await client.send(request, stream=True)
            try:
                return await _read(response, most_bytes, take)
            finally:
                await response.aclose()
    except TimeoutError:
        raise BrokenAnswerError(f"the answer took longer than {seconds:g} s") from None


async def _read(
    response: httpx.Response, most_bytes: int, take: Callable[[bytes], bool] | None
) -> Answer:
    packed = response.headers.get("content-encoding", "identity")
    if packed.strip().lower() not in ("", "identity"):
        raise BrokenAnswerError(
            f"HTTP {response.status_code} with Content-Encoding {printable(packed, 40)}; only "
            "identity was accepted"
        )
    if not response.is_success:
        take = None
    body, length = bytearray(), 0
    async for piece in response.aiter_raw(_PIECE_BYTES):
        length += len(piece)
        if length > most_bytes:
            raise BrokenAnswerError(
                f"HTTP {response.status_code} with more than {most_bytes:,} bytes"
            )
        if take is None:
            body += piece
        elif take(piece):
            break
        await asyncio.sleep(0)  # a server that is always ready must not hold the event loop
    return Answer(
        status=response.status_code,
        body=bytes(body),
        location=response.headers.get("location", "elsewhere") if response.is_redirect else "",
    )


def decode(body: bytes, kind: Any) -> Any:
    """Read JSON; jobs may have said anything, also what msgspec refuses (lone surrogates).

    Raises:
        BrokenAnswerError: If it holds more values than anybody has to say.
        ValueError: If it is not of this kind; RecursionError if it nests too deep.
    """
    if bounded_json.count_marks(body, ",[{") > MOST_VALUES:
        raise BrokenAnswerError(f"the answer has more than {MOST_VALUES:,} values")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(body), kind)
