"""Making untrusted text safe to show: in a log, on a terminal, in a table. Standard library only."""

import re
from collections.abc import Sequence
from unicodedata import category

_JOINERS = "\u200c\u200d"
"""Zero-width joiners of letters and emoji; names may hold them."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:<=>?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
"""Escape sequences: colours, cursor movements, window titles."""

NOTE_LENGTH = 4000
"""Characters of a reason or warning of this package: the command to run is at its end."""

_SHORT_NOTE, _SHOWN = 400, 20
"""Of many notes in one message: the characters of each, and how many of them."""

_GAP = " […] "

_FOLDS = re.compile(r"(?<!:):{2,}(?=(?:end)?group::)")
"""Airflow's log page folds at `::group::` and hides lines with `::endgroup::`, anywhere in a line."""


def printable(text: str, most: int = 400) -> str:
    """Reduce untrusted text to one line without control characters, of at most `most` characters.

    A longer text loses its middle.
    """
    if len(text) <= most and text.isprintable() and "::" not in text:
        return text
    text = shortened(text, 4 * most)
    if text.isprintable() and "::" not in text:
        return shortened(text, most)
    line = "".join(c if is_printable(c) else " " for c in _ESCAPES.sub("", text))
    return shortened(_FOLDS.sub(":", line), most)


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters: a longer one without its middle.

    A message begins with what happened, and ends with what to do next.
    """
    if len(text) <= most:
        return text
    begin = (most - len(_GAP)) // 2
    return f"{text[:begin]}{_GAP}{text[begin + len(_GAP) - most :]}"


def first_of(texts: Sequence[str]) -> str:
    """Join sentences for one message: the first ones, shortened if there are many, and a count."""
    most = max(_SHORT_NOTE, NOTE_LENGTH // max(len(texts), 1))
    first = "; ".join(printable(text, most) for text in texts[:_SHOWN])
    more = len(texts) - _SHOWN
    return f"{first}; and {more} more, which the log has" if more > 0 else first


def counted(number: int, noun: str) -> str:
    """Return "1 trial" or "2 trials"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def share(part: int, whole: int, noun: str) -> str:
    """Return "1 of 3 trials"; "all 3 trials" or "1 trial" if the part is the whole."""
    if part != whole:
        return f"{part} of {counted(whole, noun)}"
    return f"all {counted(whole, noun)}" if whole > 1 else counted(whole, noun)


def is_printable(text: str) -> bool:
    """Whether a text can be shown and stored as it is.

    It must not hold controls, formats or line ends (Unicode's Cc, Cf, Cs, Zl, Zp), except joiners, and no
    folds. Characters that are too new for this Python are harmless.
    """
    if _FOLDS.search(text):
        return False
    return text.isprintable() or all(
        c in _JOINERS or category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text
    )
