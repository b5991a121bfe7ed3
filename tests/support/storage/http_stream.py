"""HTTP/1.1 messages off a socket, one after the other, for proxies: heads are parsed, bodies are not."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

_PIECE = 256 * 1024


@dataclass(frozen=True)
class Head:
    """The head of a request or of an answer."""

    raw: bytes
    first: str
    fields: dict[str, str]

    def get(self, name: str) -> str:
        return self.fields.get(name, "")

    @property
    def status(self) -> str:
        """The status of an answer."""
        return self.first.split(" ")[1]

    @property
    def ends_connection(self) -> bool:
        return "close" in self.get("connection").lower()

    def payload(self, body: bytes) -> bytes:
        """Take the framing off a body: of HTTP, and of S3 where it was sent in signed chunks."""
        if "chunked" in self.get("transfer-encoding"):
            body = _unchunk(body)
        if "aws-chunked" in self.get("content-encoding"):
            body = _unchunk(body)
        return body


def _unchunk(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.partition(b";")[0] or b"0", 16)
        if not length:
            break
        found, body = found + body[:length], body[length + 2 :]
    return found


class Stream:
    """Reads HTTP/1.1 messages off a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_head(self) -> Head | None:
        """Return the next head; None if the other side has hung up."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._fill():
                return None
        raw, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return Head(raw + b"\r\n\r\n", first, fields)

    def read_body(self, head: Head, *, is_answer: bool = False) -> bytes:
        """Return the body that follows a head, with its framing."""
        return b"".join(piece for piece, _ in self.pieces(head, is_answer=is_answer))

    def relay_body(self, head: Head, to: "Stream") -> None:
        """Pass the body of a request on, as it comes."""
        for piece, _ in self.pieces(head, is_answer=False):
            to.send(piece)

    def pieces(self, head: Head, *, is_answer: bool) -> Iterator[tuple[bytes, int]]:
        """Yield the body piece by piece, and how many bytes of each are framing."""
        if "chunked" in head.get("transfer-encoding"):
            yield from self._chunks()
        elif head.get("content-length"):
            for piece in self._read(int(head.get("content-length"))):
                yield piece, 0
        elif is_answer and head.status not in ("204", "304"):
            while self._buffer or self._fill():
                piece, self._buffer = self._buffer, b""
                yield piece, 0

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        while True:
            while b"\r\n" not in self._buffer:
                if not self._fill():
                    return
            size, _, self._buffer = self._buffer.partition(b"\r\n")
            yield size + b"\r\n", len(size) + 2
            length = int(size.partition(b";")[0], 16)
            for piece in self._read(length):
                yield piece, 0
            for piece in self._read(2):
                yield piece, len(piece)
            if not length:
                return

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._buffer and not self._fill():
                raise OSError("hung up in the middle of a body")
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(piece)
            yield piece

    def _fill(self) -> bool:
        data = self._socket.recv(_PIECE)
        self._buffer += data
        return bool(data)
