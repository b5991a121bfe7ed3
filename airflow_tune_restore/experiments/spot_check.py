"""Can an index be trusted? Some experiments that a scan took from it are read again from their states.

Anyone who can write below the prefix can forge an index and so hide experiments. The choice of rows is
unpredictable, and only rows that a scan uses count, so filling an index with other rows does not help.
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
    fingerprint,
    summarize,
    unreadable_summary,
)
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable, share
from airflow_tune_restore.storage.base import Entry, ObjectStore

ONE_IN, LEAST = 32, 8
"""Each row that a scan uses is checked with this chance, and at least so many are."""

NOT_COMPARED = frozenset({"searcher_lost", "warnings", "ended_by"})
"""Fields of a summary that verdicts do not rest on. Some are added only before a restore."""

Chance = Callable[[str], float]
"""Path -> a number from 0 to 1, always the same for one path: the lowest are checked."""

log = logging.getLogger(__name__)


def fresh_chance() -> Chance:
    """Return unpredictable numbers."""
    salt = secrets.token_bytes(16)

    def number(path: str) -> float:
        drawn = hashlib.blake2b(path.encode(), digest_size=8, key=salt).digest()
        return int.from_bytes(drawn) / 2**64

    return number


class SpotCheck:
    """The checks of one scan, of rows that `chance` chooses. Threads may check at once."""

    def __init__(self, index: Index, chance: Chance) -> None:
        self._index = index
        self._chance = chance
        self._found: dict[str, str] = {}

    def check(self, store: ObjectStore, entries: list[Entry], path: str) -> None:
        """Read an experiment that was just taken from the index again, if it is chosen."""
        if self._chance(path) < 1 / ONE_IN and path not in self._found:
            self._found[path] = self._contradiction(store, entries, path)

    def agrees(self, store: ObjectStore, threads: ThreadPoolExecutor) -> bool:
        """Whether the index agrees with all states that were checked; logged if not. Call after the scan.

        Where chance chose too few of them, more are checked now.
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
                "%s: the index does not agree with the states in %s. The index is ignored, and all "
                "experiments are read again. %s may be forged: check who can write there.",
                *(store.uri, share(len(wrong), len(self._found), "checked row"), layout.INDEX),
            )
        return not wrong

    def _contradiction(self, store: ObjectStore, entries: list[Entry] | None, path: str) -> str:
        """Return in words how index and state differ; "" if they agree.

        An experiment that changes meanwhile, or that cannot be read now, counts as agreeing.
        """
        try:
            return self._read_again(store, store.list_dir() if entries is None else entries, path)
        except TuneRestoreError as error:
            log.warning("%s cannot be compared with the index: %s", store.uri, error)
        except Exception as error:  # noqa: BLE001  reported, and the scan goes on
            report_unexpected(store.uri, error)
        return ""

    def _read_again(self, store: ObjectStore, entries: list[Entry], path: str) -> str:
        mark = fingerprint(entries)
        kept = self._index.look_up(path, mark)
        if kept is None:
            return ""
        try:
            contradiction = _compare(kept, summarize(read_outline(store, entries)))
        except StateUnreadableError as error:
            contradiction = _compare(kept, unreadable_summary(error.reason))
        except NotStartedError as error:
            contradiction = f"the index has trials={kept.trials!r}, but {str(error).rstrip('.')}."
        is_as_it_was = not contradiction or fingerprint(store.list_dir()) == mark
        return contradiction if is_as_it_was else ""


def _compare(kept: StateSummary, read: StateSummary) -> str:
    by_index, by_state = _judged(kept), _judged(read)
    differing = [name for name in by_index if by_index[name] != by_state[name]]
    if not differing:
        return ""
    shown = [", ".join(f"{n}={values[n]!r}" for n in differing) for values in (by_index, by_state)]
    return f"the index has {shown[0]}, its state {shown[1]}."


def _judged(summary: StateSummary) -> dict[str, Any]:
    """Return the fields that verdicts rest on."""
    names = [name for name in StateSummary.__struct_fields__ if name not in NOT_COMPARED]
    values = {name: getattr(summary, name) for name in names}
    if summary.unfinished:
        # then they do not decide between dead and alive, and are counted later, if at all
        values["samples_left"] = None
    # another release may give the reason in other words
    return values | {"unreadable": bool(summary.unreadable)}
