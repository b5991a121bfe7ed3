"""One Ray that stays up, and a runner beside it, for all tests here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ray.kept import Hosts, KeptHosts

COMPARING = ("compared", "pair", "golden", "generated_restores", "sharing")
"""Modules whose assertions tell what differs."""

for _module in COMPARING:
    pytest.register_assert_rewrite(f"tests.support.ray.{_module}")

FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="package")
def kept_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptHosts]:
    """Both hosts, whatever becomes of them meanwhile."""
    kept = KeptHosts(tmp_path_factory.mktemp("hosts"))
    yield kept
    kept.end()


@pytest.fixture
def hosts(kept_hosts: KeptHosts, request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Ray and our runner beside it; new ones after a test that failed: who knows how it left them."""
    yield kept_hosts.get()
    if request.node.stash.get(FAILED, False):
        kept_hosts.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Note what failed, for `hosts`."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def cause(tmp_path: Path) -> Path:
    """While it is there, trials fail."""
    path = tmp_path / "cause"
    path.touch()
    return path


@pytest.fixture
def told(tmp_path):
    """Restore both, and return what searcher, scheduler and callback had to tell in each."""

    def restore_both(pair, flags=None, **options):
        heard = {}
        for whose in ("theirs", "ours"):
            directory = tmp_path / "told" / whose
            directory.mkdir(parents=True, exist_ok=True)
            pair.env["CONFORMANCE_TOLD"] = str(directory)
            if whose == "ours":
                pair.restore_ours(flags, **options)
            else:
                case = {"uri": str(pair.theirs), "trainable": pair.trainable, "flags": flags or {}}
                pair.hosts.ray.call("restore", case, **pair.env)
            heard[whose] = {p.name: json.loads(p.read_text()) for p in directory.iterdir()}
        return heard["ours"], heard["theirs"]

    return restore_both
