"""Names that stand in state files, plans and listings: which of them can be used for what.

Standard library only.
"""

from typing import Any

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.numbers import is_amount
from airflow_tune_restore.protocol.printable import is_printable

MAX_NAME = 255
"""Bytes of a name: the most a file system takes for one segment of a path."""


MAX_TRAINABLE = 10_000
"""Characters of the name of a trainable: it stands on a command line."""


def is_segment(name: str) -> bool:
    """Whether a name is one path segment that stays where it is put, on every store.

    A backslash is a character like any other, as to Ray; but some stores take it for a slash, so no part
    between two of them may lead up.
    """
    return (
        # a long one is not looked through
        len(name) <= MAX_NAME
        and name not in ("", layout.ROOT)
        and "/" not in name
        and not {".", ".."} & set(name.split("\\"))
        and is_text(name)
        and len(name.encode()) <= MAX_NAME
    )


def is_safe_name(name: str) -> bool:
    """Whether a name is a path segment, and can be shown as it is."""
    return is_segment(name) and is_printable(name)


def is_key_name(name: str) -> bool:
    """Whether a name is safe, and still one segment of a path as it stands in our keys."""
    return is_safe_name(name) and len(layout.segment(name)) <= MAX_NAME


def is_trainable_name(name: str) -> bool:
    """Whether a name can be that of a trainable; it is shown made printable, and handed on as it is."""
    return len(name) <= MAX_TRAINABLE and is_text(name)  # a long one is not looked through


def is_resource(name: str, amount: Any) -> bool:
    """Whether something can be sized by so much of a resource, and told of it."""
    return is_amount(amount) and len(name) <= MAX_NAME and is_printable(name)


def is_text(name: str) -> bool:
    """Whether a text can be stored and put on a command line: no NUL, no lone surrogates."""
    return "\0" not in name and (name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name))
