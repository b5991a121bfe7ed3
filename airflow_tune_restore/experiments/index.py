"""The index of a prefix: one object below it with a summary per experiment, so that scans read less.

A line counts only while the listing of the experiment still shows the objects that it was made from. A
line that is damaged, too long or implausible is ignored, and a lost index is built again. If two scans
write it at once, the later one wins. Anyone who can write below the prefix can forge it: every scan reads
some experiments again (`spot_check`, ADR 0018). A line is decoded only when it is needed, so that reading
an index takes a few times its length in memory, whatever it holds.
"""

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.base import ObjectStore

MIN_ROWS = 50
"""Fewer experiments are read as fast as an index is, and the prefix stays free of a file."""

MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_ROWS = 100_000

MAX_ROW_BYTES = 16 * 1024
"""Of one experiment: enough for about four hundred unfinished trials. Larger ones are not kept."""

_DAMAGE = (msgspec.MsgspecError, ValueError, RecursionError)
"""Errors of msgspec for damaged bytes."""

log = logging.getLogger(__name__)


class Row(msgspec.Struct, frozen=True, gc=False):
    """One line. Fields are kept in indexes: only ever add, with a default.

    Args:
        path: Path of the experiment below the prefix.
        summary: A `StateSummary`, decoded when it is needed.
        check: Checksum, which differs in a damaged row.
    """

    path: str
    fingerprint: str
    summary: msgspec.Raw
    check: str


_ROW, _SUMMARY = msgspec.json.Decoder(Row), msgspec.json.Decoder(StateSummary)


class Index:
    """The rows of one prefix, by path. Threads may look up and remember at once.

    One that replaces a forged index is written to the store however few rows it has.
    """

    def __init__(self, rows: Iterable[Row] = (), *, replaces_forged: bool = False) -> None:
        self._rows = {row.path: row for row in rows}
        self._replaces_forged = replaces_forged
        self._taken: set[str] = set()
        self._new: set[str] = set()
        self._lock = threading.Lock()

    @property
    def taken(self) -> list[str]:
        """The paths of experiments that this scan took from the index alone, sorted."""
        return sorted(self._taken - self._new)

    def look_up(self, path: str, fingerprint: str | None) -> StateSummary | None:
        """Return the summary of an experiment, if its files have not changed since; else None."""
        row = self._rows.get(path)
        if row is None or fingerprint is None or row.fingerprint != fingerprint:
            return None
        try:
            summary = _SUMMARY.decode(row.summary)
        except _DAMAGE:
            return None
        if not summary.is_sound:
            return None
        with self._lock:
            self._taken.add(path)
        return summary

    def remember(self, path: str, fingerprint: str | None, summary: StateSummary) -> None:
        """Keep the summary of an experiment for the next scan, unless that scan would ignore it."""
        if fingerprint is None or not summary.is_sound:
            return
        row = build_row(path, fingerprint, msgspec.json.encode(summary))
        if len(encode_row(row)) > MAX_ROW_BYTES:
            return
        with self._lock:
            self._rows[path] = row
            self._new.add(path)

    def write(self, store: ObjectStore, *, was_complete: bool) -> None:
        """Write it back if there are new rows. A prefix that cannot be written to is left as it is.

        After a scan that saw all of the prefix (`was_complete`), what it did not find is gone.
        """
        seen = self._taken | self._new
        rows = [row for path, row in sorted(self._rows.items()) if path in seen or not was_complete]
        is_worth_it = self._new and len(rows) >= MIN_ROWS
        if not (is_worth_it or self._replaces_forged):
            return
        body = b"".join(map(encode_row, rows))
        if len(rows) > MAX_ROWS or len(body) > MAX_INDEX_BYTES:
            log.warning(
                "The index of %s is not kept: it would hold %d rows in %d bytes.",
                *(store.uri, len(rows), len(body)),
            )
            return
        try:
            store.put(layout.INDEX, body)
        except TuneRestoreError as error:
            log.info("The index of %s is not kept: %s", store.uri, error)


def read_index(store: ObjectStore) -> Index:
    """Read the index of a prefix; an empty one if there is none that can be read."""
    try:
        body = store.get(layout.INDEX, max_bytes=MAX_INDEX_BYTES)
    except KeyNotFoundError:
        return Index()
    except TuneRestoreError as error:
        log.info("The index of %s is not used: %s", store.uri, error)
        return Index()
    return Index(_read_rows(body))


def _read_rows(body: bytes) -> Iterator[Row]:
    """Yield the undamaged rows."""
    for line in islice(BytesIO(body), MAX_ROWS):
        if len(line) > MAX_ROW_BYTES:
            continue
        try:
            row = _ROW.decode(line)
        except _DAMAGE:
            continue
        if row.check == _check(row.path, row.fingerprint, row.summary):
            yield row


def build_row(path: str, fingerprint: str, summary: bytes) -> Row:
    """Return the row of one experiment; the summary is JSON."""
    return Row(path, fingerprint, msgspec.Raw(summary), _check(path, fingerprint, summary))


def encode_row(row: Row) -> bytes:
    """Return its line."""
    return msgspec.json.encode(row) + b"\n"


def _check(path: str, fingerprint: str, summary: bytes | msgspec.Raw) -> str:
    parts = (path.encode(), fingerprint.encode(), summary)
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]
