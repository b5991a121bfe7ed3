"""JSON of the records that only Airflow's side reads: plan, commit record, ledger."""

from typing import Annotated, Any

import msgspec

from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.numbers import MAX_COUNT

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
"""Checked when a record is read."""


def encode(record: Any) -> bytes:
    """Encode a record; the same record gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def decode(body: bytes, kind: type[Any]) -> Any:
    """Decode a record. Fields that a newer version added are ignored.

    Raises:
        ValueError: If it is something else, or may hold more values than this package writes.
            RecursionError if it nests too deeply.
    """
    bounded_json.check_values(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:  # a ValueError only since msgspec 0.21
        raise ValueError(str(error)) from error
