"""The choice of the checkpoint that a trial starts from: the recorded one, or the newest complete one.

Ray writes no marker of a complete checkpoint. A checkpoint that the state or a row of result.json names
was complete once: it was saved before it was reported (ray.train._internal.storage, 2.60). A directory
that no report names may be half uploaded. A directory that lacks files of its siblings, or has them
empty, was partly deleted.

Standard library only: runners choose, too.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBERED = re.compile(r"^checkpoint_(\d+)$")


def checkpoint_index(name: str) -> int:
    """Return the number of a checkpoint directory; -1 if the name has another form."""
    match = _NUMBERED.match(name)
    return int(match[1]) if match else -1


def last_number(present: Iterable[str], attempt: int) -> int:
    """Return the number after which an attempt counts its checkpoints; -1 without any.

    A trial uploads one checkpoint at a time, so an attempt that has ended leaves at most one that its
    directory does not hold yet: the store may carry out an upload after its sender has given it up. So
    each attempt leaves out one number more than the attempt before.

    Args:
        present: The checkpoint directories of the trial, as listed.
        attempt: From 1.
    """
    return max(map(checkpoint_index, present), default=-1) + attempt - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCheckpoint:
    """The checkpoint Ray would resume from; `iteration` is 0 if not recorded."""

    name: str
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDir:
    """A checkpoint directory as listed: file names and sizes of its first level."""

    name: str
    files: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointChoice:
    """The checkpoint that a trial starts from, and why.

    Args:
        name: Directory name; None to start from scratch.
        iteration: `training_iteration` it was taken at; 0 if unknown or from scratch.
        lost: Whether the state names one, but no complete one is left.
        reason: The reason, for people.
    """

    name: str | None = None
    iteration: int = 0
    lost: bool = False
    reason: str


def choose_checkpoint(
    recorded: RecordedCheckpoint | None,
    found: list[CheckpointDir],
    reported: dict[str, int],
    *,
    prefer_newest: bool = False,
) -> CheckpointChoice:
    """Choose the checkpoint that a trial starts from.

    Args:
        recorded: The checkpoint in the state.
        found: Checkpoint directories that exist.
        reported: Checkpoint name -> iteration, from the rows of result.json.
        prefer_newest: Prefer a complete one that was reported after the state was saved, unlike Ray.
    """
    complete = [item.name for item in found if _is_complete(item, found)]
    if prefer_newest and (newer := _newer(recorded, complete, reported)):
        return newer
    if recorded is None:
        return CheckpointChoice(reason="no checkpoint was recorded")
    if recorded.name in complete:
        return CheckpointChoice(
            name=recorded.name,
            iteration=recorded.iteration or reported.get(recorded.name, 0),
            reason=f"resumed from {recorded.name}",
        )
    trouble = "is incomplete" if any(item.name == recorded.name for item in found) else "is gone"
    if reported:
        usable = [name for name in complete if name in reported]
    else:
        last = checkpoint_index(recorded.name)
        usable = [name for name in complete if checkpoint_index(name) < last]
    if not usable:
        return CheckpointChoice(
            lost=True,
            reason=f"recorded {recorded.name} {trouble} and no complete checkpoint is left",
        )
    newest = max(usable, key=lambda name: (reported.get(name, 0), checkpoint_index(name)))
    return CheckpointChoice(
        name=newest,
        iteration=reported.get(newest, 0),
        reason=f"recorded {recorded.name} {trouble}; repaired to {newest}, the newest complete one",
    )


def _newer(
    recorded: RecordedCheckpoint | None, complete: list[str], reported: dict[str, int]
) -> CheckpointChoice | None:
    """Return the newest reported checkpoint, if the state is too old to name it."""
    known = recorded.iteration or reported.get(recorded.name, 0) if recorded is not None else 0
    newer = [name for name in complete if reported.get(name, 0) > known]
    if not newer:
        return None
    newest = max(newer, key=lambda name: (reported[name], checkpoint_index(name)))
    named = f"names {recorded.name}" if recorded is not None else "names no checkpoint"
    return CheckpointChoice(
        name=newest,
        iteration=reported[newest],
        reason=f"resumed from {newest}, newer than the state, which {named}",
    )


def _is_complete(item: CheckpointDir, siblings: list[CheckpointDir]) -> bool:
    """Whether it has content, and all files that its siblings have in common."""
    if not any(item.files.values()):
        return False
    others = [set(s.files) for s in siblings if s.name != item.name and any(s.files.values())]
    common = set.intersection(*others) if others else set()
    if common - set(item.files):
        return False
    return not any(
        size == 0 and all(s.files.get(name, 1) > 0 for s in siblings if s.name != item.name)
        for name, size in item.files.items()
        if name in common
    )
