"""Is an index to be trusted? Some of what a scan takes from it is read again from the states themselves.

Who can write below the prefix can forge an index, and nobody would look again at what it calls finished.
Which rows are read cannot be foreseen, and only those count that a scan takes, so it does not help to
fill an index up with others.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_tune_restore.exceptions import StateUnreadableError, TuneRestoreError
from airflow_tune_restore.experiments.index import Index
from airflow_tune_restore.experiments.read import NotStartedError, read_outline
from airflow_tune_restore.experiments.state_summary import (
    StateSummary,
    build_facts,
    fingerprint,
    unreadable_facts,
)
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.storage.base import Entry, ObjectStore

ONE_IN, LEAST = 32, 8
"""Of the rows that a scan takes, each is read again with this chance, and no fewer than so many."""

TOLD = frozenset({"searcher_lost", "warnings", "ended_by"})
"""Fields of facts that no verdict rests on. Some are added later, of what is about to be restored."""

Chance = Callable[[str], float]
"""Path -> a number from 0 to 1, always the same for one path: the lowest are read again."""

log = logging.getLogger(__name__)


def fresh_chance() -> Chance:
    """Return numbers that nobody can foresee."""
    salt = secrets.token_bytes(16)

    def number(path: str) -> float:
        drawn = hashlib.blake2b(path.encode(), digest_size=8, key=salt).digest()
        return int.from_bytes(drawn) / 2**64

    return number


class SpotCheck:
    """What one scan reads again beside its index. Threads may look at once.

    Args:
        index: That of the scan.
        chance: Chooses what is read again.
    """

    def __init__(self, index: Index, chance: Chance) -> None:
        self._index = index
        self._chance = chance
        self._found: dict[str, str] = {}

    def look(self, store: ObjectStore, entries: list[Entry], path: str) -> None:
        """Read an experiment again whose facts were just taken from the index, if it is chosen.

        Args:
            store: Rooted at the experiment directory.
            entries: Its listing.
            path: Where it is below the prefix.
        """
        if self._chance(path) < 1 / ONE_IN and path not in self._found:
            self._found[path] = self._contradiction(store, entries, path)

    def agrees(self, store: ObjectStore, threads: ThreadPoolExecutor) -> bool:
        """Whether what was read again is as the index says; logged if not. Asked after the scan.

        Args:
            store: Rooted at the prefix.
            threads: With these the rest is read, where chance chose too few.
        """
        lowest = sorted(self._index.taken, key=self._chance)[:LEAST]
        rest = [path for path in lowest if path not in self._found]
        found = threads.map(lambda path: self._contradiction(store.at(path), None, path), rest)
        self._found |= zip(rest, found, strict=True)
        wrong = {path: text for path, text in sorted(self._found.items()) if text}
        for path in list(wrong)[:LEAST]:
            log.warning("%s: %s", store.at(path).uri, printable(wrong[path], NOTE_LENGTH))
        if wrong:
            log.warning(
                "%s: %d of %d rows of the index that were checked are not as their states are. It is not "
                "trusted, and all experiments are read again. Somebody may have forged %s: see who can "
                "write there.",
                store.uri,
                len(wrong),
                len(self._found),
                layout.INDEX,
            )
        return not wrong

    def _contradiction(self, store: ObjectStore, entries: list[Entry] | None, path: str) -> str:
        """Return in words what the index says of an experiment and its state does not; "" if nothing.

        Nothing is said of one that changes meanwhile, or that cannot be read now.
        """
        try:
            return self._read_again(store, store.list_dir() if entries is None else entries, path)
        except TuneRestoreError as error:
            log.warning("%s is not read again beside the index: %s", store.uri, error)
        except Exception as error:  # noqa: BLE001  reported, and the scan goes on
            report_unexpected(store.uri, error)
        return ""

    def _read_again(self, store: ObjectStore, entries: list[Entry], path: str) -> str:
        mark = fingerprint(entries)
        said = self._index.look_up(path, mark)
        if said is None:
            return ""
        try:
            contradiction = _compare(said, build_facts(read_outline(store, entries)))
        except StateUnreadableError as error:
            contradiction = _compare(said, unreadable_facts(error.reason))
        except NotStartedError as error:
            contradiction = f"the index says trials={said.trials!r}, but {str(error).rstrip('.')}."
        is_as_it_was = not contradiction or fingerprint(store.list_dir()) == mark
        return contradiction if is_as_it_was else ""


def _compare(said: StateSummary, read: StateSummary) -> str:
    by_index, by_state = _judged(said), _judged(read)
    differing = [name for name in by_index if by_index[name] != by_state[name]]
    if not differing:
        return ""
    told = [", ".join(f"{n}={values[n]!r}" for n in differing) for values in (by_index, by_state)]
    return f"the index says {told[0]}, its state {told[1]}."


def _judged(facts: StateSummary) -> dict[str, Any]:
    """Return what verdicts rest on."""
    values = {
        name: getattr(facts, name) for name in StateSummary.__struct_fields__ if name not in TOLD
    }
    if facts.unfinished:
        # then they do not bear on life and death, and are counted later, if at all
        values["samples_left"] = None
    # why, may be told in other words by another release
    return values | {"unreadable": bool(facts.unreadable)}
