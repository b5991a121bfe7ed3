"""Store -> one experiment: its newest valid state, and what its trials can start from."""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    StateUnreadableError,
    TooLargeError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.budget import ByteBudget
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
from airflow_tune_restore.experiments.samples import (
    needs_tuner,
    read_lost_searcher,
    read_searcher,
    why_lost,
)
from airflow_tune_restore.experiments.state import (
    NO_STATE,
    MalformedStateError,
    State,
    decode_document,
    parse_pieces,
)
from airflow_tune_restore.experiments.trial import Trial
from airflow_tune_restore.experiments.tuner_file import (
    IGNORED,
    LOST,
    describe_doubt,
    read_tuner,
)
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.checkpoints import (
    CheckpointChoice,
    CheckpointDir,
    RecordedCheckpoint,
    choose_checkpoint,
)
from airflow_tune_restore.protocol.names import is_safe_name, is_segment
from airflow_tune_restore.protocol.numbers import whole_iteration
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.location import Location, explain_percent

CONCURRENCY = 32
_IN_FLIGHT = ByteBudget(64 * 1024 * 1024)
"""What all threads of this process hold of state files and result rows while they read them."""

_SMALL_BYTES = 1024 * 1024


_NAMED = 5
"""How many trials a warning names."""

_LOST_NAMED = 20
"""How many trials that cannot be run have a warning each; the plan gives the reasons of all."""

_CHECKPOINT_NAME = b'"checkpoint_dir_name"'
"""Stands in the rows that count, as Ray's JSON has it."""

_ODD = {
    "training_iteration": "is not a number: their iterations are shown as 0",
    "status": "is not one of Ray's: they are taken for unfinished, as Ray takes them",
    "metadata": "cannot be read: their results and checkpoints are not known",
}
"""What it costs a trial that a field of its row cannot be used."""

CLOCK_SPREAD = timedelta(hours=27)
"""State names carry the driver's local time: two zones lie at most 26 hours apart."""


class _ResultRow(msgspec.Struct):
    checkpoint_dir_name: Any = None
    training_iteration: Any = None


_RESULT_ROW = msgspec.json.Decoder(_ResultRow)


class NotStartedError(TuneRestoreError):
    """No state holds a trial: the driver died before its first snapshot."""


def no_experiment(store: ObjectStore) -> StateUnreadableError:
    """Return the error for a place that holds no experiment at all."""
    reason = "there is no tuner.pkl and no experiment state here"
    return StateUnreadableError(store.uri, f"{reason}{explain_percent(store.uri)}")


def read_experiment(
    store: ObjectStore,
    entries: list[Entry] | None = None,
    *,
    keep_terminated_rows: bool = True,
    ignore_tuner: bool = False,
) -> Experiment:
    """Read the experiment at the store's root.

    Args:
        store: Rooted at the experiment directory.
        entries: Its listing, if the caller has just made one.
        keep_terminated_rows: Keep the rows of trials that came to their end, too. They are nearly all of
            a large experiment, and only running or committing them needs the rows.
        ignore_tuner: Do without `tuner.pkl`, whatever it holds.

    Raises:
        StateUnreadableError: If no state file can be used, and why each cannot; or if this is no
            experiment at all.
        NotStartedError: If there is none, or none with a trial in it.
    """
    entries = store.list_dir() if entries is None else entries
    state_file, state, warnings = _newest_valid_state(
        store, entries, keep_terminated_rows=keep_terminated_rows
    )
    tuner = IGNORED if ignore_tuner else read_tuner(store, entries)
    searcher = read_searcher(store, entries)
    left = samples_left(searcher, len(state.trials))
    state = settle_ends(state, live_trials(searcher))
    experiment = _experiment(
        store, state_file, state, tuner.facts, left, (*warnings, tuner.warning)
    )
    if left != 0 and needs_tuner(entries):
        lost = why_lost(entries, tuner, experiment.trainables)
        experiment = replace(experiment, searcher_lost=lost)
    doubt = describe_doubt(tuner.facts, experiment.trainables)
    if not doubt:
        return replace(experiment, ignores_tuner=ignore_tuner)
    return replace(
        experiment,
        tuner=None,
        ignores_tuner=True,
        warnings=(*experiment.warnings, doubt),
    )


def read_outline(store: ObjectStore, entries: list[Entry]) -> Experiment:
    """Read just what tells how an experiment is: its state, and nothing else if trials are unfinished.

    `tuner.pkl` is looked at in the listing only, unless samples are left that need the searcher in it, or
    it tells whether a scheduler ended the trials.
    Where all trials have ended, samples may be left; if the trials do not show that there are none, the
    searcher's state is read.

    Raises:
        As `read_experiment`.
    """
    state_file, state, warnings = _newest_valid_state(store, entries, keep_terminated_rows=False)
    tuners = [entry for entry in entries if entry.name == layout.TUNER_FILE and not entry.is_dir]
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
        return replace(experiment, tuner=read_tuner(store, entries).facts)
    return experiment


def _shows_that_all_are_drawn(entries: list[Entry], state: State) -> bool:
    """Whether no sample is left, by the trials alone; without a look at the searcher's state."""
    names = [entry.name for entry in entries if not entry.is_dir]
    is_basic = any(name.startswith(layout.VARIANT_STATE_PREFIX) for name in names)
    is_other = any(name.startswith(layout.SEARCH_STATE_PREFIX) for name in names)
    is_ours = any(layout.is_committed(name) for name in names)
    return is_basic and not is_other and not is_ours and search_is_exhausted(state)


def _experiment(
    store: ObjectStore,
    state_file: StateFile,
    state: State,
    tuner: RecordedTuner | None,
    left: int | None,
    warnings: Iterable[str],
) -> Experiment:
    experiment = Experiment(
        uri=store.uri,
        name=Location.parse(store.uri).name,
        state_file=state_file,
        state=state,
        tuner=tuner,
        samples_left=left,
        warnings=tuple(
            printable(text, NOTE_LENGTH)
            for text in (*warnings, *_describe_odd(state.trials))
            if text
        ),
    )
    if cut_short := experiment.stopped_by_fail_fast:
        note = (
            f"fail_fast marked {len(cut_short)} trials TERMINATED before they finished: "
            f"{', '.join(trial.trial_id for trial in cut_short[:5])}; resume_cut_short takes them up"
        )
        return replace(experiment, warnings=(*experiment.warnings, note))
    return experiment


def _describe_odd(trials: Collection[Trial]) -> Iterator[str]:
    """Describe what cannot be used of the rows: each trial that is lost, each field with its trials."""
    with_field: dict[str, list[str]] = {}
    lost = [trial for trial in trials if trial.unusable]
    for trial in lost[:_LOST_NAMED]:
        yield f"trial {trial.trial_id} cannot be run: {trial.unusable}"
    if len(lost) > _LOST_NAMED:
        yield f"{len(lost) - _LOST_NAMED} more trials cannot be run"
    for trial in trials:
        for name in trial.odd_fields:
            with_field.setdefault(name, []).append(trial.trial_id)
    for name, ids in with_field.items():
        named = ", ".join(ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")
        yield f"{name} of {len(ids)} trials ({named}) {_ODD[name]}"


def read_base(store: ObjectStore, *, ignore_tuner: bool = False) -> Experiment:
    """Read what a commit starts from; an experiment that was never started has no trials.

    `ignore_tuner` is that of `read_experiment`; what never started has nothing but its `tuner.pkl`.

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
            name=Location.parse(store.uri).name,
            state_file=NO_STATE_FILE,
            state=NO_STATE,
            tuner=tuner.facts,
            samples_left=None,
            warnings=tuple(filter(None, [tuner.warning])),
        )


def read_base_file(store: ObjectStore) -> StateFile:
    """Return the state file that a commit starts from; `NO_STATE_FILE` where there is none yet.

    Raises:
        StateUnreadableError: If no state file can be used.
    """
    try:
        return read_experiment(store, keep_terminated_rows=False).state_file
    except NotStartedError:
        return NO_STATE_FILE


def read_checkpoint_choices(
    store: ObjectStore, trials: list[Trial], *, prefer_newest: bool = False
) -> dict[str, CheckpointChoice]:
    """Say for each trial what it can start from. Lists trial directories, not the whole experiment.

    Args:
        store: Rooted at the experiment directory.
        trials: Those to be resumed.
        prefer_newest: Take a newer checkpoint than the state names, if one was reported and is complete.
    """
    recorded: list[RecordedCheckpoint | CheckpointChoice | None] = []
    for trial in trials:  # decoding is no work for threads
        try:
            recorded.append(trial.recorded_checkpoint)
        except MalformedStateError as error:
            recorded.append(_lost(error))
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        choices = pool.map(
            lambda pair: _choice_or_loss(store, *pair, prefer_newest=prefer_newest),
            zip(trials, recorded, strict=True),
        )
        return {trial.trial_id: choice for trial, choice in zip(trials, choices, strict=True)}


def _newest_valid_state(
    store: ObjectStore, entries: list[Entry], *, keep_terminated_rows: bool
) -> tuple[StateFile, State, list[str]]:
    """Return the newest valid state by the time its driver session started, and what was wrong.

    Ray takes the largest file name, which carries local time. Within the spread of time zones the
    `stats.start_time` inside the file decides. A file that cannot be used is passed over and named.
    """
    states = sorted(
        # a name that could not be shown is none of Ray's
        (
            e
            for e in entries
            if not e.is_dir and layout.is_state_file(e.name) and is_safe_name(e.name)
        ),
        key=lambda e: e.name,
        reverse=True,
    )
    if not states and all(entry.is_dir or entry.name != layout.TUNER_FILE for entry in entries):
        raise no_experiment(store)
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
            candidate = read_state(store, entry, keep_terminated_rows=keep_terminated_rows)
        except (
            MalformedStateError,
            KeyNotFoundError,
            CannotBeFollowedError,
        ) as error:
            # a store that fails is another matter: an older state must not take this one's place
            warnings.append(f"{entry.name} was passed over: {error}")
            continue
        if best is None or candidate[1].start_time > best[1].start_time:
            best = candidate
    if best is None:
        if any("holds no trials" in warning for warning in warnings):
            raise NotStartedError(f"{store.uri} has no trial in any state: {'; '.join(warnings)}")
        raise StateUnreadableError(store.uri, "; ".join(warnings))
    if best[0].name != states[0].name and states[0].name not in "".join(warnings):
        warnings.append(
            f"{best[0].name} is newer than {states[0].name} by the start of its driver; "
            "Ray alone would take the other"
        )
    return *best, warnings


def _may_be_newer(name: str, than: str) -> bool:
    """Whether an alphabetically smaller state may come from a later driver in another time zone."""
    mine, other = layout.state_session(name), layout.state_session(than)
    if mine is None or other is None or mine == other:
        return False  # of one session, our commits after it sort by number
    return other - mine <= CLOCK_SPREAD


def read_state(
    store: ObjectStore, entry: Entry, *, keep_terminated_rows: bool
) -> tuple[StateFile, State]:
    """Read one state file of the listing.

    Raises:
        MalformedStateError: If it cannot be used, holds no trials, or is far larger than it was listed;
            KeyNotFoundError; CannotBeFollowedError, of a link.
    """
    if entry.size_bytes > layout.MAX_STATE_BYTES:  # the listing says so: not a byte is read
        raise MalformedStateError(
            f"it holds {entry.size_bytes} bytes; at most {layout.MAX_STATE_BYTES} are read"
        )
    with _IN_FLIGHT.hold(entry.size_bytes):
        most = _at_most(entry.size_bytes, layout.MAX_STATE_BYTES)
        try:
            summed = _Summed(
                store.stream(entry.name, max_bytes=most)
                if entry.size_bytes > _SMALL_BYTES
                else [store.get(entry.name, max_bytes=most)]
            )
            state = parse_pieces(summed, keep_terminated_rows=keep_terminated_rows)
        except TooLargeError as error:
            raise MalformedStateError(
                f"it changes while it is read: {entry.size_bytes} bytes were listed, and it holds more "
                f"than {most} now"
            ) from error
    if not state.trials:
        raise MalformedStateError("it holds no trials")
    file = StateFile(
        name=entry.name, sha256=summed.sha256.hexdigest(), size_bytes=summed.size_bytes
    )
    return file, state


def _at_most(listed_bytes: int, limit: int) -> int:
    """Return how much is read of a file for which a budget holds what the listing said.

    A driver that is alive writes it anew meanwhile, with more trials or rows in it.
    """
    return min(limit, 2 * listed_bytes + _SMALL_BYTES)


class _Summed:
    """Passes pieces on and sums them up meanwhile: that takes half as long as parsing them does."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        with ThreadPoolExecutor(1) as beside:
            summing: Future[None] | None = None
            for piece in self._pieces:
                self.size_bytes += len(piece)
                if summing is None and len(piece) < _SMALL_BYTES:
                    self.sha256.update(piece)  # not worth a thread
                else:
                    if summing is not None:
                        summing.result()  # never more than two pieces are held
                    summing = beside.submit(self.sha256.update, piece)
                yield piece


def _choice_or_loss(
    store: ObjectStore,
    trial: Trial,
    recorded: RecordedCheckpoint | CheckpointChoice | None,
    *,
    prefer_newest: bool,
) -> CheckpointChoice:
    """Choose; what stands where a trial's files should be costs that trial alone."""
    try:
        return _checkpoint_choice(store, trial, recorded, prefer_newest=prefer_newest)
    except (CannotBeFollowedError, TooLargeError) as error:
        return _lost(error)


def _lost(error: TuneRestoreError) -> CheckpointChoice:
    return CheckpointChoice(
        name=None, iteration=0, repaired=False, lost=True, reason=str(error).removesuffix(".")
    )


def _checkpoint_choice(
    store: ObjectStore,
    trial: Trial,
    recorded: RecordedCheckpoint | CheckpointChoice | None,
    *,
    prefer_newest: bool,
) -> CheckpointChoice:
    if isinstance(recorded, CheckpointChoice):
        return recorded
    if trial.trial_dir is None or (recorded is None and not prefer_newest):
        return choose_checkpoint(None, [], {})
    entries = store.list_dir(trial.trial_dir)
    rows_size = sum(entry.size_bytes for entry in entries if entry.name == layout.RESULT_FILE)
    directories = [
        entry.name
        for entry in entries
        if entry.is_dir
        and entry.name.startswith(layout.CHECKPOINT_PREFIX)
        and is_segment(entry.name)
    ]
    names = directories if recorded is None else [*directories, recorded.name]
    if prefer_newest or recorded is None or recorded.name not in directories:
        return choose_checkpoint(
            recorded,
            _list_checkpoints(store, trial, directories),
            _reported(store, trial, rows_size, frozenset(names)),
            prefer_newest=prefer_newest,
        )
    # the recorded one and one sibling to hold it against: two listings, however many there are
    siblings = sorted((n for n in directories if n != recorded.name), reverse=True)[:1]
    choice = choose_checkpoint(
        recorded, _list_checkpoints(store, trial, [recorded.name, *siblings]), {}
    )
    if choice.name == recorded.name:
        return choice
    return choose_checkpoint(
        recorded,
        _list_checkpoints(store, trial, directories),
        _reported(store, trial, rows_size, frozenset(names)),
    )


def _list_checkpoints(store: ObjectStore, trial: Trial, names: list[str]) -> list[CheckpointDir]:
    return [
        CheckpointDir(
            name=name,
            files={
                # a sub-directory counts as content: what is in it is not looked at
                entry.name: 1 if entry.is_dir else entry.size_bytes
                for entry in store.list_dir(f"{trial.trial_dir}/{name}")
            },
        )
        for name in names
    ]


def _reported(
    store: ObjectStore, trial: Trial, size_bytes: int, names: Collection[str]
) -> dict[str, int]:
    """Return checkpoint name -> iteration from result.json, of those that are named.

    Where none of them was reported, another one stands for those that were: that decides, too.
    """
    key = f"{trial.trial_dir}/{layout.RESULT_FILE}"
    found: dict[str, int] = {}
    with _IN_FLIGHT.hold(size_bytes):
        try:
            body = store.get(key, max_bytes=_at_most(size_bytes, layout.MAX_RESULT_BYTES))
        except KeyNotFoundError:
            return {}
        for name, iteration in _checkpoint_rows(body):
            if name in names or not found:
                found[name] = iteration
    return found


def _checkpoint_rows(body: bytes) -> Iterator[tuple[str, int]]:
    """Yield what the rows say that report a checkpoint; other lines are not looked at."""
    end = 0
    while (at := body.find(_CHECKPOINT_NAME, end)) >= 0:
        start, end = body.rfind(b"\n", end, at) + 1 or end, body.find(b"\n", at)
        end = len(body) if end < 0 else end
        if end - start > bounded_json.MAX_DOCUMENT_BYTES:
            continue
        with bounded_json.alone(end - start):
            try:
                row = decode_document(body[start:end], _RESULT_ROW)
            except (msgspec.DecodeError, ValueError, RecursionError):
                continue  # the last line of a killed writer
            name, iteration = row.checkpoint_dir_name, whole_iteration(row.training_iteration)
        if isinstance(name, str) and is_segment(name):
            yield name, iteration
