"""Foreign text made fit to be shown: in a log, on a terminal, in a table. Standard library only."""

import re
from unicodedata import category

_JOINERS = "\u200c\u200d"
"""Hold letters and emoji together; names have them."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:<=>?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
"""Colours, cursor movements, window titles."""

NOTE_LENGTH = 4000
"""Characters of a reason or a warning of ours: the command that helps stands at its end."""

_FOLDS = re.compile(r"(?<!:):{2,}(?=(?:end)?group::)")
"""Airflow's page of a log folds lines with `::group::` and hides those with `::endgroup::`, wherever they
stand in a line."""


def printable(text: str, most: int = 400) -> str:
    """Reduce foreign text to one line without control characters: names and errors are untrusted."""
    text = text[: 4 * most]
    if text.isprintable() and "::" not in text:
        return text[:most]
    line = "".join(c if is_printable(c) else " " for c in _ESCAPES.sub("", text))
    return _FOLDS.sub(":", line)[:most]


def counted(number: int, noun: str) -> str:
    """Return "1 trial" or "2 trials"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_printable(text: str) -> bool:
    """Whether a text can be shown and stored as it is: no controls, no turning of directions, no folds.

    All but controls, formats and line ends (Unicode's Cc, Cf, Cs, Zl, Zp), of which the joiners of other
    scripts are let through. Characters that this Python does not know yet are newer, and no harm.
    """
    if _FOLDS.search(text):
        return False
    return text.isprintable() or all(
        c in _JOINERS or category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text
    )
