"""Store -> how many samples were never drawn, and whether they still can be."""

from typing import Any

from airflow_tune_restore.exceptions import CannotBeFollowedError, KeyNotFoundError, TooLargeError
from airflow_tune_restore.experiments.experiment import NEVER_SAVED, samples_left
from airflow_tune_restore.experiments.tuner_file import (
    OF_ANOTHER_RUN,
    TunerFile,
    describe_doubt,
    read_tuner,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.pickle_reader import MAX_BYTES, SymbolicError, read_pickle
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore


def read_searcher(store: ObjectStore, entries: list[Entry]) -> Any:
    """Return the symbolic content of the searcher's newest state; None if it cannot be read."""
    newest = _newest_searcher_state(entries)
    if newest is None or newest.size_bytes > MAX_BYTES:
        return None
    try:
        return read_pickle(store.get(newest.name, max_bytes=MAX_BYTES))
    except (SymbolicError, KeyNotFoundError, TooLargeError, CannotBeFollowedError):
        return None


def read_samples_left(store: ObjectStore, entries: list[Entry], trials: int) -> int | None:
    """Return how many samples were never drawn, by the searcher's newest state.

    None means unknown, and counts as "may draw more".
    """
    return samples_left(read_searcher(store, entries), trials)


def read_lost_searcher(
    store: ObjectStore, entries: list[Entry], trainables: tuple[str, ...]
) -> str:
    """Return why the samples left cannot be drawn; "" if Ray's default searcher or `tuner.pkl`'s can.

    The arguments are those of `read_doubt`.
    """
    if not needs_tuner(entries):
        return ""
    return why_lost(entries, read_tuner(store, entries), trainables)


def why_lost(entries: list[Entry], tuner: TunerFile, trainables: tuple[str, ...]) -> str:
    """Return the same for an experiment that `needs_tuner`, after `tuner.pkl` was read."""
    if _is_never_saved(entries):
        return NEVER_SAVED
    is_doubtful = bool(describe_doubt(tuner.recorded, trainables))
    return printable(tuner.lost or (OF_ANOTHER_RUN if is_doubtful else ""))


def _is_never_saved(entries: list[Entry]) -> bool:
    """Whether Ray has saved the number of samples, but not the searcher that draws them.

    A `Searcher` without `save` saves nothing (ray.tune.search.searcher.Searcher.save_to_dir, 2.60), and
    Ray cannot restore it: it starts the experiment over.
    """
    newest = _newest_searcher_state(entries)
    return newest is not None and not any(
        layout.is_searcher_state(entry.name)
        and layout.session_of(entry.name) == layout.session_of(newest.name)
        and entry.name != newest.name
        for entry in entries
    )


def needs_tuner(entries: list[Entry]) -> bool:
    """Whether the newest searcher state is of a searcher other than Ray's default."""
    newest = _newest_searcher_state(entries)
    return newest is not None and not newest.name.startswith(layout.VARIANT_STATE_PREFIX)


def _newest_searcher_state(entries: list[Entry]) -> Entry | None:
    prefixes = (layout.VARIANT_STATE_PREFIX, layout.SEARCH_STATE_PREFIX)
    saved = [e for e in entries if not e.is_dir and e.name.startswith(prefixes)]
    return max(
        saved, key=lambda entry: (layout.session_of(entry.name) or "", entry.name), default=None
    )
