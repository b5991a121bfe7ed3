"""An S3 server whose one bucket is empty, and which notes what it is asked: for where requests go."""

import contextlib
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_NOTHING = b'<?xml version="1.0"?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>'


@dataclass(frozen=True)
class EmptyBucket:
    """A running server.

    Args:
        authority: Host and port.
        asked: Its requests: method and path.
        scopes: The regions that they were signed for.
    """

    authority: str
    asked: list[str] = field(default_factory=list)
    scopes: set[str] = field(default_factory=set)


@contextlib.contextmanager
def empty_bucket(certificate: Path | None = None) -> Iterator[EmptyBucket]:
    """Serve until the block ends; with TLS if there is a file with a certificate and its key."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            bucket.asked.append(f"{self.command} {self.path}")
            signed = (self.headers["Authorization"] or "").partition("Credential=")[2]
            bucket.scopes.update(signed.split("/")[2:3])
            self.send_response(200)
            self.send_header("Content-Length", str(len(_NOTHING)))
            self.end_headers()
            self.wfile.write(_NOTHING)

        def deny(self) -> None:
            bucket.asked.append(f"{self.command} {self.path}")
            self.send_response(404)
            self.end_headers()

        do_GET, do_HEAD, do_CONNECT = answer, deny, deny

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    bucket = EmptyBucket(f"127.0.0.1:{server.server_port}")
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def own_certificate(directory: Path) -> Path:
    """Write a certificate for 127.0.0.1 that nobody but itself has signed, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(host, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "own.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path
