"""The attempts that a shared driver takes from its desk, and the requests to stop them.

A thread reads the desk, so that the training does not wait for a slow store. It takes attempts ahead, but
few: those count as begun if the driver dies, and run alone afterwards.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    RecordUnreadableError,
    RunnerError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT, Desk, OnDesk
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import RUN_ACTIONS, RunnerRequest
from airflow_tune_restore.runner.heartbeat import FencedError
from airflow_tune_restore.runner.outcome import Ending, now
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each

DESK_SECONDS = 0.5
"""How often the desk is read."""

IDLE_SECONDS = 15.0
"""How long a driver waits at an empty desk that is not closed."""

FEW = 4
"""So many attempts may be taken and not running yet, or as many as run if these are more."""

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Work:
    """An attempt that the driver has taken, until its outcome is written.

    Args:
        request: The attempt.
        seed: The state that it starts from; empty once it is restored, or if it cannot be read.
        error: Why the seed cannot be read.
        started_at: ISO 8601 UTC.
        trial: Ray's trial, once restored.
        ending: How it ended; None as long as it may go on.
        saved_status: Its status in its newest snapshot; "" before the first.
        saved_iteration: Its iteration there; None if unknown.
        is_leaving: Whether its end is being recorded: only that changes it then.
        is_over: Whether its outcome is written.
        writing: Held while its outcome is written.
    """

    request: RunnerRequest
    seed: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    started_at: str = field(default_factory=now)
    trial: Any = None
    ending: Ending | None = None
    saved_status: str = ""
    saved_iteration: int | None = None
    is_leaving: bool = False
    is_over: bool = False
    writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def trial_id(self) -> str:
        """The planned id of the trial."""
        return self.request.trial_id


class DeskReader:
    """Takes attempts from the desk in a thread, until it is stopped.

    Args:
        store: Rooted at the experiment directory.
        request: The attempt of the driver.
        begin: Writes the first heartbeat of an attempt; a FencedError if this driver must not run it.
    """

    def __init__(
        self, store: ObjectStore, request: RunnerRequest, begin: Callable[[RunnerRequest], None]
    ) -> None:
        self._store = store
        self._request = request
        self._begin = begin
        self._desk = Desk(store, request.restore_id)
        self._lock = threading.Lock()
        self._waiting: dict[AttemptId, None] = {}  # in order, unlike a set
        self._unanswered: set[AttemptId] = set()  # they may have a first heartbeat
        self._seen: set[AttemptId] = set()
        self._stops: set[AttemptId] = set()
        self._is_closed = False
        self._works: dict[str, Work] = {}
        self._new: list[Work] = []
        self._running = 0
        self._is_done = False
        self._idle_since: float | None = None
        self._idle_seconds = 0.0
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def halt(self) -> None:
        """Take nothing more, without a wait for the thread."""
        self._stopped.set()
        self._wake.set()

    def stop(self) -> None:
        """Take nothing more. What was taken before is in `works` then."""
        self.halt()
        if self._thread.is_alive():
            self._thread.join()

    def works(self) -> list[Work]:
        """Return all attempts in work."""
        with self._lock:
            return list(self._works.values())

    def take_new(self) -> list[Work]:
        """Return the attempts that were taken since the last call."""
        with self._lock:
            new, self._new = self._new, []
        return new

    def is_asked_to_stop(self, work: Work) -> bool:
        """Whether somebody asked to stop an attempt alone."""
        return _id(work.request) in self._stops

    def set_running(self, count: int) -> None:
        """Tell how many trials run; more attempts may be taken then."""
        if count != self._running:
            self._running = count
            self._wake.set()

    def end(self, work: Work) -> None:
        """Take an attempt that has its outcome off the desk."""
        with self._lock:
            self._works.pop(work.trial_id, None)
        self._wake.set()
        try:
            self._desk.clear(work.trial_id, work.request.attempt)
        except (TuneRestoreError, OSError) as error:  # its outcome says that it is over
            logger.warning("Trial %s stays on the desk: %s", work.trial_id, error)

    def is_done(self) -> bool:
        """Whether nothing is in work and nothing more comes. Once it is so, nothing more is taken."""
        with self._lock:
            if self._works or self._waiting:
                return self._is_done
            self._is_done |= self._is_closed or self._idle_seconds >= IDLE_SECONDS
            if self._is_done:
                self._stopped.set()
            return self._is_done

    def seeds(self) -> list[dict[str, Any]]:
        """Return the seeds of all attempts that are in work or on the desk now, as far as readable."""
        with self._lock:
            trial_ids = [*self._works, *(attempt.trial_id for attempt in self._waiting)]

        def read(trial_id: str) -> dict[str, Any]:
            try:
                return self._read_seed(trial_id)
            except (TuneRestoreError, OSError):
                return {}

        return [seed for seed in for_each(read, trial_ids) if seed]

    def _run(self) -> None:
        next_look = 0.0
        while not self._stopped.is_set():
            try:
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + DESK_SECONDS
                    self.look()
                self.take()
            except (TuneRestoreError, OSError) as error:
                logger.warning("The desk could not be read; it will be tried again: %s", error)
            self._wake.wait(DESK_SECONDS)
            self._wake.clear()

    def look(self) -> None:
        """Read the desk once."""
        found = self._desk.read()
        with self._lock:
            self._seen &= set(found.to_run)
            self._unanswered &= set(found.to_run)
            self._waiting = {a: None for a in found.to_run if a not in self._seen}
            self._stops, self._is_closed = found.to_stop, found.is_closed
            self._measure_idleness(found)

    def _measure_idleness(self, found: OnDesk) -> None:
        now_ = time.monotonic()
        if self._works or self._waiting:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now_
        self._idle_seconds = now_ - self._idle_since if self._idle_since is not None else 0.0

    def take(self) -> None:
        """Take as many attempts as there is room for, and all that were asked to stop.

        Those whose begin got no answer come first, and have their room: they may have a first heartbeat,
        and their tasks give them up if no other one follows.
        """
        with self._lock:
            room = self._room()
            urgent = self._stops | self._unanswered
            first = [attempt for attempt in self._waiting if attempt in urgent]
            others = [attempt for attempt in self._waiting if attempt not in urgent]
        for_each(self._take, [*first, *others[: max(0, room)]])

    def _room(self) -> int:
        unfinished, running = len(self._works) + len(self._unanswered), self._running
        room = max(FEW, running) - (unfinished - running)
        most = self._request.concurrent
        return min(room, most - unfinished) if most else room

    def _take(self, attempt: AttemptId) -> None:
        work = None if self._stopped.is_set() else self._try_to_take(attempt)
        with self._lock:
            if work is not None:
                self._works[work.trial_id] = work
                self._new.append(work)
            self._seen.add(attempt)
            self._unanswered.discard(attempt)
            self._waiting.pop(attempt, None)

    def _try_to_take(self, attempt: AttemptId) -> Work | None:
        """Begin an attempt and read its seed; None if this driver does not run it."""
        name = printable(attempt.trial_id, 80)
        if not is_safe_name(attempt.trial_id) or attempt.attempt != SHARED_ATTEMPT:
            logger.warning("%s on the desk cannot be a shared attempt.", name)
            return None
        try:
            request = AttemptRecords(self._store, attempt.restore_id, attempt.trial_id).request(
                attempt.attempt
            )
        except (KeyNotFoundError, RecordUnreadableError) as error:
            logger.warning("Trial %s on the desk is left there: %s", name, error)
            return None
        if not request.is_shared or request.action not in RUN_ACTIONS:
            logger.warning("Trial %s on the desk is left there: it is not shared.", name)
            return None
        with self._lock:
            self._unanswered.add(attempt)
        try:
            self._begin(request)
        except FencedError as error:
            logger.info("%s", error)  # another driver has it, or had it
            return None
        work = Work(request=request, started_at=now())
        try:
            work.seed = self._read_seed(work.trial_id)
        except (TuneRestoreError, OSError) as error:
            work.error = error
        return work

    def _read_seed(self, trial_id: str) -> dict[str, Any]:
        """Return the state of one trial; RunnerError if it is damaged, other errors as of the store."""
        key = layout.seed_key(self._request.restore_id, trial_id)
        body = self._store.get(key, max_bytes=layout.MAX_STATE_BYTES)
        try:
            seed: dict[str, Any] = json.loads(body)
            ((row, metadata),) = seed["trial_data"]
            if not isinstance(row, str) or not isinstance(metadata, str):
                raise TypeError("its row is not text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunnerError(f"{key} is not a valid state of one trial ({error})") from error
        return seed


def _id(request: RunnerRequest) -> AttemptId:
    return AttemptId(request.restore_id, request.trial_id, request.attempt)
