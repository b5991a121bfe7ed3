"""The rows of a long table that people see, and the line below it that counts the others."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

MAX_ROWS = 100
"""Rows of a table. Nobody reads ten thousand, and rich needs seconds for them."""

_Row = TypeVar("_Row")


def first_rows(
    rows: Sequence[_Row], rank: Callable[[_Row], int], most: int | None
) -> tuple[Sequence[_Row], Sequence[_Row]]:
    """Return the rows to show, and the hidden ones: by rank, if there are more than `most`."""
    if most is None or len(rows) <= most:
        return rows, ()
    ordered = sorted(rows, key=rank)
    return ordered[:most], ordered[most:]


def describe_hidden(counts: Mapping[str, int], hint: str = "") -> str:
    """Return the line that counts hidden rows by kind, with a line end before it; "" without any."""
    if not counts:
        return ""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return f"\n… and {sum(counts.values()):,} more: {kinds}. {hint}".rstrip()
