"""Foreign text made fit to be shown: in a log, on a terminal, in a table. Standard library only."""

import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:<=>?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
"""Colours, cursor movements, window titles."""

_FOLDS = re.compile(r"::(?=(?:end)?group::)")
"""Airflow's page of a log folds lines with `::group::` and hides those with `::endgroup::`."""


def printable(text: str, most: int = 400) -> str:
    """Reduce foreign text to one line without control characters: names and errors are untrusted."""
    line = "".join(c if c.isprintable() else " " for c in _ESCAPES.sub("", text[: 4 * most]))
    return _FOLDS.sub(":", line)[:most]
