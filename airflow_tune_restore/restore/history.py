"""The failed attempts of one trial, and when they put it in quarantine."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import msgspec

from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable
from airflow_tune_restore.protocol.record_fields import LINE_LENGTH
from airflow_tune_restore.restore.record_json import Count

KEPT = 100
"""How many failures per trial are kept: the newest."""

SAME_TWICE = 2
"""So many failures that are the same put a trial in quarantine."""

_HAVE_A_PLACE = frozenset({Cause.TRAINABLE.value, Cause.OUT_OF_MEMORY.value})
"""Causes in the trial itself. If a store fails twice at the same line, the trial is not to blame."""


class FailedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that ended in a failure.

    Args:
        restore_id, attempt: The restore it belonged to, and its number there.
        cause: One of `Cause`.
        type: Type of the exception; "" if there was none.
        message: First line of its message.
        place: Innermost line of the user's code in its traceback; "" if none.
        iteration: Last `training_iteration` reported.
        ended_at: ISO 8601 UTC; "" if unknown.
        memory: Bytes of memory it requested; None if it requested none.
    """

    restore_id: str
    attempt: Count
    cause: str
    type: str = ""
    message: str = ""
    place: str = ""
    iteration: Count = 0
    ended_at: str = ""
    memory: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        for name in ("restore_id", "cause", "type", "message", "place", "ended_at"):
            msgspec.structs.force_setattr(self, name, printable(getattr(self, name), LINE_LENGTH))

    @property
    def signature(self) -> tuple[object, ...] | None:
        """Two failures with the same signature are the same failure; None if it equals no other."""
        if self.cause not in _HAVE_A_PLACE or not self.place:
            return None
        # with more memory, running out of it is another failure
        return (self.type, self.place, self.iteration, self.memory)


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The failures of one trial.

    Args:
        failures: The failures that count, oldest first.
        released: The failures before the last release.
        released_at: When it was last released, ISO 8601 UTC; "" if never.
        quarantined: Why a commit put it in quarantine; "" if it is not.
    """

    failures: tuple[FailedAttempt, ...] = ()
    released: tuple[FailedAttempt, ...] = ()
    released_at: str = ""
    quarantined: str = ""

    def __post_init__(self) -> None:
        for name in ("released_at", "quarantined"):
            msgspec.structs.force_setattr(self, name, printable(getattr(self, name), NOTE_LENGTH))

    def quarantine_reason(self, max_attempts: int | None) -> str:
        """Return why the trial is not run any more; "" if it is run."""
        if self.quarantined:
            return self.quarantined
        counts = Counter(failure.signature for failure in self.failures)
        for failure in self.failures:
            times = counts[failure.signature]
            if failure.signature is not None and times >= SAME_TWICE:
                return (
                    f"{failure.type or failure.cause} at {failure.place} after iteration "
                    f"{failure.iteration}, {times} times"
                )
        if max_attempts is not None and len(self.failures) >= max_attempts:
            return f"{counted(len(self.failures), 'failed attempt')}, of at most {max_attempts}"
        return ""

    def has(self, restore_id: str) -> bool:
        """Whether a failure of this restore counts."""
        return any(failure.restore_id == restore_id for failure in self.failures)

    def with_failures(self, restore_id: str, failures: tuple[FailedAttempt, ...]) -> "History":
        """Return this history with these failures of one restore, and no other ones of it."""
        released = {(f.restore_id, f.attempt) for f in self.released}
        others = tuple(f for f in self.failures if f.restore_id != restore_id)
        new = tuple(f for f in failures if (f.restore_id, f.attempt) not in released)
        return msgspec.structs.replace(self, failures=(others + new)[-KEPT:])


def seen_before(
    failures: Sequence[FailedAttempt], restore_id: str, attempt: int
) -> FailedAttempt | None:
    """Return an earlier failure that is the same as that of this attempt, if there is one."""
    if not failures or (failures[-1].restore_id, failures[-1].attempt) != (restore_id, attempt):
        return None
    signature = failures[-1].signature
    same = [failure for failure in failures[:-1] if failure.signature == signature]
    return same[-1] if signature is not None and same else None
