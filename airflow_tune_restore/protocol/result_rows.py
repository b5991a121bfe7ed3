"""The rows of `result.json`: one JSON object per line. Standard library only."""

import io
import json
from collections.abc import Collection, Iterator
from typing import Any

from airflow_tune_restore.protocol import bounded_json


def iter_rows(
    body: bytes, *, fields: Collection[str] | None = None, containing: bytes = b""
) -> Iterator[dict[str, Any]]:
    """Yield the rows; skip lines that were cut off, or that are too large (`bounded_json`).

    Only these `fields` of each row are kept: memory stays small with few. Lines without the bytes
    `containing` are skipped, and not decoded.
    """
    for line in io.BytesIO(body):
        if containing in line and len(line) <= bounded_json.MAX_DOCUMENT_BYTES:
            with bounded_json.alone(len(line)):
                try:
                    bounded_json.check_values(line)
                except ValueError:
                    continue
                row = parse_row(line.decode(errors="replace"), fields=fields)
            if row is not None:
                yield row


def parse_row(line: str, *, fields: Collection[str] | None = None) -> dict[str, Any] | None:
    """Return the row of one line; None if it is not a whole one: a killed writer cuts lines off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    return row if fields is None else {name: row[name] for name in fields if name in row}
