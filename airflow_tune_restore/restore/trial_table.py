"""The parts that all tables of trials share: the columns of differing parameters, and colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable

if TYPE_CHECKING:
    from rich.text import Text

_GAP = 2
"""Columns of a terminal between two columns of a table."""

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
    rows: Sequence[Mapping[str, str]], width: int, *, more: int = 0
) -> tuple[list[str], str]:
    """Return the parameters that get a column in a table of this width, and a note on the others.

    `rows` hold the parameters of the trials; `more` is the number of those that they do not hold. The
    note is "" if there are no others.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown: list[str] = []
    room = width // _SHARE
    for name in names:
        room -= max(len(name), *(len(row.get(name, "")) for row in rows)) + _GAP
        if shown and room < 0:
            break
        shown.append(name)
    others = names[len(shown) :]
    if not others and not more:
        return shown, ""
    count = f"{more} more" if others and more else f"{more} parameters" if more else ""
    listed = " and ".join(filter(None, [", ".join(others), count]))
    return shown, f"The trials also differ in {listed}. Each params.json has all of its trial."


def coloured(text: str, styles: Mapping[str, str] = STATUS_STYLES) -> "Text":
    """Return a text on one line in which words have colours. Nothing in it is markup or obeyed."""
    from rich.text import Text  # not needed with --json

    shown = Text(printable(text, NOTE_LENGTH))
    for word, style in styles.items():
        shown.highlight_words([word], style)
    return shown
