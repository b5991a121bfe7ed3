"""Tiers and marks, which come from directories; servers and failed experiments; hypothesis profiles.

A test has the marks of the directories it lies in: one in `tests/ray/slow` is `ray` and `slow`.
What lies in a directory `slow` runs with `--all` only, or where it is named.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import FAILED, NO_SPARE_WORKERS, ROOT
from tests.support.storage import servers

pytest.register_assert_rewrite("tests.support.storage.conformance")  # a suite in a plain module

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # private Rays on this machine only
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ |= NO_SPARE_WORKERS

# a shell ignores Ctrl-C in what it starts in the background; so would each command that a test starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ci", deadline=None, print_blob=True)
settings.register_profile("nightly", settings.get_profile("ci"))  # of test_generated.py
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

MARKS = ("ray", "airflow", "servers", "slow")
SHARED = ("tests/airflow", "tests/ray/kept")
"""What is started once for all tests below them (an Airflow, a Ray): each is given to one worker."""

FIRST = (*SHARED, "tests/executor", "tests/servers", "tests/versions")
"""What is started first: what takes longest, and beside it what mostly waits, while others compute."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests, too")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow tests, unless they are asked for."""
    if collection_path.name != "slow" or config.getoption("--all"):
        return None
    named = [ROOT / argument.partition("::")[0] for argument in config.invocation_params.args]
    return None if any(path.is_relative_to(collection_path) for path in named) else True


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        directories = item.path.relative_to(ROOT).parts[:-1]
        for mark in MARKS:
            if mark in directories:
                item.add_marker(mark)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Return the position of the test's place in `FIRST`; all other tests come after them."""
    turns = (turn for turn, place in enumerate(FIRST) if item.nodeid.startswith(f"{place}/"))
    return next(turns, len(FIRST))


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is nothing to give away
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give a worker one file after another, in their order; what shares something stays together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByDirectoryOrFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((place for place in SHARED if file.startswith(f"{place}/")), file)

    config.option.loadscopereorder = False
    return ByDirectoryOrFile(config, log)


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


@pytest.fixture(scope="session")
def failed_experiments() -> Mapping[str, Path]:
    """One directory for each kind of failed experiment; copy them, never write to them."""
    return {path.name: path for path in sorted(FAILED.iterdir())}


def _served(starting) -> Iterator[servers.Server]:
    with starting as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server
