"""Store -> the checkpoint that each trial can start from."""

from collections.abc import Collection

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    TooLargeError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.budget import IN_MEMORY, read_limit
from airflow_tune_restore.experiments.raw_row import MalformedStateError, checkpoint_fields
from airflow_tune_restore.experiments.trial import Trial
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.checkpoints import (
    CheckpointChoice,
    CheckpointDir,
    RecordedCheckpoint,
    choose_checkpoint,
)
from airflow_tune_restore.protocol.names import is_segment
from airflow_tune_restore.protocol.numbers import whole_iteration
from airflow_tune_restore.protocol.pickle_fields import PickleFields
from airflow_tune_restore.protocol.result_rows import iter_rows
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

_NAME, _ITERATION = "checkpoint_dir_name", "training_iteration"

_Recorded = RecordedCheckpoint | CheckpointChoice | None
"""The checkpoint in a trial's row; a choice if the record is unreadable, and None if there is none."""


def read_checkpoint_choices(
    store: ObjectStore, trials: list[Trial], *, prefer_newest: bool = False
) -> dict[str, CheckpointChoice]:
    """Return for each trial what it can start from. Lists trial directories, not the whole experiment.

    With `prefer_newest` this is a newer checkpoint than the recorded one, if it was reported and is
    complete.
    """
    fields = checkpoint_fields()
    choices = for_each(
        lambda pair: _choose_or_lose(store, *pair, prefer_newest=prefer_newest),
        # decoded here, while other threads list: they would not decode any faster
        ((trial, _recorded(trial, fields)) for trial in trials),
    )
    return {trial.trial_id: choice for trial, choice in zip(trials, choices, strict=True)}


def checkpoint_names(entries: list[Entry]) -> list[str]:
    """Return the names of the checkpoint directories in the listing of a trial's directory."""
    names = [entry.name for entry in entries if entry.is_dir and is_segment(entry.name)]
    return [name for name in names if name.startswith(layout.CHECKPOINT_PREFIX)]


def _recorded(trial: Trial, fields: PickleFields) -> _Recorded:
    try:
        return trial.recorded_checkpoint(fields)
    except MalformedStateError as error:
        return _lost(error)


def _choose_or_lose(
    store: ObjectStore, trial: Trial, recorded: _Recorded, *, prefer_newest: bool
) -> CheckpointChoice:
    """Choose; unreadable files cost only the trial that they belong to."""
    if isinstance(recorded, CheckpointChoice):
        return recorded
    try:
        return _choose(store, trial, recorded, prefer_newest=prefer_newest)
    except (CannotBeFollowedError, TooLargeError) as error:
        return _lost(error)


def _lost(error: TuneRestoreError) -> CheckpointChoice:
    return CheckpointChoice(lost=True, reason=str(error).removesuffix("."))


def _choose(
    store: ObjectStore, trial: Trial, recorded: RecordedCheckpoint | None, *, prefer_newest: bool
) -> CheckpointChoice:
    if trial.trial_dir is None or (recorded is None and not prefer_newest):
        return choose_checkpoint(None, [], {})
    entries = store.list_dir(trial.trial_dir)
    present = checkpoint_names(entries)
    if recorded is not None and recorded.name in present and not prefer_newest:
        # the recorded one and one sibling to compare it with: two listings, however many there are
        siblings = sorted((n for n in present if n != recorded.name), reverse=True)[:1]
        listed = _list_checkpoints(store, trial, [recorded.name, *siblings])
        choice = choose_checkpoint(recorded, listed, {})
        if choice.name == recorded.name:
            return choice
    names = present if recorded is None else [*present, recorded.name]
    rows_size = sum(entry.size_bytes for entry in entries if entry.name == layout.RESULT_FILE)
    return choose_checkpoint(
        recorded,
        _list_checkpoints(store, trial, present),
        _reported(store, trial, rows_size, frozenset(names)),
        prefer_newest=prefer_newest,
    )


def _list_checkpoints(store: ObjectStore, trial: Trial, names: list[str]) -> list[CheckpointDir]:
    # a sub-directory counts as content, whatever is in it
    listed = {name: store.list_dir(f"{trial.trial_dir}/{name}") for name in names}
    return [
        CheckpointDir(name=name, files={e.name: 1 if e.is_dir else e.size_bytes for e in entries})
        for name, entries in listed.items()
    ]


def _reported(
    store: ObjectStore, trial: Trial, size_bytes: int, names: Collection[str]
) -> dict[str, int]:
    """Return checkpoint name -> iteration from result.json, for the given names.

    If none of them was reported, one other reported checkpoint is returned: that matters, too.
    """
    key = f"{trial.trial_dir}/{layout.RESULT_FILE}"
    found: dict[str, int] = {}
    with IN_MEMORY.hold(size_bytes):
        try:
            body = store.get(key, max_bytes=read_limit(size_bytes, layout.MAX_RESULT_BYTES))
        except KeyNotFoundError:
            return {}
        for row in iter_rows(body, fields=(_NAME, _ITERATION), containing=f'"{_NAME}"'.encode()):
            name = row.get(_NAME)
            if isinstance(name, str) and is_segment(name) and (name in names or not found):
                found[name] = whole_iteration(row.get(_ITERATION))
    return found
