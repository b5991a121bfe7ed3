"""Markdown for people who decide, with text from storage in it. Pure.

Text from storage is only ever shown as a code span: nothing inside it is Markdown, HTML or a link, and
renderers do not make addresses in it clickable.
"""

from collections.abc import Iterable, Sequence

from airflow_tune_restore.protocol.printable import printable

NOTHING = "-"
"""Stands for a value that is not there."""

_LOOKALIKES = str.maketrans({"`": "'", "|": "¦"})
"""A backtick would end a code span, and a bar a cell of a table, even inside a code span."""


def code(text: str, most: int = 400) -> str:
    """Return untrusted text as a code span on one line, of at most `most` characters."""
    shown = printable(text, most).translate(_LOOKALIKES).strip()
    return f"`{shown}`" if shown else NOTHING


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table. Cells are Markdown: untrusted text in them must be `code`."""
    rule = ["---"] * len(headings)
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]
