"""A blob service elsewhere, named in the address: only with TLS, so Azurite has a certificate here."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.storage.empty_bucket import own_certificate
from tests.support.storage.servers import AZURITE_ACCOUNT, AZURITE_KEY, azure_server

# a process of its own, as aiohttp reads SSL_CERT_FILE when it is imported
READ_AND_WRITE = """
import pickle, sys
from airflow_tune_restore.storage.fs import arrow_filesystem
from airflow_tune_restore.storage.fs import open_store
store = open_store(sys.argv[1])
store.create("dir/x", b"1")
assert store.uri == sys.argv[1]
assert [entry.name for entry in store.at("dir").list_dir()] == ["x"]
filesystem, path = arrow_filesystem(sys.argv[1])
body = pickle.dumps(filesystem)
assert sys.argv[2].encode() not in body
print(pickle.loads(body).open_input_stream(f"{path}/dir/x").read().decode())
"""


def test_a_blob_service_elsewhere_is_reached_by_the_option(tmp_path, monkeypatch):
    certificate = own_certificate(tmp_path)
    for name in (
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
    ):  # of urllib and adlfs, and of azure's client
        monkeypatch.setenv(name, str(certificate))
    try:
        with azure_server(certificate=certificate) as server:
            authority = server.endpoint.split("/")[2]
            url = f"{server.url}/x?enable_tls=true&blob_storage_authority={authority}"
            account = {
                "AZURE_STORAGE_ACCOUNT_NAME": AZURITE_ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": AZURITE_KEY,
            }
            done = subprocess.run(
                [sys.executable, "-c", READ_AND_WRITE, url, AZURITE_KEY],
                cwd=ROOT, env={**os.environ, **account}, capture_output=True, text=True,
            )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("Azurite comes from npm: install Node.js and run the tests again")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
