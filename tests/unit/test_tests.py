"""The tests themselves: what several share lies in tests/support or a conftest, each thing once."""

import ast

import pytest

from tests.support import ROOT

TESTS = ROOT / "tests"
FILES = sorted(path for path in TESTS.rglob("*.py") if "golden" not in path.parts)
ROOMS = frozenset({"unit", "servers", "ray", "airflow", "executor"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_module_imports_from_a_test_module(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for name in _imported(node):
            parts = name.split(".")
            of_a_test = any(part.startswith("test_") or part == "conftest" for part in parts)
            assert not of_a_test, f"line {node.lineno} imports {name}"
            is_room = parts[0] == "tests" and len(parts) > 1 and parts[1] in ROOMS
            assert not is_room, f"line {node.lineno} imports {name}"


def _imported(node: ast.AST) -> list[str]:
    """Return what a statement imports, by its full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno} imports relatively"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []
