"""A script as Python code, so that a failing one can be pasted into a test."""

from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any


def as_code(value: Any) -> str:
    """Return the code of a value: `repr`, but with enums by name, and without fields at their default."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, tuple):
        inner = ", ".join(map(as_code, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if not is_dataclass(value):
        return repr(value)
    given = [
        f"{each.name}={as_code(getattr(value, each.name))}"
        for each in fields(value)
        if getattr(value, each.name) != _default(each)
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def _default(each: Field[Any]) -> Any:
    return each.default if each.default is not MISSING else MISSING
