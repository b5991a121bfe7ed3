"""Values of this package and of storage -> what the page and the report may show."""

import math
from datetime import UTC, datetime
from typing import Any

from airflow_tune_restore.protocol.numbers import MAX_COUNT, strict_json
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable


def showable(value: Any) -> Any:
    """Return a value of dicts, lists and scalars as strict JSON whose texts can be shown as they are.

    Each text becomes one printable line of at most `NOTE_LENGTH` characters. NaN and infinities become
    None, and an integer of more than 64 bits becomes a text.
    """
    if isinstance(value, str):
        return printable(str(value), NOTE_LENGTH)
    if isinstance(value, dict):
        return {printable(str(key)): showable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [showable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return strict_json(value)


def finite(value: Any) -> float | int | None:
    """Return a metric as a number that JSON has; None for any other value."""
    if type(value) not in (int, float):
        return None
    if type(value) is int and abs(value) <= MAX_COUNT:
        return value
    try:
        return as_float if math.isfinite(as_float := float(value)) else None
    except OverflowError:  # an integer in JSON may be larger than any float
        return None


def as_iso(at: datetime | None) -> str | None:
    """Return a time as ISO 8601; None if it is unknown."""
    return at.isoformat() if at is not None else None


def at_second(text: str) -> str:
    """Return an ISO time of a record as people read it; a text that is none stays as it is."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError):
        return text
