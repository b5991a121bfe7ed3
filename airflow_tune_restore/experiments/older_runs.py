"""Trials of older runs under the same name: the newest state hides them. Reported, never restored."""

from collections import Counter

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.read import read_state
from airflow_tune_restore.experiments.state import KEEP_UNTERMINATED, State
from airflow_tune_restore.experiments.trial import Trial, TrialStatus
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable
from airflow_tune_restore.storage.base import Entry, ObjectStore

MAX_FILES = 8
"""How many older states are read; a name that is reused every night has hundreds."""


def older_states(entries: list[Entry], newest: str) -> list[Entry]:
    """Return the newest state file of each driver session before that of `newest`, newest first."""
    by_session = {
        session: entry
        for entry in sorted(entries, key=lambda entry: entry.name)
        if not entry.is_dir
        and is_safe_name(entry.name)
        and (session := layout.state_session(entry.name)) is not None
    }
    last = layout.state_session(newest)
    older = [session for session in by_session if last is not None and session < last]
    return [by_session[session] for session in sorted(older, reverse=True)]


def describe_older_runs(store: ObjectStore, older: list[Entry], newest: State) -> tuple[str, ...]:
    """Return in words which trials of other runs the newest state hides. Damaged files are skipped.

    `Tuner.restore` and commits continue a run: their states follow those they were made from, also
    where every trial was started over under a new id. A driver that restored nothing starts another run:
    `_resumed` is false in its states (ray.tune.execution.tune_controller.TuneController, 2.60).
    """
    notes: list[str] = []
    seen, starts_run = _ids(newest), _starts_a_run(newest)
    for entry in older[:MAX_FILES]:
        try:
            _, state = read_state(store, entry, KEEP_UNTERMINATED)
        except TuneRestoreError as error:
            notes.append(f"{entry.name} was not checked for older trials: {error}")
            continue
        if starts_run and seen.isdisjoint(_ids(state)):
            notes.append(_describe(entry.name, state.trials))
        seen, starts_run = seen | _ids(state), _starts_a_run(state)
    if rest := older[MAX_FILES:]:
        were = "was" if len(rest) == 1 else "were"
        notes.append(
            f"{counted(len(rest), 'older state')} {were} not checked, the newest is {rest[0].name}"
        )
    return tuple(printable(note, NOTE_LENGTH) for note in notes)


def _starts_a_run(state: State) -> bool:
    return state.runner.get("_resumed") is False


def _ids(state: State) -> set[str]:
    return {trial.trial_id for trial in state.trials}


def _describe(name: str, trials: tuple[Trial, ...]) -> str:
    counts = Counter(trial.status.value for trial in trials)
    shown = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    text = (
        f"{name} of an older run holds {counted(len(trials), 'trial')} ({shown}) that the "
        "newest state does not have; they are not restored."
    )
    if set(counts) == {TrialStatus.TERMINATED}:
        return text
    return (
        f"{text} To restore them: copy the experiment directory; in the copy, delete tuner.pkl and "
        f"every file beside it whose name has a later time than {layout.session_of(name)}; then plan "
        "the copy"
    )
