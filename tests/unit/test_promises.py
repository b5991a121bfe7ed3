"""docs/promises.md: each promise of the documentation has a test in the default tier."""

import re

import pytest

from tests.support import ROOT

ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in (ROOT / "docs" / "promises.md").read_text().splitlines()
    if line.startswith("| ") and "::test" in line
]


def named(cell: str) -> list[tuple[str, str]]:
    return re.findall(r"`([\w/.]+\.py)::(test\w+)`", cell)


def test_there_are_promises():
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_a_promise_is_kept_by_a_test_of_the_default_tier(row):
    _, default, slow = row
    assert named(default)
    assert not any("/slow/" in file for file, _ in named(default))
    assert all("/slow/" in file for file, _ in named(slow))
    for file, test in (*named(default), *named(slow)):
        assert f"def {test}(" in (ROOT / file).read_text(), test
