"""CONTRIBUTING.md leads to the code: every file and name of its table exists."""

import ast
import re

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "airflow_tune_restore"
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TABLE = TEXT[TEXT.index("## To change X") : TEXT.index("## Add an option")]
PLACES = re.findall(r"`([\w/]+\.py)` \(`(\w+)`\)", TABLE)


def test_there_are_rows():
    assert len(PLACES) > 50


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_a_place_exists(file, name):
    tree = ast.parse((PACKAGE / file).read_text())
    assert name in {getattr(node, "name", "") for node in tree.body}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+/[\w.]+\.py)`", TEXT))))
def test_a_path_exists(path):
    assert (PACKAGE / path).exists() or (ROOT / path).exists()
