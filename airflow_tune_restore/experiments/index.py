"""What scans remember of a prefix, in one object below it, so that the next one gets less.

It is advice: a line of JSON for each experiment. A line counts only while the listing of its experiment
still shows the very objects that it was made from; one that is damaged, too long, or says what no state
file could, is read anew. Lost, the index is made again. Of two scans that write it at once the later one
wins. What is restored is read again from the state itself in any case.

It is not signed: who can write below the prefix can forge it. So every scan with an index reads again,
by chance, some of what it took from there (`spot_check`), and all as soon as one line is not as its
state is. What a forged index can still do: each line that a scan takes is read again with a chance of
one in 32, and eight lines at least; if none of the forged ones is among them, their experiments stand
as the lines say, for that scan. So 60 forged lines of 60 are found by the first scan for certain, 60 of
1,000 by each scan with 85 %, one of 60 after 8 scans on average and one of 1,000 after 32. Found, they
are replaced; a forger has to write again. Words beside a verdict (by what trials ended, warnings) are
not compared.

Nothing is packed, and no line is decoded further than to its parts before it is wanted: whatever a file
of `MAX_INDEX_BYTES` claims, it takes a few times its own length to read.
"""

import hashlib
import logging
import threading
from collections.abc import Iterator
from io import BytesIO
from itertools import islice

import msgspec

from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.base import ObjectStore

MIN_ROWS = 50
"""Fewer experiments are read as fast as an index is, and nobody wonders what the file is."""

MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_ROWS = 100_000

MAX_ROW_BYTES = 16 * 1024
"""Of one experiment: with some four hundred unfinished trials. A larger one is read again every time."""

_DAMAGE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises at bytes that are no such value."""

log = logging.getLogger(__name__)


class Row(msgspec.Struct, frozen=True, gc=False):
    """One line. Fields are kept in indexes: only ever add, with a default.

    Args:
        path: Of the experiment, below the prefix.
        fingerprint: Of the objects that it was made from.
        facts: What they say; decoded when it is wanted.
        check: What tells a whole row from a damaged one.
    """

    path: str
    fingerprint: str
    facts: msgspec.Raw
    check: str


class Index:
    """The rows of one prefix, by path below it. Threads may look up and remember at once.

    Args:
        rows: Path -> row.
        replaces_forged: Whether what stands in the store must not stay, however few rows this one has.
    """

    def __init__(
        self, rows: dict[str, Row] | None = None, *, replaces_forged: bool = False
    ) -> None:
        self._rows = rows or {}
        self._replaces_forged = replaces_forged
        self._taken: set[str] = set()
        self._new: set[str] = set()
        self._lock = threading.Lock()

    @property
    def taken(self) -> list[str]:
        """The paths of which this scan knows only what is remembered, sorted."""
        return sorted(self._taken - self._new)

    def look_up(self, path: str, fingerprint: str | None) -> StateSummary | None:
        """Return what is remembered of an experiment, if it still looks as it did then."""
        row = self._rows.get(path)
        if row is None or fingerprint is None or row.fingerprint != fingerprint:
            return None
        try:
            facts = msgspec.json.decode(row.facts, type=StateSummary)
        except _DAMAGE:
            return None
        if not facts.is_sound:
            return None
        with self._lock:
            self._taken.add(path)
        return facts

    def remember(self, path: str, fingerprint: str | None, facts: StateSummary) -> None:
        """Keep what an experiment says for the next scan, if that one would take it."""
        if fingerprint is None or not facts.is_sound:
            return
        row = build_row(path, fingerprint, msgspec.json.encode(facts))
        if len(encode_row(row)) > MAX_ROW_BYTES:
            return
        with self._lock:
            self._rows[path] = row
            self._new.add(path)

    def write(self, store: ObjectStore, *, was_complete: bool) -> None:
        """Write it back, if there is something new. A prefix that cannot be written to stays as it is.

        Args:
            store: Rooted at the prefix.
            was_complete: The scan saw all of the prefix: what it did not come across is gone.
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
                store.uri,
                len(rows),
                len(body),
            )
            return
        try:
            store.put(layout.INDEX, body)
        except TuneRestoreError as error:
            log.info("The index of %s is not kept: %s", store.uri, error)


def read_index(store: ObjectStore) -> Index:
    """Read what is remembered of a prefix; whatever stands there, it is an index, if an empty one."""
    try:
        body = store.get(layout.INDEX, max_bytes=MAX_INDEX_BYTES)
    except KeyNotFoundError:
        return Index()
    except TuneRestoreError as error:
        log.info("The index of %s is not used: %s", store.uri, error)
        return Index()
    return Index({row.path: row for row in _read_rows(body)})


def _read_rows(body: bytes) -> Iterator[Row]:
    """Yield the rows that are whole."""
    for line in islice(BytesIO(body), MAX_ROWS):
        if len(line) > MAX_ROW_BYTES:
            continue
        try:
            row = msgspec.json.decode(line, type=Row)
        except _DAMAGE:
            continue
        if row.check == _check(row.path, row.fingerprint, row.facts):
            yield row


def build_row(path: str, fingerprint: str, facts: bytes) -> Row:
    """Return what is remembered of one experiment, of facts as JSON."""
    check = _check(path, fingerprint, facts)
    return Row(path, fingerprint, msgspec.Raw(facts), check)


def encode_row(row: Row) -> bytes:
    """Return its line."""
    return msgspec.json.encode(row) + b"\n"


def _check(path: str, fingerprint: str, facts: bytes | msgspec.Raw) -> str:
    parts = (path.encode(), fingerprint.encode(), facts)
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]
