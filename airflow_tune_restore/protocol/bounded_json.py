"""JSON that anybody may have written: how much of it is decoded. Standard library only.

A limit on bytes does not bound what they become: as Python objects, `[],[],…` takes 25 times as much. So
what can become a value is counted, before anything is decoded; and of large documents, whatever the
threads of a process read, one is decoded at a time.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""Of one document: half a row of a state, what stands around the rows, a line of results.

As text each may take four bytes of memory a character, and several copies. Configs and results of
megabytes are genuine; larger ones Ray itself would write again at every snapshot.
"""

MAX_VALUES = 2_000_000
"""Of one document. They take 160 MiB at worst; a list of numbers has fewer in `MAX_DOCUMENT_BYTES`."""

_SEPARATORS = ",:[{"
"""There are at least as many of them as values and keys; those inside texts are counted, too."""

_LARGE_BYTES = 64 * 1024

_ONE_AT_A_TIME, _NOTHING = RLock(), nullcontext()


def alone(size_bytes: int) -> AbstractContextManager[object]:
    """Return what to hold while a document of this size is decoded, and while all of it is there."""
    return _alone() if size_bytes > _LARGE_BYTES else _NOTHING


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other large document be decoded, and nobody look for cycles: JSON has none.

    The collector would go through a million new lists again and again, for nine tenths of the time.
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
    """Refuse a document by its size.

    Raises:
        ValueError: If it is too large to be decoded.
    """
    if size_bytes > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it holds {size_bytes} bytes; at most {MAX_DOCUMENT_BYTES} are decoded")


def check_values(text: str | bytes, most: int = MAX_VALUES) -> None:
    """Refuse JSON by the number of values that it may hold.

    Raises:
        ValueError: If there may be more than `most`.
    """
    if len(text) <= most:
        return
    if (values := count_marks(text, _SEPARATORS)) > most:
        raise ValueError(f"it may hold {values} values; at most {most} are decoded")


def count_marks(text: str | bytes, marks: str) -> int:
    """Return how often any of some ASCII characters stands in JSON.

    With `,[{` it is no less than the number of values, with `:` that of keys besides.
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
    """Decode a document as plain values, with the numbers that strict parsers refuse.

    Args:
        text: The document.
        most_values: How many values it may hold.
        parse_constant: What becomes of NaN and infinities (`json.loads`).

    Raises:
        ValueError: If it is not JSON, or too large; RecursionError if it nests too deeply.
    """
    check_size(len(text))
    check_values(text, most_values)
    return json.loads(text, parse_constant=parse_constant)
