"""The package, the README and the docs are read by people whose first language is not English."""

import ast
import re
import subprocess

import pytest

from tests.support import ROOT

TRACKED = subprocess.run(
    ["git", "ls-files", "airflow_tune_restore", "dags", "docs", "*.md"],
    cwd=ROOT, capture_output=True, text=True, check=True,
).stdout.split()  # fmt: skip
FILES = [ROOT / name for name in TRACKED if name.endswith((".py", ".md")) and "golden" not in name]
CODE = [path for path in FILES if path.suffix == ".py"]


def id_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=id_of)
def test_a_thing_is_not_another_thing(path):
    """Write "X is not a directory" and not the shorter form."""
    assert re.findall(r".*\bis no [a-z]+\b.*", path.read_text()) == []


@pytest.mark.parametrize("path", CODE, ids=id_of)
def test_a_docstring_starts_with_a_subject_or_a_verb(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            assert not re.match(r"(What|Whatever|Who|Whom|Whoever)\b", text), text


def test_no_file_has_more_than_400_lines():
    lengths = {id_of(path): len(path.read_text().splitlines()) for path in CODE}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
