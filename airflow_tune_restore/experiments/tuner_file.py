"""Store -> `tuner.pkl`: its content, or why it does not count.

It may be missing, damaged, ignored by choice, or of another run whose name was the same.
"""

from typing import NamedTuple

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.experiment import RecordedTuner, recorded_tuner
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
        recorded: Its content; None if it cannot be read.
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

    Args:
        store: Rooted at the experiment directory.
        entries: Its listing.
        trainables: Names of the trainables in its newest state.
    """
    files = [entry for entry in entries if not entry.is_dir]
    states = [
        entry.modified_at
        for entry in files
        if layout.is_state_file(entry.name) and not layout.is_committed(entry.name)
    ]
    written = next((entry.modified_at for entry in files if entry.name == layout.TUNER_FILE), None)
    if written is not None and any(at is not None and at > written for at in states):
        return ""
    return describe_doubt(read_tuner(store, entries).recorded, trainables)


def describe_doubt(tuner: RecordedTuner | None, trainables: tuple[str, ...]) -> str:
    """Return in words that `tuner.pkl` names a trainable that ran none of the trials; else ""."""
    named = tuner.trainable_name if tuner is not None else None
    if not named or not trainables or named in trainables:
        return ""
    ran = " and ".join(repr(name[:60]) for name in trainables[:2])
    return printable(
        f"{OF_ANOTHER_RUN}: it names the trainable {named[:60]!r}, the trials were run "
        f"with {ran}. They are restored from the state alone, as with --ignore-tuner "
        f"(ignore_tuner=True), and {LOST}"
    )
