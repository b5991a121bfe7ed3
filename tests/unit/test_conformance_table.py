"""docs/conformance.md names tests; each of them exists, and no row is empty."""

import re

import pytest

from tests.support import ROOT

ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in (ROOT / "docs" / "conformance.md").read_text().splitlines()
    if line.startswith("| ") and "::test" in line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_no_cell_is_empty_and_the_tests_named_exist(row):
    assert len(row) == 4
    assert all(row)
    ours = row[2] if "::test" in row[2] else row[3]
    named = re.findall(r"`([\w/.]+\.py)::((?:\w+::)?test\w+)`", ours)
    assert named
    for file, test in named:
        (path,) = [ROOT / file] if "/" in file else (ROOT / "tests").rglob(file)
        text = path.read_text()
        if "::" in test:  # of a suite that many stores go through
            text += (ROOT / "tests/support/storage/conformance.py").read_text()
        assert f"def {test.rpartition('::')[2]}(" in text, test
