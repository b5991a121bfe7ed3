"""CONTRIBUTING.md and the decision records lead to the code: the files and names in them exist."""

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


def names_of(module):
    """Return what a module defines at its top."""
    path = (PACKAGE / module.replace(".", "/")).with_suffix(".py")
    nodes = ast.parse(path.read_text()).body if path.exists() else []
    targets = [target for node in nodes for target in getattr(node, "targets", [])]
    return {getattr(node, "name", getattr(node, "id", "")) for node in [*nodes, *targets]}


ROOMS = "cli experiments hooks launch operators protocol restore runner storage triggers"
DOTTED = re.compile(rf"`((?:{'|'.join(ROOMS.split())})(?:\.[a-z_]+)+)\.(\w+)(?:\([^`]*)?`")
DOCS = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("document", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_that_docs_name_exists(document):
    for module, name in DOTTED.findall(document.read_text()):
        is_module = (PACKAGE / f"{module}.{name}".replace(".", "/")).with_suffix(".py").exists()
        assert is_module or name in names_of(module), f"{module}.{name}"
