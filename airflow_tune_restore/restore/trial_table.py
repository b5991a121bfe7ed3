"""The parts that all tables of trials share: the columns of differing parameters, and colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.restore.columns import GAP, Column, needed_width, render_columns

if TYPE_CHECKING:
    from rich.text import Text

_SHARE = 3
"""A third of the width is for parameters: the reasons of a plan need the rest."""

STATUS_STYLES: Mapping[str, str] = {
    TrialStatus.TERMINATED: "green",
    TrialStatus.ERROR: "red",
    TrialStatus.RUNNING: "yellow",
    TrialStatus.PENDING: "yellow",
    TrialStatus.PAUSED: "yellow",
}


def fitting_parameters(
    rows: Sequence[Mapping[str, str]], width: int, *, more: int = 0, others: int = 0
) -> tuple[list[str], str]:
    """Return the parameters that get a column in a table of this width, and a note on the others.

    `rows` hold the parameters of the trials; `more` is the number of those that they do not hold.
    `others` is the width that the other columns need, if it is scarce: then no parameter may fit. The
    note is "" if all are shown.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown: list[str] = []
    room = min(width // _SHARE, width - others)
    for name in names:
        room -= max(len(name), *(len(row.get(name, "")) for row in rows)) + GAP
        if (shown or others) and room < 0:
            break
        shown.append(name)
    hidden = names[len(shown) :]
    if not hidden and not more:
        return shown, ""
    count = f"{more} more" if hidden and more else f"{more} parameters" if more else ""
    listed = " and ".join(filter(None, [", ".join(hidden), count]))
    return shown, f"The trials also differ in {listed}. Each params.json has all of its trial."


def render_trials(
    columns: Sequence[Column],
    parameters: Sequence[Mapping[str, str]],
    width: int,
    *,
    more: int = 0,
    optional: str = "",
    hidden: str = "",
    in_colour: bool = False,
) -> str:
    """Return a table of trials as text, with the parameters in which they differ behind their ids.

    Where the width is too small for all columns, the one with the heading `optional` goes first, then
    the parameters. `more` is as in `fitting_parameters`, and `hidden` the line for rows that are not
    shown.
    """

    def with_parameters(names: Sequence[str]) -> list[Column]:
        shown = [Column(name, [row.get(name, "-") for row in parameters]) for name in names]
        return [columns[0], *shown, *columns[1:]]

    names, left_out = fitting_parameters(parameters, width, more=more)
    if needed_width(with_parameters(names)) > width:
        columns = [column for column in columns if column.heading != optional]
        others = needed_width(columns)
        if others <= width:  # else each trial is a block
            names, left_out = fitting_parameters(parameters, width, more=more, others=others)
    text = render_columns(with_parameters(names), width, in_colour=in_colour) + hidden
    return f"{text}\n{left_out}" if left_out else text


def coloured(text: str, styles: Mapping[str, str] = STATUS_STYLES) -> "Text":
    """Return a text on one line in which words have colours. Nothing in it is markup or obeyed."""
    from rich.text import Text  # not needed with --json

    shown = Text(printable(text, NOTE_LENGTH))
    for word, style in styles.items():
        shown.highlight_words([word], style)
    return shown
