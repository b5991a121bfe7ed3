"""A server that answers each request with bytes of the test's choice, over real sockets."""

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

TRICKLE_SECONDS = 0.02


@dataclass
class RawServer:
    """What was asked of it, and how it answers.

    Args:
        answer: Yields what is sent in answer to the head of a request, until the client has left.
        heads: The heads of all requests, in order.
        sent: Bytes that were sent.
    """

    answer: Callable[[str], Iterable[bytes]]
    heads: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""


@contextlib.contextmanager
def raw_server(answer: Callable[[str], Iterable[bytes]]) -> Iterator[RawServer]:
    """Serve; each connection takes one request, and is closed after its answer."""
    served = RawServer(answer)
    is_over = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client has left
                lines = list(iter(self.rfile.readline, b"\r\n"))
                head = b"".join(lines).decode()
                served.heads.append(head)
                for piece in served.answer(head):
                    if is_over.is_set():
                        return
                    self.wfile.write(piece)
                    served.sent += len(piece)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            is_over.set()
            server.shutdown()
            thread.join()


def head(*lines: str, status: str = "200 OK") -> bytes:
    """Return the head of an answer."""
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *lines, "")).encode()


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """Return an answer as it should be."""
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def chunk(body: bytes) -> bytes:
    """Return one chunk of an answer that comes in chunks."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def endlessly(piece: bytes) -> Iterator[bytes]:
    """Yield a piece again and again, as fast as it is taken."""
    while True:
        yield piece


def trickle(piece: bytes = b" ") -> Iterator[bytes]:
    """Yield a byte again and again, too slowly for anybody but too often for a timeout between two."""
    pause = threading.Event()
    while not pause.wait(TRICKLE_SECONDS):
        yield piece
