"""Store -> `tuner.pkl` and the searcher's states, and how many samples were never drawn.

`tuner.pkl` may be missing, damaged, ignored by choice, or of another run whose name was the same.
"""

from typing import Any, NamedTuple

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    TooLargeError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.experiment import (
    NEVER_SAVED,
    RecordedTuner,
    recorded_tuner,
    samples_left,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.pickle_reader import (
    MAX_BYTES,
    DamagedPickleError,
    SymbolicError,
    read_pickle,
)
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore

LOST = "the RunConfig (callbacks, stoppers, failure and checkpoint settings) is lost"
OF_ANOTHER_RUN = "tuner.pkl belongs to another run"


class TunerFile(NamedTuple):
    """The result of reading `tuner.pkl`.

    Args:
        problem: Why it cannot be read; "" if it can.
        lost: The same, if Ray cannot use it either; "" if only the limits of this package prevent it.
    """

    recorded: RecordedTuner | None
    problem: str = ""
    lost: str = ""

    @property
    def warning(self) -> str:
        """The warning to show; "" if it can be used."""
        return f"{self.problem}: {LOST}" if self.problem else ""


def read_tuner(store: ObjectStore, entries: list[Entry]) -> TunerFile:
    """Read `tuner.pkl` of the experiment at the store's root, if the listing shows one."""
    if all(entry.is_dir or entry.name != layout.TUNER_FILE for entry in entries):
        problem = "tuner.pkl is missing"
        return TunerFile(None, problem, problem)
    try:
        body = store.get(layout.TUNER_FILE, max_bytes=MAX_BYTES)
        return TunerFile(recorded_tuner(read_pickle(body)))
    except (SymbolicError, TuneRestoreError) as error:
        problem = f"tuner.pkl cannot be read ({error})"
        is_lost = isinstance(error, DamagedPickleError | KeyNotFoundError | CannotBeFollowedError)
        return TunerFile(None, problem, problem if is_lost else "")


IGNORED = TunerFile(
    None, "tuner.pkl is ignored (ignore_tuner)", "tuner.pkl is ignored (ignore_tuner)"
)
"""The result if the user chose so."""


def read_doubt(store: ObjectStore, entries: list[Entry], trainables: tuple[str, ...]) -> str:
    """Return in words that `tuner.pkl` belongs to another run; "" if nothing suggests it.

    A driver writes its `tuner.pkl` before its states, so a file that is older than any of them is not
    read. A driver that `Tuner.restore` started writes both repeatedly, in any order (Ray 2.60).
    `trainables` are the names of the trainables in the newest state.
    """
    times = {entry.name: entry.modified_at for entry in entries if not entry.is_dir}
    written = times.get(layout.TUNER_FILE)
    states = (n for n in times if layout.is_state_file(n) and not layout.is_committed(n))
    if written is not None and any(at > written for at in map(times.get, states) if at is not None):
        return ""
    return describe_doubt(read_tuner(store, entries).recorded, trainables)


def describe_doubt(tuner: RecordedTuner | None, trainables: tuple[str, ...]) -> str:
    """Return in words that `tuner.pkl` names a trainable that ran none of the trials; else ""."""
    named = tuner.trainable_name if tuner is not None else None
    if not named or not trainables or named in trainables:
        return ""
    ran = " and ".join(repr(name[:60]) for name in trainables[:2])
    return printable(
        f"{OF_ANOTHER_RUN}: it names the trainable {named[:60]!r}, the trials were run with {ran}. They "
        f"are restored from the state alone, as with --ignore-tuner (ignore_tuner=True), and {LOST}"
    )


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
    """Return how many samples were never drawn; None, if unknown, counts as "may draw more"."""
    return samples_left(read_searcher(store, entries), trials)


def read_lost_searcher(
    store: ObjectStore, entries: list[Entry], trainables: tuple[str, ...]
) -> str:
    """Return why the samples left cannot be drawn; "" if Ray's default searcher or `tuner.pkl`'s can."""
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
    if (newest := _newest_searcher_state(entries)) is None:
        return False
    others = [e.name for e in entries if layout.is_searcher_state(e.name) and e.name != newest.name]
    return layout.session_of(newest.name) not in map(layout.session_of, others)


def needs_tuner(entries: list[Entry]) -> bool:
    """Whether the newest searcher state is of a searcher other than Ray's default."""
    newest = _newest_searcher_state(entries)
    return newest is not None and not newest.name.startswith(layout.VARIANT_STATE_PREFIX)


def _newest_searcher_state(entries: list[Entry]) -> Entry | None:
    prefixes = (layout.VARIANT_STATE_PREFIX, layout.SEARCH_STATE_PREFIX)
    saved = [e for e in entries if not e.is_dir and e.name.startswith(prefixes)]
    return max(saved, key=lambda e: (layout.session_of(e.name) or "", e.name), default=None)
