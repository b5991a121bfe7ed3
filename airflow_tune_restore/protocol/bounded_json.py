"""Decoding JSON from untrusted writers within limits of memory.

A limit on bytes is not enough: as Python objects, `[],[],…` takes 25 times as much. So possible values
are counted before the decoding. A process decodes only one large document at a time. Standard library
only.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""Size limit of one document: half a row of a state, the rest of a state, a line of results.

In memory, its text may take four bytes per character, several times. Configs and results of several
megabytes exist; Ray would write larger ones again at every snapshot.
"""

MAX_VALUES = 2_000_000
"""Limit of values in one document (160 MiB). A list of numbers reaches the limit of bytes first."""

_SEPARATORS = ",:[{"
"""At least as many of them exist as values and keys; those inside texts are also counted."""

_LARGE_BYTES = 64 * 1024

_ONE_AT_A_TIME, _NOTHING = RLock(), nullcontext()


def alone(size_bytes: int) -> AbstractContextManager[object]:
    """Return the context in which a document of this size is decoded and used."""
    return _alone() if size_bytes > _LARGE_BYTES else _NOTHING


@contextmanager
def _alone() -> Iterator[None]:
    """Decode no other large document, and stop the garbage collector: JSON has no cycles.

    Otherwise the collector would scan a million new lists again and again, nine tenths of the time.
    """
    with _ONE_AT_A_TIME:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


def check_size(size_bytes: int) -> None:
    """Refuse a document of more than `MAX_DOCUMENT_BYTES` (ValueError)."""
    if size_bytes > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it holds {size_bytes} bytes; at most {MAX_DOCUMENT_BYTES} are decoded")


def check_values(text: str | bytes, most: int = MAX_VALUES) -> None:
    """Refuse JSON that may hold more than `most` values (ValueError)."""
    if len(text) > most and (values := count_marks(text, _SEPARATORS)) > most:
        raise ValueError(f"it may hold {values} values; at most {most} are decoded")


def count_marks(text: str | bytes, marks: str) -> int:
    """Return how often any of these ASCII characters occurs in JSON.

    The count of `,[{` is at least the number of values; the count of `:` is at least that of keys.
    """
    if isinstance(text, str):
        return sum(text.count(mark) for mark in marks)
    return sum(text.count(mark) for mark in marks.encode())


def load(
    text: str | bytes,
    *,
    most_values: int = MAX_VALUES,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """Decode a document as plain values, including NaN and infinities (`parse_constant`).

    Raises:
        ValueError: If it is not JSON, or too large; RecursionError if it nests too deeply.
    """
    check_size(len(text))
    check_values(text, most_values)
    return json.loads(text, parse_constant=parse_constant)
