"""Is an index to be trusted? Some of what a scan took from it is read again from the states themselves.

Who can write below the prefix can forge an index, and nobody would look again at what it calls finished.
Which rows are read cannot be foreseen, and only those count that a scan took, so it does not help to
fill an index up with others.
"""

import logging
import math
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_tune_restore.exceptions import StateUnreadableError, TuneRestoreError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.facts import (
    Facts,
    build_facts,
    fingerprint,
    unreadable_facts,
)
from airflow_tune_restore.experiments.index import Index
from airflow_tune_restore.experiments.printable import NOTE_LENGTH, printable
from airflow_tune_restore.experiments.read import NotStartedError, read_outline
from airflow_tune_restore.storage.base import ObjectStore

ONE_IN, LEAST = 32, 8
"""Of the rows that a scan took, one in so many is read again, but no fewer than so many."""

UNFORESEEN = random.SystemRandom()

TOLD = frozenset({"searcher_lost", "warnings", "ended_by"})
"""Fields of facts that no verdict rests on. Some are added later, of what is about to be restored."""

log = logging.getLogger(__name__)


def agrees(
    store: ObjectStore, index: Index, threads: ThreadPoolExecutor, chance: random.Random
) -> bool:
    """Whether rows that a scan took from the index say what the states say; logged where not.

    Args:
        store: Rooted at the prefix.
        index: After the scan.
        threads: Read with these.
        chance: Chooses the rows.
    """
    taken = index.taken
    count = min(len(taken), max(LEAST, math.ceil(len(taken) / ONE_IN)))
    paths = chance.sample(taken, count)
    found = threads.map(lambda path: _contradiction(store.at(path), path, index), paths)
    wrong = [(path, text) for path, text in zip(paths, found, strict=True) if text]
    for path, text in wrong[:LEAST]:
        log.warning("%s: %s", store.at(path).uri, printable(text, NOTE_LENGTH))
    if wrong:
        log.warning(
            "%s: %d of %d rows of the index that were checked are not as their states are. It is not "
            "trusted, and all experiments are read again. Somebody may have forged %s: see who can write "
            "there.",
            store.uri,
            len(wrong),
            len(paths),
            layout.INDEX,
        )
    return not wrong


def _contradiction(store: ObjectStore, path: str, index: Index) -> str:
    """Return in words what the index says of an experiment and its state does not; "" if nothing.

    Nothing is said of one that changes meanwhile, or that cannot be read now.
    """
    try:
        return _read_again(store, path, index)
    except TuneRestoreError as error:
        log.warning("%s is not read again beside the index: %s", store.uri, error)
        return ""


def _read_again(store: ObjectStore, path: str, index: Index) -> str:
    mark = fingerprint(entries := store.list_dir())
    said = index.look_up(path, mark)
    if said is None:
        return ""
    try:
        contradiction = _compare(said, build_facts(read_outline(store, entries)))
    except StateUnreadableError as error:
        contradiction = _compare(said, unreadable_facts(error.reason))
    except NotStartedError as error:
        contradiction = f"the index says trials={said.trials!r}, but {error}."
    is_as_it_was = not contradiction or fingerprint(store.list_dir()) == mark
    return contradiction if is_as_it_was else ""


def _compare(said: Facts, read: Facts) -> str:
    by_index, by_state = _judged(said), _judged(read)
    differing = [name for name in by_index if by_index[name] != by_state[name]]
    if not differing:
        return ""
    told = [", ".join(f"{n}={values[n]!r}" for n in differing) for values in (by_index, by_state)]
    return f"the index says {told[0]}, its state {told[1]}."


def _judged(facts: Facts) -> dict[str, Any]:
    """Return what verdicts rest on."""
    values = {name: getattr(facts, name) for name in Facts.__struct_fields__ if name not in TOLD}
    if facts.unfinished:
        # then they do not bear on life and death, and are counted later, if at all
        values["samples_left"] = None
    # why, may be told in other words by another release
    return values | {"unreadable": bool(facts.unreadable)}
