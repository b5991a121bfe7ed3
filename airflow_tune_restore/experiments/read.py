"""Store -> one experiment: its newest valid state, its tuner file, and what is odd about them."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    StateUnreadableError,
    TooLargeError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.budget import IN_MEMORY, SMALL_BYTES, read_limit
from airflow_tune_restore.experiments.ends import may_be_stopped_by_scheduler, settle_ends
from airflow_tune_restore.experiments.experiment import (
    NO_STATE_FILE,
    Experiment,
    RecordedTuner,
    StateFile,
    live_trials,
    samples_left,
    search_is_exhausted,
)
from airflow_tune_restore.experiments.raw_row import MalformedStateError
from airflow_tune_restore.experiments.state import (
    KEEP_ALL,
    KEEP_UNTERMINATED,
    NO_STATE,
    Keep,
    State,
    parse_pieces,
)
from airflow_tune_restore.experiments.trial import Trial
from airflow_tune_restore.experiments.tuner_file import (
    IGNORED,
    LOST,
    describe_doubt,
    needs_tuner,
    read_lost_searcher,
    read_searcher,
    read_tuner,
    why_lost,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.location import explain_percent

_NAMED = 5
"""How many trials a warning names."""

_LOST_NAMED = 20
"""How many trials that cannot be run get a warning each; the plan has the reasons of all."""

_ODD = {
    "training_iteration": "is not a number: their iterations are shown as 0",
    "status": "is not one of Ray's: they count as unfinished, as in Ray",
    "metadata": "cannot be read: their results and checkpoints are unknown",
}
"""The consequence for a trial if a field of its row cannot be used."""

CLOCK_SPREAD = timedelta(hours=27)
"""State names carry the driver's local time: two zones lie at most 26 hours apart."""


class NotStartedError(TuneRestoreError):
    """All states are without trials: the driver died before its first snapshot."""


def not_an_experiment(store: ObjectStore) -> StateUnreadableError:
    """Return the error for a directory without any file of an experiment."""
    reason = "it has neither a tuner.pkl nor an experiment state"
    return StateUnreadableError(store.uri, f"{reason}{explain_percent(store.uri)}")


class NewestState(NamedTuple):
    """The newest valid state of an experiment, its file, and what is odd about the files."""

    file: StateFile
    state: State
    warnings: list[str]


ReadState = Callable[[ObjectStore, list[Entry]], NewestState]
"""Returns the newest state of an experiment by the listing of its root; raises as `read_experiment`."""


class StateReader:
    """Reads the newest state, and keeps it for as long as the listing is the same."""

    def __init__(self, keep: Keep = KEEP_ALL) -> None:
        self._keep = keep
        self._kept: tuple[list[Entry], NewestState] | None = None

    def __call__(self, store: ObjectStore, entries: list[Entry]) -> NewestState:
        """Return the newest state; raises as `read_experiment`."""
        if self._kept is None or self._kept[0] != entries:
            self._kept = entries, _newest_valid_state(store, entries, self._keep)
        return self._kept[1]


def read_experiment(
    store: ObjectStore,
    entries: list[Entry] | None = None,
    *,
    read_state: ReadState | None = None,
    ignore_tuner: bool = False,
) -> Experiment:
    """Read the experiment at the store's root; `entries` is its listing, if the caller has just made one.

    `read_state` reads its state, by default with all rows.

    Raises:
        StateUnreadableError: If no state file can be used, with the reason of each; or if this is not an
            experiment.
        NotStartedError: If it has no state, or none with a trial in it.
    """
    entries = store.list_dir() if entries is None else entries
    read_state = read_state or StateReader()
    state_file, state, found = read_state(store, entries)
    warnings = list(found)
    tuner = IGNORED if ignore_tuner else read_tuner(store, entries)
    searcher = read_searcher(store, entries)
    left = samples_left(searcher, len(state.trials))
    state = settle_ends(state, live_trials(searcher))
    warnings.append(tuner.warning)
    experiment = _experiment(store, state_file, state, tuner.recorded, left, warnings)
    if left != 0 and needs_tuner(entries):
        lost = why_lost(entries, tuner, experiment.trainables)
        experiment = replace(experiment, searcher_lost=lost)
    if doubt := describe_doubt(tuner.recorded, experiment.trainables):
        warned = (*experiment.warnings, doubt)
        return replace(experiment, tuner=None, ignores_tuner=True, warnings=warned)
    return replace(experiment, ignores_tuner=ignore_tuner)


def read_outline(
    store: ObjectStore, entries: list[Entry], read_state: ReadState | None = None
) -> Experiment:
    """Read only what the health of an experiment needs; raises as `read_experiment`.

    `tuner.pkl` is read only if samples are left that need the searcher in it, or if it decides whether a
    scheduler ended the trials. The searcher's state is read only if all trials have ended and do not show
    by themselves that all samples were drawn.
    """
    read_state = read_state or StateReader(KEEP_UNTERMINATED)
    state_file, state, found = read_state(store, entries)
    warnings = list(found)
    tuners = [e for e in entries if e.name == layout.TUNER_FILE and not e.is_dir]
    if not tuners:
        warnings.append(f"tuner.pkl is missing: {LOST}")
    elif not tuners[0].size_bytes:
        warnings.append(f"tuner.pkl cannot be read (it is empty): {LOST}")
    left: int | None = None
    if all(trial.is_finished for trial in state.trials):
        left = 0
        if not _shows_that_all_are_drawn(entries, state):
            searcher = read_searcher(store, entries)
            left = samples_left(searcher, len(state.trials))
            state = settle_ends(state, live_trials(searcher))
    experiment = _experiment(store, state_file, state, None, left, warnings)
    if left:
        lost = read_lost_searcher(store, entries, experiment.trainables)
        return replace(experiment, searcher_lost=lost)
    if tuners and may_be_stopped_by_scheduler(experiment):
        return replace(experiment, tuner=read_tuner(store, entries).recorded)
    return experiment


def _shows_that_all_are_drawn(entries: list[Entry], state: State) -> bool:
    """Whether the trials alone show that no sample is left, without the searcher's state."""
    names = [entry.name for entry in entries if not entry.is_dir]
    is_basic = any(name.startswith(layout.VARIANT_STATE_PREFIX) for name in names)
    is_other = any(name.startswith(layout.SEARCH_STATE_PREFIX) for name in names)
    was_committed = any(map(layout.is_committed, names))
    return is_basic and not is_other and not was_committed and search_is_exhausted(state)


def _experiment(
    store: ObjectStore,
    state_file: StateFile,
    state: State,
    tuner: RecordedTuner | None,
    left: int | None,
    warnings: Iterable[str],
) -> Experiment:
    texts = filter(None, (*warnings, *_describe_odd(state.trials)))
    experiment = Experiment(
        uri=store.uri,
        state_file=state_file,
        state=state,
        tuner=tuner,
        samples_left=left,
        warnings=tuple(printable(text, NOTE_LENGTH) for text in texts),
    )
    if cut_short := experiment.stopped_by_fail_fast:
        note = (
            f"fail_fast marked {counted(len(cut_short), 'trial')} TERMINATED too early: "
            f"{', '.join(trial.trial_id for trial in cut_short[:5])}; resume_cut_short resumes such "
            "trials"
        )
        return replace(experiment, warnings=(*experiment.warnings, note))
    return experiment


def _describe_odd(trials: Collection[Trial]) -> Iterator[str]:
    """Describe the parts of rows that cannot be used: each lost trial, and each field with its trials."""
    lost = [trial for trial in trials if trial.unusable]
    for trial in lost[:_LOST_NAMED]:
        yield f"trial {trial.trial_id} cannot be run: {trial.unusable}"
    if len(lost) > _LOST_NAMED:
        yield f"{counted(len(lost) - _LOST_NAMED, 'more trial')} cannot be run"
    with_field: dict[str, list[str]] = {}
    for trial in trials:
        for name in trial.odd_fields:
            with_field.setdefault(name, []).append(trial.trial_id)
    for name, ids in with_field.items():
        named = ", ".join(ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")
        yield f"{name} of {counted(len(ids), 'trial')} ({named}) {_ODD[name]}"


def read_base(store: ObjectStore, *, ignore_tuner: bool = False) -> Experiment:
    """Read the experiment that a search continues; one that was never started has no trials.

    `ignore_tuner` does not apply to the latter, which has nothing but its `tuner.pkl`.

    Raises:
        StateUnreadableError: If no state file can be used.
    """
    entries = store.list_dir()
    try:
        return read_experiment(store, entries, ignore_tuner=ignore_tuner)
    except NotStartedError:
        tuner = read_tuner(store, entries)
        return Experiment(
            uri=store.uri,
            state_file=NO_STATE_FILE,
            state=NO_STATE,
            tuner=tuner.recorded,
            samples_left=None,
            warnings=tuple(filter(None, [tuner.warning])),
        )


def read_base_state(
    store: ObjectStore, entries: list[Entry], keep: Keep = KEEP_UNTERMINATED
) -> tuple[StateFile, State]:
    """Return the state that a commit starts from, by a listing of the root; without one, `NO_STATE`.

    Raises:
        StateUnreadableError: If no state file can be used.
    """
    try:
        return StateReader(keep)(store, entries)[:2]
    except NotStartedError:
        return NO_STATE_FILE, NO_STATE


def _newest_valid_state(store: ObjectStore, entries: list[Entry], keep: Keep) -> NewestState:
    """Return the newest valid state by the start of its driver session, and warnings.

    Ray takes the largest file name, which carries local time. Within the spread of time zones the
    `stats.start_time` inside the file decides. A file that cannot be used is skipped with a warning.
    """
    files = {entry.name: entry for entry in entries if not entry.is_dir}
    # Ray makes no name that cannot be shown
    states = [
        files[name]
        for name in sorted(files, reverse=True)
        if layout.is_state_file(name) and is_safe_name(name)
    ]
    if not states and layout.TUNER_FILE not in files:
        raise not_an_experiment(store)
    if not states:
        raise NotStartedError(
            f"{store.uri} was never started: it has a tuner.pkl, but no experiment state"
        )
    warnings: list[str] = []
    best: tuple[StateFile, State] | None = None
    for entry in states:
        if best is not None and not _may_be_newer(entry.name, best[0].name):
            continue
        try:
            candidate = read_state(store, entry, keep)
        except (MalformedStateError, KeyNotFoundError, CannotBeFollowedError) as error:
            # errors of the store are raised: an older state must not take this one's place
            warnings.append(f"{entry.name} was skipped: {error}")
            continue
        if best is None or candidate[1].start_time > best[1].start_time:
            best = candidate
    if best is None:
        if any("holds no trials" in warning for warning in warnings):
            raise NotStartedError(f"{store.uri} has no state with a trial: {'; '.join(warnings)}")
        raise StateUnreadableError(store.uri, "; ".join(warnings))
    if best[0].name != states[0].name and states[0].name not in "".join(warnings):
        warnings.append(
            f"{best[0].name} is newer than {states[0].name} by the start of its driver; "
            "Ray alone would take the other"
        )
    return NewestState(*best, warnings)


def _may_be_newer(name: str, than: str) -> bool:
    """Whether an alphabetically smaller state may come from a later driver in another time zone."""
    mine, other = layout.state_session(name), layout.state_session(than)
    if mine is None or other is None or mine == other:
        return False  # within one session, commits sort by number behind the driver's state
    return other - mine <= CLOCK_SPREAD


def read_state(store: ObjectStore, entry: Entry, keep: Keep) -> tuple[StateFile, State]:
    """Read one state file of the listing.

    Raises:
        MalformedStateError: If it cannot be used, holds no trials, or is far larger than it was listed;
            KeyNotFoundError; CannotBeFollowedError, if it is a link.
    """
    if entry.size_bytes > layout.MAX_STATE_BYTES:  # by the listing: not a byte is read
        raise MalformedStateError(
            f"it holds {entry.size_bytes} bytes; at most {layout.MAX_STATE_BYTES} are read"
        )
    with IN_MEMORY.hold(entry.size_bytes):
        limit = read_limit(entry.size_bytes, layout.MAX_STATE_BYTES)
        try:
            pieces = _HashedPieces(
                store.stream(entry.name, max_bytes=limit)
                if entry.size_bytes > SMALL_BYTES
                else [store.get(entry.name, max_bytes=limit)]
            )
            state = parse_pieces(pieces, keep)
        except TooLargeError as error:
            raise MalformedStateError(
                f"it changes while it is read: {entry.size_bytes} bytes were listed, and it holds more "
                f"than {limit} now"
            ) from error
    if not state.trials:
        raise MalformedStateError("it holds no trials")
    sha256 = pieces.sha256.hexdigest()
    return StateFile(name=entry.name, sha256=sha256, size_bytes=pieces.size_bytes), state


class _HashedPieces:
    """Yields pieces and hashes them meanwhile, which takes half as long as parsing them."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        with ThreadPoolExecutor(1) as beside:
            hashing: Future[None] | None = None
            for piece in self._pieces:
                self.size_bytes += len(piece)
                if hashing is None and len(piece) < SMALL_BYTES:
                    self.sha256.update(piece)  # not worth a thread
                else:
                    if hashing is not None:
                        hashing.result()  # at most two pieces are in memory
                    hashing = beside.submit(self.sha256.update, piece)
                yield piece
