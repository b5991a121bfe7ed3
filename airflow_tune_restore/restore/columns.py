"""Tables as text, for terminals and logs: only the last column is folded, and no word of it is lost.

If the other columns leave too little room for it, each row becomes a block of lines.
"""

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

GAP = 3
"""Columns of a terminal between two columns of a table; the edges take as many as one gap more."""

FOLDED = 30
"""Columns of a terminal that a column of sentences needs to be read well."""

_EMPTY = "-"


class Column(NamedTuple):
    """One column: its heading, and a cell per row. Cells are untrusted strings, or made by `coloured`."""

    heading: str
    cells: Sequence["str | Text"]

    @property
    def width(self) -> int:
        """The width at which no cell is folded."""
        from rich.cells import cell_len  # not needed with --json

        texts = (cell if isinstance(cell, str) else cell.plain for cell in self.cells)
        return max(cell_len(printable(text, NOTE_LENGTH)) for text in (self.heading, *texts))


def needed_width(columns: Sequence[Column]) -> int:
    """Return the width of a table in which no column but the last is folded."""
    *whole, last = columns
    return sum(column.width + GAP for column in whole) + min(last.width, FOLDED) + GAP - 1


def render_columns(columns: Sequence[Column], width: int, *, in_colour: bool = False) -> str:
    """Return a table as text; one block per row where the width is too small for it."""
    if needed_width(columns) > width:
        return render(_blocks(columns), width, in_colour=in_colour)
    return render(_table(columns), width, in_colour=in_colour)


def render(shown: "RenderableType", width: int, *, in_colour: bool = False) -> str:
    """Return a table as text, without the empty lines that rich puts around it."""
    from rich.console import Console

    text = StringIO()
    console = Console(
        file=text,
        width=width,
        force_terminal=in_colour,
        color_system="standard" if in_colour else None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def _table(columns: Sequence[Column]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_last = column is columns[-1]
        table.add_column(printable(column.heading), overflow="fold", no_wrap=not is_last)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(_as_text, row))
    return table


def _blocks(columns: Sequence[Column]) -> "RenderableType":
    """Give each row its first cell on a line of its own, then the named others, then the last one."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    first, *others, last = columns
    parts: list[RenderableType] = []
    for number, (name, why) in enumerate(zip(first.cells, last.cells, strict=True)):
        title = _as_text(name)
        title.no_wrap, title.overflow = True, "ignore"
        cells = [(printable(column.heading), _as_text(column.cells[number])) for column in others]
        named = [
            Text.assemble(f"{heading} ", cell) for heading, cell in cells if cell.plain != _EMPTY
        ]
        parts += [title, Padding(Text(", ").join(named), (0, 0, 0, 2))]
        parts.append(Padding(_as_text(why), (0, 0, 0, 2)))
    return Group(*parts)


def _as_text(cell: "str | Text") -> "Text":
    from rich.text import Text

    return Text(printable(cell, NOTE_LENGTH)) if isinstance(cell, str) else cell
