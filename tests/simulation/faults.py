"""What goes wrong in a world, drawn from its seed: a short list of faults, each of which can be left out.

A fault strikes one request of one kind of process, by its number or by the object that it is about. So a
failing world can be made smaller: faults that do not matter are left out one by one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from tests.simulation.store import MOST_DELAY, Fate
from tests.simulation.world import Process, World


class FaultKind(StrEnum):
    """What happens to a request, or to the process that sends it."""

    DIES_BEFORE = "the process dies before the request"
    DIES_INSIDE = "the process dies during the request"
    DIES_AFTER = "the process dies after the request"
    FREEZES = "the process freezes before it uses the answer"
    ANSWER_LOST = "the answer is lost"
    REFUSED = "the store refuses the request (503)"
    SLOW = "the request is slow"
    REPEATED = "the store carries out the request twice"
    LATE = "the request times out, and is carried out later"
    CUT_OFF = "from here on, the process cannot reach the store"


_LONGEST_REQUEST = 60.0


@dataclass(frozen=True)
class Fault:
    """One fault: the `nth` request of a role that fits `verb` and `key` is struck."""

    kind: FaultKind
    role: str
    nth: int
    verb: str = "*"
    key: str = "*"
    seconds: float = 0.0

    def __str__(self) -> str:
        which = "request" if self.key == "*" else f"`{self.verb} {self.key}`"
        lasts = f" ({self.seconds:.0f} s)" if self.seconds else ""
        return f"{which} {self.nth} of {self.role}: {self.kind}{lasts}"


@dataclass(frozen=True)
class Storm:
    """A time in which the store refuses most requests."""

    begins: float
    seconds: float
    share: float


_OBJECTS = (
    ("create", "*/lease/*.claim.json", ("plan", "commit", "samples", "undo", "release")),
    ("put", "*/lease/*.heartbeat.json", ("plan", "trial", "runner", "commit")),
    ("put", "*/lease/*.release.json", ("plan", "commit", "samples", "undo", "release")),
    ("put", "*/seed.json", ("plan",)),
    ("create", "*/plan.json", ("plan", "samples")),
    ("create", "*/request.json", ("trial", "samples")),
    ("create", "*/heartbeat.json", ("runner",)),
    ("put", "*/attempts/*/heartbeat.json", ("runner",)),
    ("put", "*/start-*.json", ("runner",)),
    ("put", "*/checkpoint_*", ("runner",)),
    ("put", "*/result.json", ("runner",)),
    ("put", "*/attempts/*/state.json", ("runner",)),
    ("put", "*/outcome.json", ("runner",)),
    ("put", "*/exit.json", ("trial",)),
    ("put", "*/stops/*", ("trial",)),
    ("put", "*/searcher/*", ("runner",)),
    ("create", "*/commit.json", ("commit", "plan", "samples")),
    ("create", "experiment_state-*", ("commit", "plan", "samples")),
    ("put", "*-state-*", ("commit", "samples")),
    ("put", "*ledger*", ("commit", "plan", "release", "samples")),
    ("put", "*/commit.json", ("commit", "plan", "samples", "undo")),
    ("delete", "*", ("undo",)),
    ("get", "*ledger*", ("commit", "plan", "release")),
    ("get", "experiment_state-*", ("commit", "plan", "undo")),
    ("list", "", ("commit", "plan", "undo")),
    ("walk", ".tune_restore/airflow-*", ("commit", "plan", "runner", "samples", "undo")),
    ("list", ".tune_restore/lease", ("plan", "commit", "trial", "runner", "undo", "release")),
)
_OF_SETTLEMENT = (
    ("walk", ".tune_restore/airflow-*"),
    ("get", "*/attempts/*"),
    ("create", "*/commit.json"),
    ("create", "experiment_state-*"),
    ("put", "*-state-*"),
    ("put", "*ledger*"),
    ("put", "*/commit.json"),
    ("put", "*/lease/*.release.json"),
    ("put", "*/seed.json"),
)
_OF_SHARED = (
    ("list", "*/desk", ("runner",)),
    ("put", "*/desk/*", ("trial",)),
    ("delete", "*/desk/*", ("runner", "trial")),
    ("create", "*/request.json", ("trial",)),
    ("create", "*/shared/attempts/*/request.json", ("trial",)),
    ("create", "*/heartbeat.json", ("runner",)),
    ("create", "*/trials/*/heartbeat.json", ("runner",)),
    ("put", "*/shared/attempts/*/heartbeat.json", ("runner",)),
    ("put", "*/trials/*/heartbeat.json", ("runner",)),
    ("list", "*/trials/*/attempts", ("runner", "trial")),
    ("get", "*/trials/*/heartbeat.json", ("trial",)),
    ("get", "*/shared/attempts/*/heartbeat.json", ("trial",)),
    ("get", "*/seed.json", ("runner",)),
    ("get", "*/request.json", ("runner",)),
    ("put", "*/start-*.json", ("runner",)),
    ("put", "*/checkpoint_*", ("runner",)),
    ("put", "*/result.json", ("runner",)),
    ("put", "*/attempts/*/state.json", ("runner",)),
    ("put", "*/trials/*/outcome.json", ("runner",)),
    ("put", "*/shared/attempts/*/outcome.json", ("runner",)),
    ("put", "*/exit.json", ("trial",)),
    ("*", "*", ("runner",)),
    ("*", "*", ("trial",)),
)
_ROLES = (("plan", 60), ("trial", 15), ("runner", 60), ("commit", 60), ("samples", 80))
_RARE_ROLES = (("undo", 30), ("release", 30))


def draw_faults(rng: random.Random, *, most: int = 5) -> list[Fault]:
    """Draw the faults of one world."""
    return [_draw(rng) for _ in range(rng.randint(0, most))]


def draw_fault_of_settlement(rng: random.Random) -> Fault:
    """Draw a fault of a plan that commits what a restore that died has left."""
    kind = rng.choice(list(FaultKind))
    verb, key = rng.choice(_OF_SETTLEMENT)
    return Fault(kind, "plan", rng.choice((1, 1, 2)), verb, key, _draw_seconds(rng, kind))


def draw_fault_of_shared(rng: random.Random) -> Fault:
    """Draw a fault of a driver that trials share, or of a task that hands its trial over."""
    kind = rng.choice((*FaultKind, FaultKind.FREEZES, FaultKind.FREEZES))
    verb, key, roles = rng.choice(_OF_SHARED)
    nth = rng.randint(1, 150 if key == "*" else 5)
    return Fault(kind, rng.choice(roles), nth, verb, key, _draw_seconds(rng, kind))


def _draw(rng: random.Random) -> Fault:
    kind = rng.choice(list(FaultKind))
    seconds = _draw_seconds(rng, kind)
    if rng.random() < 0.6:
        verb, key, roles = rng.choice(_OBJECTS)
        return Fault(kind, rng.choice(roles), rng.choice((1, 1, 1, 2, 3)), verb, key, seconds)
    role, most = rng.choice(_ROLES if rng.random() < 0.8 else _RARE_ROLES)
    return Fault(kind, role, rng.randint(1, most), seconds=seconds)


def _draw_seconds(rng: random.Random, kind: FaultKind) -> float:
    seconds = 0.0
    if kind is FaultKind.FREEZES:
        seconds = rng.choice((5.0, 20.0, 30.0, 38.0, 90.0, 200.0, 1000.0, 5000.0))
    elif kind in (FaultKind.REPEATED, FaultKind.LATE):
        seconds = rng.uniform(0.0, MOST_DELAY)
    elif kind is FaultKind.CUT_OFF:
        seconds = rng.choice((60.0, 200.0, 1000.0))
    elif kind in (FaultKind.SLOW, FaultKind.ANSWER_LOST):
        seconds = rng.uniform(1.0, _LONGEST_REQUEST)
    return seconds


@dataclass(eq=False)
class Open:
    """A fault that has not struck yet: it is the `left`th request from now that it strikes."""

    fault: Fault
    left: int


class Faults:
    """Draws the fate of each request.

    Args:
        pace: Seconds that an ordinary request takes at most.
        tail: The share of requests that take a hundred times as long.
    """

    def __init__(
        self,
        world: World,
        faults: Sequence[Fault],
        storms: Sequence[Storm],
        *,
        pace: float,
        tail: float,
    ) -> None:
        self._world = world
        self._open: dict[str, list[Open]] = {}
        for fault in faults:
            self._open.setdefault(fault.role, []).append(Open(fault, fault.nth))
        self._storms = storms
        self._pace = pace
        self._tail = tail
        self.struck: list[Fault] = []
        self.are_over = False

    def draw(self, process: Process, verb: str, key: str) -> Fate:
        """Return the fate of a request."""
        seconds = process.random.random() * self._pace
        if self._tail and not self.are_over and process.random.random() < self._tail:
            seconds *= 100.0
        if self.are_over:
            return Fate(seconds)
        if process.cut_off_until > self._world.now:
            return Fate(None, answered=seconds + 1.0, error="the store cannot be reached")
        for each in self._open.get(process.role, ()):
            fault = each.fault
            if fault.verb not in ("*", verb) or not (
                fault.key == "*" or fnmatchcase(key, fault.key)
            ):
                continue
            each.left -= 1
            if each.left == 0:
                self._open[process.role].remove(each)
                self.struck.append(fault)
                self._world.tell(process, f"FAULT at {verb} {key}: {fault.kind}")
                if fault.kind is FaultKind.CUT_OFF:
                    process.cut_off_until = self._world.now + fault.seconds
                    return self.draw(process, verb, key)
                return self._fate(process, fault, seconds)
        for storm in self._storms:
            is_on = storm.begins <= self._world.now < storm.begins + storm.seconds
            if is_on and process.random.random() < storm.share:
                return Fate(None, answered=seconds + 5.0, error="503 SlowDown")
        return Fate(seconds)

    @staticmethod
    def _fate(process: Process, fault: Fault, seconds: float) -> Fate:
        later = fault.seconds
        match fault.kind:
            case FaultKind.DIES_BEFORE:
                return Fate(seconds, before="kill")
            case FaultKind.DIES_INSIDE:
                return Fate(seconds, dies_inside=True)
            case FaultKind.DIES_AFTER:
                return Fate(seconds, after="kill")
            case FaultKind.FREEZES:
                return Fate(seconds, after=later)
            case FaultKind.ANSWER_LOST:
                return Fate(seconds, answered=later, error="the answer was lost")
            case FaultKind.REFUSED:
                return Fate(None, answered=seconds + 5.0, error="503 SlowDown")
            case FaultKind.SLOW:
                return Fate(later)
            case FaultKind.REPEATED:
                return Fate(seconds, again=later)
            case FaultKind.LATE:
                return Fate(later, answered=later / 2, error="timed out")
        raise AssertionError(process)
