"""What scans remember of a prefix, in one Parquet object below it, so that the next one gets less.

It is advice. A row counts only while the listing of its experiment still shows the very objects that it
was made from, so a scan with it and one without it come to the same verdicts; a row that is damaged,
or says what no state file could, is read anew. Lost, it is made again. Of two scans that write it
at once the later one wins. What is restored is read again from the state itself in any case.
"""

import hashlib
import json
import logging
import threading

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.facts import Facts
from airflow_tune_restore.storage import parquet
from airflow_tune_restore.storage.base import ObjectStore

MIN_ROWS = 50
"""Fewer experiments are read as fast as an index is, and nobody wonders what the file is."""

MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_ROWS = 100_000

MAX_FACTS_BYTES = 16 * 1024
"""Of one experiment: with some four hundred unfinished trials. A larger one is read again every time."""

_COLUMNS = ("path", "fingerprint", "facts", "check")

log = logging.getLogger(__name__)


class Index:
    """The rows of one prefix, by path below it. Threads may look up and remember at once.

    Args:
        rows: Path -> fingerprint, facts as JSON.
    """

    def __init__(self, rows: dict[str, tuple[str, str]] | None = None) -> None:
        self._rows = rows or {}
        self._used: set[str] = set()
        self._is_changed = False
        self._lock = threading.Lock()

    def look_up(self, path: str, fingerprint: str | None) -> Facts | None:
        """Return what is remembered of an experiment, if it still looks as it did then."""
        row = self._rows.get(path)
        if row is None or fingerprint is None or row[0] != fingerprint:
            return None
        try:
            facts = msgspec.json.decode(row[1], type=Facts)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None
        if not facts.is_sound:
            return None
        with self._lock:
            self._used.add(path)
        return facts

    def remember(self, path: str, fingerprint: str | None, facts: Facts) -> None:
        """Keep what an experiment says for the next scan."""
        body = msgspec.json.encode(facts)
        if fingerprint is None or len(body) > MAX_FACTS_BYTES:
            return
        with self._lock:
            self._rows[path] = (fingerprint, body.decode())
            self._used.add(path)
            self._is_changed = True

    def write(self, store: ObjectStore, *, was_complete: bool) -> None:
        """Write it back, if there is something new. A prefix that cannot be written to stays as it is.

        Args:
            store: Rooted at the prefix.
            was_complete: The scan saw all of the prefix: what it did not come across is gone.
        """
        rows = {p: r for p, r in self._rows.items() if p in self._used or not was_complete}
        if not self._is_changed or not MIN_ROWS <= len(rows) <= MAX_ROWS:
            return
        table: parquet.Table = {name: [] for name in _COLUMNS}
        for path, (fingerprint, facts) in sorted(rows.items()):
            row = (path, fingerprint, facts, _check(path, fingerprint, facts))
            for name, value in zip(_COLUMNS, row, strict=True):
                table[name].append(value)
        body = parquet.encode_table(table)
        if len(body) > MAX_INDEX_BYTES:
            log.warning(
                "The index of %s is not kept: it would hold %d bytes.", store.uri, len(body)
            )
            return
        try:
            store.put(layout.INDEX, body)
        except TuneRestoreError as error:
            log.info("The index of %s is not kept: %s", store.uri, error)


def read_index(store: ObjectStore) -> Index | None:
    """Read what is remembered of a prefix; None where no index can be kept at all."""
    if not parquet.is_available():
        log.info("Without pyarrow nothing is remembered of %s.", store.uri)
        return None
    try:
        body = store.get(layout.INDEX, max_bytes=MAX_INDEX_BYTES)
        table = parquet.decode_table(body, _COLUMNS, max_rows=MAX_ROWS)
    except KeyNotFoundError:
        return Index()
    except TuneRestoreError as error:
        log.info("The index of %s is not used: %s", store.uri, error)
        return Index()
    rows = zip(*(table[name] for name in _COLUMNS), strict=True)
    return Index(
        {
            path: (fingerprint, facts)
            for path, fingerprint, facts, check in rows
            if check == _check(path, fingerprint, facts)
        }
    )


def _check(*texts: str) -> str:
    """Return what tells a whole row from a damaged one."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
