"""The desk of a restore: where tasks hand trials to the shared driver, and ask it to stop single ones.

Rules:

1. A task claims an attempt (`protocol.attempts`) and then lays it on the desk. The driver that finds it
   there runs it. Whether an attempt still waits, runs or is over is decided by its own records, as for
   every attempt; the desk only tells the driver where to look.
2. A request to stop an attempt lies beside it. An attempt that was not begun is stopped, too.
3. The driver takes an attempt and its stop request off the desk when the attempt has its outcome. So a
   driver that follows a dead one finds all that is left.
4. Who hands over no more closes the desk. The driver of a closed desk ends when all is done; that of an
   open one waits a while for more.

Standard library only.
"""

from dataclasses import dataclass, field

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.storage.base import ObjectStore

SHARED_ATTEMPT = 1
"""The attempt of a trial that a shared driver runs."""

_RUN, _STOP, _CLOSED = "run", "stop", "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDesk:
    """All that lies on the desk: the attempts to run, those to stop, and whether it is closed."""

    to_run: list[AttemptId] = field(default_factory=list)
    to_stop: set[AttemptId] = field(default_factory=set)
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class Desk:
    """The desk of one restore.

    Args:
        store: Rooted at the experiment directory.
    """

    store: ObjectStore
    restore_id: str

    def hand_over(self, trial_id: str, attempt: int) -> None:
        """Let the shared driver run a claimed attempt. Repeated, it changes nothing."""
        self._lay(_name(trial_id, attempt, _RUN))

    def ask_to_stop(self, trial_id: str, attempt: int) -> None:
        """Ask the driver to stop one attempt; the others go on."""
        self._lay(_name(trial_id, attempt, _STOP))

    def close(self) -> None:
        """Let the driver end when all is done: nothing more is handed over."""
        self._lay(_CLOSED)

    def read(self) -> OnDesk:
        """Return all that lies there, in one request per thousand."""
        found: dict[str, list[AttemptId]] = {_RUN: [], _STOP: []}
        is_closed = False
        for entry in self.store.list_dir(layout.desk_dir(self.restore_id)):
            name = entry.name.removesuffix(".json")
            is_closed = is_closed or name == _CLOSED
            encoded, _, rest = name.rpartition("@")
            number, _, kind = rest.partition(".")
            attempt = layout.attempt_number(number)
            if encoded and attempt is not None and kind in found:
                found[kind].append(AttemptId(self.restore_id, layout.unsegment(encoded), attempt))
        return OnDesk(to_run=found[_RUN], to_stop=set(found[_STOP]), is_closed=is_closed)

    def clear(self, trial_id: str, attempt: int) -> None:
        """Take an attempt off the desk, and the request to stop it."""
        for kind in (_STOP, _RUN):
            self.store.delete(self._key(_name(trial_id, attempt, kind)))

    def _lay(self, name: str) -> None:
        self.store.put(self._key(name), b"{}")

    def _key(self, name: str) -> str:
        return f"{layout.desk_dir(self.restore_id)}/{name}.json"


def _name(trial_id: str, attempt: int, kind: str) -> str:
    # a segment has no `@`: it is encoded
    return f"{layout.segment(trial_id)}@{attempt:06d}.{kind}"
