"""The size of XComs: none of this package is larger, however many experiments and trials there are.

A list that another task of this package reads whole is packed if it is too large. Any other list is cut.
"""

import base64
import json
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol import bounded_json

MAX_XCOM_BYTES = 256 * 1024
"""Each XCom has fewer bytes, as JSON: it lies in Airflow's database, and each reader gets all of it."""

MAX_UNPACKED_BYTES = 16 * 1024 * 1024
"""Most bytes of a packed list as JSON: a small XCom must not fill the memory of its reader."""

_PACKED = "packed"
_Item = TypeVar("_Item")


def fits(value: Any, *, beside: int = 0) -> bool:
    """Whether a value is small enough for an XCom, and leaves room for so many bytes beside it."""
    return len(json.dumps(value)) + beside < MAX_XCOM_BYTES


def first_fitting(items: Iterable[_Item], *, beside: int = 0) -> list[_Item]:
    """Return the first items that fit into an XCom as a list; the others are not computed.

    `beside` is the number of bytes of what else is in the XCom.
    """
    taken: list[_Item] = []
    size = beside
    for item in items:
        size += len(json.dumps(item)) + len(", ")
        if size >= MAX_XCOM_BYTES:
            break
        taken.append(item)
    return taken


def most_fitting(count: int, build: Callable[[int], Any], *, beside: int = 0) -> int:
    """Return the largest number up to `count` for which the value that is built fits; 0 without one."""

    def is_too_many(number: int) -> bool:
        return not fits(build(number), beside=beside)

    if not is_too_many(count):
        return count
    return bisect_left(range(1, count + 1), x=True, key=is_too_many)


def pack(items: Sequence[Any]) -> dict[str, Any]:
    """Return a list in few bytes: one mapping, with the compressed JSON as base64."""
    body = zlib.compress(json.dumps(items, separators=(",", ":")).encode(), level=9)
    return {_PACKED: base64.b64encode(body).decode()}


def unpack(value: Any) -> Any:
    """Return the list behind `pack`; any other value as it is.

    Raises:
        InvalidInputError: If it is broken, or would have more than `MAX_UNPACKED_BYTES`.
    """
    if not isinstance(value, Mapping) or _PACKED not in value:
        return value
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(base64.b64decode(value[_PACKED]), MAX_UNPACKED_BYTES)
        bounded_json.check_values(text)
        items = json.loads(text) if reader.eof else None
    except (TypeError, ValueError, RecursionError, zlib.error):
        items = None
    if not isinstance(items, list):
        raise InvalidInputError(
            f"A packed XCom is broken, or larger than {MAX_UNPACKED_BYTES} bytes. Clear the task that "
            "pushed it, with its downstream tasks."
        )
    return items
