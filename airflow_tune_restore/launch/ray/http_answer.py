"""One request to a server that may answer anything: with a deadline, a size limit and no decompression.

httpx has a timeout between two bytes, but not for a whole answer, and it decompresses what is compressed.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx
import msgspec

from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.printable import printable

_T = TypeVar("_T")

MOST_VALUES = 1_000_000
"""Limit of values in one JSON answer: an empty list of 2 bytes takes 64 bytes once it is decoded."""

PLAIN = {"Accept-Encoding": "identity"}
_PIECE_BYTES = 16 * 1024


class BrokenAnswerError(Exception):
    """An answer exceeds a limit, or is compressed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server. `body` is as received; `location` is the target of a redirect, or ""."""

    status: int
    body: bytes
    location: str = ""

    @property
    def is_success(self) -> bool:
        """Whether the request succeeded."""
        return httpx.codes.is_success(self.status)

    @property
    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 are replaced."""
        return self.body.decode(errors="replace")


async def ask(
    client: httpx.AsyncClient,
    request: httpx.Request,
    *,
    seconds: float,
    most_bytes: int,
    take: Callable[[bytes], bool] | None = None,
) -> Answer:
    """Send a request and read the answer, in so many seconds from the connection to the last byte.

    If `take` is given, it receives the body of a success in pieces, and returns True when it has enough.

    Raises:
        BrokenAnswerError: If the answer is too long, too slow, or compressed.
        httpx.HTTPError: If the server does not answer.
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
    body, length = bytearray(), 0
    async for piece in response.aiter_raw(_PIECE_BYTES):
        length += len(piece)
        if length > most_bytes:
            raise BrokenAnswerError(
                f"HTTP {response.status_code} with more than {most_bytes:,} bytes"
            )
        if take is None or not response.is_success:
            body += piece
        elif take(piece):
            break
        await asyncio.sleep(0)  # a server that is always ready must not hold the event loop
    return Answer(
        status=response.status_code,
        body=bytes(body),
        location=response.headers.get("location", "elsewhere") if response.is_redirect else "",
    )


def decode(body: bytes, decoder: "msgspec.json.Decoder[_T]") -> _T:
    """Read JSON, also with text that msgspec refuses: a job's message may hold lone surrogates.

    Raises:
        BrokenAnswerError: If it holds more than `MOST_VALUES` values.
        ValueError: If it is not of the decoder's type; RecursionError if it nests too deep.
    """
    if bounded_json.count_marks(body, ",[{") > MOST_VALUES:
        raise BrokenAnswerError(f"the answer has more than {MOST_VALUES:,} values")
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:
        plain = json.loads(body)
    try:
        return msgspec.convert(plain, decoder.type)
    except msgspec.ValidationError as error:  # a ValueError only since msgspec 0.21
        raise ValueError(str(error)) from error
