"""Checks of untrusted names: in states, plans and listings. Standard library only."""

from typing import Any

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.numbers import is_amount
from airflow_tune_restore.protocol.printable import is_printable

MAX_NAME = 255
"""Limit of bytes of one path segment, as of file systems."""

MAX_TRAINABLE = 10_000
"""Limit of characters of a trainable's name, which is part of a command line."""

SWEEP_PREFIX = "sweep-"
"""Begins the id under which a sweep's own script holds the lease; ids of restores never do."""


def is_segment(name: str) -> bool:
    """Whether a name is one path segment on every store, and does not lead to a parent.

    A backslash is an ordinary character, as in Ray. But some stores read it as a slash, so no part
    between two of them may be a parent.
    """
    return (
        # first, so that the other checks never read a long name
        len(name) <= MAX_NAME
        and name not in ("", layout.ROOT)
        and "/" not in name
        and ("." not in name or not {".", ".."} & set(name.split("\\")))
        and is_text(name)
        and len(name.encode()) <= MAX_NAME
    )


def is_safe_name(name: str) -> bool:
    """Whether a name is a path segment that can be shown as it is."""
    return is_segment(name) and is_printable(name)


def is_key_name(name: str) -> bool:
    """Whether a name is safe, and still one path segment when it is encoded in a key."""
    if not is_safe_name(name):
        return False
    # encoded, a character of ASCII is at most three
    return (name.isascii() and 3 * len(name) <= MAX_NAME) or len(layout.segment(name)) <= MAX_NAME


def is_sweep(restore_id: str) -> bool:
    """Whether an id is that of a sweep's own run, and not of a restore."""
    return restore_id.startswith(SWEEP_PREFIX)


def is_trainable_name(name: str) -> bool:
    """Whether a name can be that of a trainable. Make it printable before it is shown."""
    return len(name) <= MAX_TRAINABLE and is_text(name)


def is_resource(name: str, amount: Any) -> bool:
    """Whether a resource request is valid: its name can be shown, and its amount is a number."""
    return is_amount(amount) and len(name) <= MAX_NAME and is_printable(name)


def is_text(name: str) -> bool:
    """Whether a text can be stored and put on a command line: no NUL, no lone surrogates."""
    return "\0" not in name and (name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name))
