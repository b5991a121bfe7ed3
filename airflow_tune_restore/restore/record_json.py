"""JSON of the records that only Airflow's side reads: plan, commit record, ledger, recipe.

A decoder is made when its module is imported, by one thread. If two threads use a type for the first
time at the same moment, msgspec 0.22 reads its half-made description: the process crashes, or hangs with
the interpreter's lock held.
"""

import json
from typing import Annotated, Any, TypeVar

import msgspec

from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.numbers import MAX_COUNT

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
"""Checked when a record is read."""

_Record = TypeVar("_Record")


def encode(record: Any) -> bytes:
    """Encode a record; the same record gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def indented(plain: Any) -> str:
    """Return plain values as JSON in ASCII, indented.

    Raises:
        ValueError: If there is a NaN or an infinity in it.
    """
    text = json.dumps(plain, allow_nan=False)
    try:
        return msgspec.json.format(text, indent=1)  # a fifth of what json takes to indent it
    except msgspec.DecodeError:  # half a surrogate pair, from a path that is not UTF-8
        return json.dumps(plain, indent=1)


def decode(body: bytes, decoder: "msgspec.json.Decoder[_Record]") -> _Record:
    """Decode a record. Fields that a newer version added are ignored.

    Raises:
        ValueError: If it is something else, or may hold more values than this package writes.
            RecursionError if it nests too deeply.
    """
    bounded_json.check_values(body)
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:  # a ValueError only since msgspec 0.21
        raise ValueError(str(error)) from error
