"""Session-wide servers and hypothesis profiles; nothing else."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import servers

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # private Rays on this machine only
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

settings.register_profile("ci", deadline=None, print_blob=True)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def s3() -> Iterator[servers.Server]:
    """A real S3 server (SeaweedFS), its credentials in the environment."""
    yield from _served(servers.s3_server())


@pytest.fixture(scope="session")
def gcs() -> Iterator[servers.Server]:
    """A Google Cloud Storage emulator."""
    yield from _served(servers.gcs_server())


@pytest.fixture(scope="session")
def azure() -> Iterator[servers.Server]:
    """An Azure Blob Storage emulator; needs npm."""
    try:
        yield from _served(servers.azure_server())
    except FileNotFoundError:
        pytest.skip("Azurite comes from npm: install Node.js and run the tests again")


def _served(starting) -> Iterator[servers.Server]:
    with starting as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server
