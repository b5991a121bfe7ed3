"""A command in a message can be pasted into a shell: it has real values in every place."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support import ROOT
from tests.support.commands import parse_command

VALUE = "a1b2c_00003"
"""Stands for a value that is filled in when the message is made."""


def texts(tree: ast.AST) -> Iterator[str]:
    """Return the texts of a module, but for docstrings, with a value in each gap."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(p) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values}
    others = docstrings | parts
    for node in ast.walk(tree):
        if id(node) in others:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(getattr(part, "value", "") if isinstance(part, ast.Constant) else VALUE
                          for part in node.values)  # fmt: skip
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace("%s", VALUE)


FOUND = [
    pytest.param(command, id=f"{path.relative_to(ROOT)}: {command}")
    for path in sorted((ROOT / "airflow_tune_restore").rglob("*.py"))
    if "tune-restore" in (source := path.read_text())
    for text in texts(ast.parse(source))
    for command in re.findall(r"`(tune-restore [^`]*)`", text)
]


def test_there_are_commands():
    assert len(FOUND) > 1


@pytest.mark.parametrize("command", FOUND)
def test_it_can_be_pasted(command):
    parsed, arguments = parse_command(command)
    parsed.make_context(parsed.name, arguments)
    assert not [word for word in arguments if re.search(r"[A-Z]{3}|[<>…]", word)]
