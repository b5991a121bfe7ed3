"""One world from its seed: a failed sweep, nights with faults, and quiet nights until it is whole."""

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from tests.simulation.airflow import TRIES, Airflow, Meddling
from tests.simulation.as_code import as_code
from tests.simulation.changes import tell_changes
from tests.simulation.driver import DriverLife, run_driver
from tests.simulation.faults import (
    Fault,
    FaultKind,
    Faults,
    Storm,
    draw_fault_of_settlement,
    draw_fault_of_shared,
    draw_faults,
)
from tests.simulation.invariants import (
    InvariantBroken,
    Invariants,
    check_end,
    i3_a_quiet_night_is_the_last,
)
from tests.simulation.runner import without_ray
from tests.simulation.standins import Here, installed
from tests.simulation.store import Shelf, SimulatedStore, StoreKind
from tests.simulation.sweeps import SWEEPS
from tests.simulation.world import EPOCH, EndlessError, World

HOUR, DAY = 3600.0, 86400.0

SHARE_OF_SHARED = 0.2
"""Of all worlds, those in which trials share a driver."""

_CHOOSES_SHARED = 18205
"""Chooses these worlds so that those in which older plants are found stayed as they were."""

_SHARED = tuple(sorted(name for name in SWEEPS if SWEEPS[name].strategy == "shared_driver"))
_OTHERS = sorted(SWEEPS.keys() - _SHARED)


@dataclass(frozen=True)
class Night:
    """One DAG run with faults: when it starts, what is done to it, and how long its window lasts."""

    starts: float
    meddlings: tuple[Meddling, ...] = ()
    window: float | None = None


@dataclass(frozen=True)
class Command:
    """`undo` or `release` from a shell, at some time."""

    name: str
    at: float


@dataclass(frozen=True)
class Loss:
    """A worker is lost with all its processes, at some time."""

    worker: int
    at: float


@dataclass(frozen=True)
class Jump:
    """The clock of a worker jumps."""

    worker: int
    at: float
    seconds: float


@dataclass(frozen=True, repr=False)
class Script:
    """All that a seed decides. Each fault, and each thing that is done, can be left out.

    The defaults are those of the smallest script: one undisturbed night.

    Args:
        pace: Seconds that a request takes at most.
        tail: The share of requests that take a hundred times as long.
        start_seconds: Seconds that a runner takes at most until it begins.
        clocks: By how many seconds the clocks of the server and of the workers are ahead.
        asks: Whether plan asks Airflow about the holder of a lease.
    """

    seed: int
    sweep: str
    kind: StoreKind = StoreKind.GCS
    ttl_seconds: float = 60.0
    pace: float = 0.02
    tail: float = 0.0
    start_seconds: float = 0.0
    clocks: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    asks: bool = False
    max_attempts: int | None = None
    nights: tuple[Night, ...] = (Night(0.0),)
    faults: tuple[Fault, ...] = ()
    storms: tuple[Storm, ...] = ()
    commands: tuple[Command, ...] = ()
    losses: tuple[Loss, ...] = ()
    jumps: tuple[Jump, ...] = ()
    drivers: tuple[DriverLife, ...] = ()

    def __repr__(self) -> str:
        """Return it as code, to be pasted."""
        return as_code(self)


def draw_script(seed: int) -> Script:
    """Draw a world; in one of five, trials share a driver."""
    script = _draw_script(seed)
    if random.Random(f"{seed} {_CHOOSES_SHARED}").random() >= SHARE_OF_SHARED:
        return script
    return _draw_shared(random.Random(f"{seed} shares"), script)


def _draw_script(seed: int) -> Script:
    rng = random.Random(seed)
    script = _draw_any(rng, seed)
    chance = rng.random()
    if chance < 0.15:
        return _draw_takeover(rng, script)
    if chance < 0.25:
        return _draw_twins(rng, script)
    if chance < 0.3:
        return _draw_late_runner(rng, script)
    if chance < 0.35:
        return _draw_settlement(rng, script)
    return _draw_windows(rng, script) if chance >= 0.95 else script


def _draw_any(rng: random.Random, seed: int) -> Script:
    """Draw each part of a world by itself."""
    starts = 0.0
    nights = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        nights.append(Night(starts, tuple(_draw_meddlings(rng))))
        starts += rng.choice((0.0, 1.0, 30.0, 200.0, 1200.0, HOUR, DAY))
    end = nights[-1].starts + 600.0
    commands = [
        Command(rng.choice(("undo", "release")), rng.uniform(0.0, end + 1200.0))
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))
    ]
    storms = [
        Storm(rng.uniform(0.0, end), rng.choice((20.0, 120.0, 700.0)), rng.choice((0.3, 0.9, 1.0)))
        for _ in range(rng.choice((0, 0, 0, 0, 1)))
    ]
    losses = [
        Loss(rng.randrange(3), rng.uniform(0.0, end)) for _ in range(rng.choice((0, 0, 0, 1)))
    ]
    jumps = [
        Jump(rng.randrange(3), rng.uniform(0.0, end), rng.choice((-3, 3, 0.1)) * HOUR)
        for _ in range(rng.choice((0, 0, 1)))
    ]
    clocks = tuple(rng.choice((0.0, 0.0, 30.0, -3 * HOUR, 5 * HOUR)) for _ in range(4))
    kind = rng.choice(list(StoreKind))
    if kind is StoreKind.LOCAL:  # the disk of one machine, which has one clock
        clocks, jumps = clocks[:1] * 4, []
    sweep = rng.choice(_OTHERS)
    return Script(
        seed=seed,
        sweep=sweep,
        kind=kind,
        ttl_seconds=rng.choice((60.0, 120.0, 900.0)),
        pace=(pace := rng.choice((0.02, 0.2, 2.0))),
        tail=rng.choice((0.0, 0.0, 0.05)) if pace < 1.0 else 0.0,
        start_seconds=rng.choice((0.0, 1.0, 10.0)),
        clocks=clocks,
        asks=rng.random() < 0.5,
        max_attempts=rng.choice((None, None, 2, 4)),
        nights=tuple(nights),
        faults=tuple(draw_faults(rng)),
        storms=tuple(storms),
        commands=tuple(commands),
        losses=tuple(losses),
        jumps=tuple(jumps),
        drivers=tuple(_draw_drivers(rng, end) if SWEEPS[sweep].samples is None else ()),
    )


def _draw_takeover(rng: random.Random, script: Script) -> Script:
    """Let a second night begin while trials are trained that take minutes, and a runner is not heard of.

    Drawn by itself, each of these is frequent; all of them together are too rare to be tried often.
    """
    silence = Fault(
        rng.choice((FaultKind.FREEZES, FaultKind.CUT_OFF)),
        rng.choice(("runner", "runner", "commit", "plan")),
        rng.randint(5, 80),
        seconds=rng.choice((40.0, 100.0, 200.0, 400.0, 1000.0)),
    )
    times_out = Meddling("time out unheard", "", rng.uniform(20.0, 150.0))
    return replace(
        script,
        sweep=rng.choice(("slow", "slow-whole")),
        ttl_seconds=60.0,
        drivers=(),
        nights=(
            Night(0.0, (times_out,) if rng.random() < 0.5 else script.nights[0].meddlings),
            Night(rng.uniform(60.0, 400.0)),
        ),
        faults=(silence, *script.faults[:2]),
    )


def _draw_twins(rng: random.Random, script: Script) -> Script:
    """Let two tries of one task run at the same time, one of them late, and a person undo or release.

    As in `_draw_takeover`: by chance, all of it comes together too seldom.
    """
    task = rng.choice(("plan", "commit", "commit"))
    late = Fault(
        FaultKind.SLOW,
        rng.choice((task, task, "undo")),
        rng.randint(1, 40),
        seconds=rng.choice((6.0, 10.0, 14.0)),
    )
    frozen = Fault(FaultKind.FREEZES, late.role, late.nth, seconds=rng.choice((20.0, 90.0, 600.0)))
    again = Meddling(rng.choice(("twice", "twice", "lost")), task, rng.uniform(0.0, 3.0))
    clear = Meddling("clear", rng.choice(("plan", "trial", "commit")), rng.uniform(10.0, 700.0))
    return replace(
        script,
        sweep=rng.choice(("one", "small", "broken", "whole", "search-whole")),
        drivers=(),
        nights=(
            Night(0.0, (again, clear) if rng.random() < 0.3 else (again,)),
            *((Night(rng.choice((30.0, 100.0, 400.0))),) if rng.random() < 0.5 else ()),
        ),
        faults=(rng.choice((late, frozen)),),
        commands=tuple(
            Command(rng.choice(("undo", "undo", "release")), rng.uniform(5.0, 150.0))
            for _ in range(rng.randint(0, 3))
        ),
    )


def _draw_late_runner(rng: random.Random, script: Script) -> Script:
    """Let the runners of all tries die, and a second process start one more about when the commit begins.

    A fault strikes the commit that waits for it, or the late runner. By chance, all of it comes together
    too seldom.
    """
    sweep = rng.choice(("one", "one", "small", "slow"))
    how = rng.choice((FaultKind.DIES_BEFORE, FaultKind.DIES_AFTER, FaultKind.DIES_AFTER))
    dies = Fault(how, "runner", 1, "create", "*/attempts/*/heartbeat.json")
    trials = 1 if sweep == "one" else 2
    kind = rng.choice((FaultKind.FREEZES, FaultKind.SLOW, FaultKind.REFUSED, FaultKind.DIES_AFTER))
    at_work = Fault(
        kind,
        rng.choice(("commit", "commit", "runner")),
        rng.randint(1, 40),
        seconds=rng.choice((5.0, 14.0, 30.0)),
    )
    return replace(
        script,
        sweep=sweep,
        drivers=(),
        nights=(Night(0.0, (Meddling("twice", "trial", rng.uniform(180.0, 320.0)),)),),
        faults=(*(dies,) * (trials * TRIES), at_work),
        storms=(),
    )


def _draw_settlement(rng: random.Random, script: Script) -> Script:
    """Let all tries of a commit die, and let a fault strike the next night as it commits that work.

    As in `_draw_late_runner`.
    """
    kinds = (FaultKind.DIES_BEFORE, FaultKind.DIES_INSIDE, FaultKind.DIES_AFTER)
    dies = Fault(rng.choice(kinds), "commit", rng.choice((1, 1, rng.randint(1, 30))))
    sweeps = ("one", "small", "broken", "restarted", "whole", "whole-broken", "search-whole")
    again = Meddling("twice", "plan", rng.uniform(0.0, 60.0))
    return replace(
        script,
        sweep=rng.choice(sweeps),
        drivers=(),
        nights=(Night(0.0), Night(1200.0, (again,) if rng.random() < 0.3 else ())),
        faults=(*(dies,) * TRIES, draw_fault_of_settlement(rng)),
        storms=(),
    )


def _draw_windows(rng: random.Random, script: Script) -> Script:
    """Let windows close while trials are trained; in half of the worlds nothing else goes wrong."""
    nights = tuple(replace(night, window=rng.uniform(5.0, 300.0)) for night in script.nights)
    script = replace(
        script,
        sweep=rng.choice(("slow", "slow-whole", "small", "whole", "search", "search-whole")),
        nights=nights,
        drivers=(),
    )
    if rng.random() < 0.5:
        return script
    return replace(
        script,
        clocks=script.clocks[:1] * 4,
        pace=min(script.pace, 0.2),
        tail=0.0,
        faults=(),
        storms=(),
        commands=(),
        losses=(),
        jumps=(),
    )


def _draw_shared(rng: random.Random, script: Script) -> Script:
    """Let the trials of a world share a driver; in two of three, something is done to that driver."""
    script = replace(script, sweep=rng.choice(_SHARED))
    if rng.random() < 0.33:
        return script
    faults = [draw_fault_of_shared(rng) for _ in range(rng.randint(1, 3))]
    first = script.nights[0]
    tasks = [
        Meddling(rng.choice(("stop", "runner twice", "twice", "lost")), "trial", seconds)
        for seconds in [rng.uniform(0.0, rng.choice((5.0, 60.0, 150.0)))][: rng.randint(0, 1)]
    ]
    losses = script.losses
    if rng.random() < 0.2:
        losses = (*losses, Loss(rng.randrange(3), first.starts + rng.uniform(0.0, 90.0)))
    return replace(
        script,
        nights=(replace(first, meddlings=(*first.meddlings, *tasks)), *script.nights[1:]),
        faults=(*faults, *script.faults[: rng.randint(0, 2)]),
        losses=losses,
    )


def _draw_drivers(rng: random.Random, end: float) -> list[DriverLife]:
    """Draw a driver that is not dead yet, or one that a user starts; mostly none."""
    kind = rng.choice(("", "", "", "", "", "first", "later"))
    if not kind:
        return []
    starts = rng.uniform(0.0, end) if kind == "later" else None
    ends = (starts or 0.0) + rng.choice((100.0, 1000.0, 5000.0))
    return [DriverLife(starts, ends, pause=rng.choice((3.0, 30.0)))]


def _draw_meddlings(rng: random.Random) -> list[Meddling]:
    tasks = ("plan", "trial", "commit", "samples")
    found = [
        Meddling(
            what := rng.choice(("twice", "twice", "lost", "clear", "runner twice")),
            "trial" if what == "runner twice" else rng.choice(tasks),
            rng.choice((0.0, 0.2, 1.0, 100.0 if what == "clear" else 1.0)) * rng.uniform(0.0, 60.0),
        )
        for _ in range(rng.choice((0, 0, 1, 1, 2)))
    ]
    if rng.random() < 0.15:
        what = rng.choice(("time out", "time out unheard"))
        found.append(Meddling(what, "", rng.uniform(0.0, 300.0)))
    return found


def count_nights(script: Script) -> int:
    """Return how many nights a world has, if it breaks no invariant."""
    return len(script.nights) + (3 if SWEEPS[script.sweep].broken else 2)


@dataclass
class Ended:
    """What became of a world.

    Args:
        struck: The faults of its script that struck.
        left_undone: What its script would have done to a task that never began.
    """

    script: Script
    nights: int = 0
    steps: int = 0
    struck: list[Fault] = field(default_factory=list)
    left_undone: list[Meddling] = field(default_factory=list)
    seconds: float = 0.0
    failure: str = ""
    story: list[tuple[float, str, str]] = field(default_factory=list)


def simulate(script: Script, *, is_told: bool = False) -> Ended:
    """Let a world happen; return what became of it. `installed` and `without_ray` must be in force."""
    world = World(script.seed)
    world.is_told = is_told
    Here.world = world
    ended = Ended(script)
    try:
        _happen(world, script, ended)
    except (InvariantBroken, EndlessError) as error:
        ended.failure = f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001  an error that no caller expects is a failure, too
        ended.failure = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    finally:
        world.is_told = False  # the end of the world is no part of the story
        world.close()
    ended.steps, ended.seconds, ended.story = world.steps, world.now, world.story
    return ended


def _happen(world: World, script: Script, ended: Ended) -> None:
    sweep = SWEEPS[script.sweep]
    shelf = Shelf(world, script.kind, ahead=script.clocks[0])
    faults = Faults(world, script.faults, script.storms, pace=script.pace, tail=script.tail)
    workers = [
        world.machine(f"worker-{n}", ahead=ahead) for n, ahead in enumerate(script.clocks[1:])
    ]
    age = 20.0 if any(life.starts is None for life in script.drivers) else 6 * HOUR
    shelf.load(sweep.files(), EPOCH + timedelta(seconds=script.clocks[0] - age))
    ended.struck = faults.struck
    watch = Invariants(world, shelf, sweep, script.ttl_seconds)
    troubles = (script.faults, script.storms, script.losses, script.jumps, script.tail)
    has_one_clock = len(set(script.clocks)) == 1
    watch.is_calm = has_one_clock and script.pace < 1.0 and not any(troubles)
    if world.is_told:
        tell_changes(world, shelf)
    airflow = Airflow(
        world,
        SimulatedStore(shelf, faults.draw),
        sweep,
        script.ttl_seconds,
        script.asks,
        script.max_attempts,
        workers,
        script.start_seconds,
    )
    for number, night in enumerate(script.nights, 1):
        window = None if night.window is None else night.window + script.clocks[0]
        meddlings = list(night.meddlings)
        airflow.start_dag_run(f"night-{number}", meddlings, delay=night.starts, window=window)
    for command in script.commands:
        if command.name == "undo":
            airflow.undo(delay=command.at)
        else:
            airflow.release("bad", delay=command.at)
    for life in script.drivers:
        world.after(life.starts or 0.0, _starting(world, airflow, watch, life))
    for loss in script.losses:
        world.after(loss.at, _killing(world, airflow, loss.worker))
    for jump in script.jumps:
        world.after(jump.at, _jumping(world, airflow, jump))
    world.run()
    ended.nights = len(script.nights)
    ended.left_undone = airflow.left_undone()
    faults.are_over = True
    watch.note_quiet()
    _quiet_night(world, airflow, ended)
    check_end(watch, airflow)
    if sweep.broken:  # one run of all trials lets it fail only once per night
        _quiet_night(world, airflow, ended)
    changes = shelf.changes
    _quiet_night(world, airflow, ended)
    i3_a_quiet_night_is_the_last(watch, changed=shelf.changes != changes)


def _quiet_night(world: World, airflow: Airflow, ended: Ended) -> None:
    ended.nights += 1
    world.tell("the next quiet night", "begins")
    airflow.start_dag_run(f"night-{ended.nights}", [], delay=DAY)
    world.run()


def _killing(world: World, airflow: Airflow, worker: int) -> Callable[[], None]:
    def kill() -> None:
        world.tell(f"worker-{worker}", "is lost")
        for process in airflow.worker(worker).processes:
            process.kill()

    return kill


def _starting(
    world: World, airflow: Airflow, watch: Invariants, life: DriverLife
) -> Callable[[], None]:
    def start() -> None:
        at_work = any(run.started_at and not run.has_ended for run in airflow.runs.values())
        at_work |= any(process.is_alive for process in world.processes)
        if at_work and life.starts is not None:
            world.tell("a user", "does not start the driver: something is at work")
            return
        driver = world.start(
            world.machine("head"),
            "its own driver",
            lambda: run_driver(world, airflow.store, airflow.sweep, life),
            role="driver",
        )
        world.after(life.ends - world.now, driver.kill)
        watch.note_driver(driver, has_written=life.starts is None)

    return start


def _jumping(world: World, airflow: Airflow, jump: Jump) -> Callable[[], None]:
    def set_clock() -> None:
        world.tell(f"worker-{jump.worker}", f"its clock jumps by {jump.seconds:+.0f} s")
        airflow.worker(jump.worker).ahead += jump.seconds

    return set_clock


__all__ = ["Ended", "Script", "draw_script", "installed", "simulate", "without_ray"]
