"""Writes the recipe of a sweep with the lines of docs/recipes.md, which need nothing of this package."""

import re

from tests.support import ROOT

PAGE = ROOT / "docs" / "recipes.md"
LINES = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
"""Blocks of a sweep's code: those of a DAG are ```python."""


def write_own_recipe(storage_path: str, name: str) -> None:
    """Do what the sweep of this `RunConfig` does."""
    (lines,) = LINES
    exec(compile(lines, str(PAGE), "exec"), {"storage_path": storage_path, "name": name})
