"""The simulated world: virtual time, machines, processes and their threads. One seed, one schedule.

A process has threads, and each thread is a greenlet: code of this package runs in it unchanged, and gives
way only where it waits: at a store call, a sleep, an event, a lock. So one thread of the operating system
runs everything, nothing sleeps, and the order of all steps follows from the seed.

    world = World(random.Random(7))
    machine = world.machine("worker-1")
    process = world.start(machine, "plan, try 1", main)
    world.run()
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from greenlet import getcurrent, greenlet

EPOCH = datetime(2026, 11, 29, 2, 0, 0, tzinfo=UTC)
"""The true time when a world begins."""

KILLED = "killed"
"""The exit code of a process that was killed."""


THAW_SECONDS = 0.001
"""After a process thaws, before any of its threads sends a request."""


class ProcessKilled(BaseException):  # noqa: N818  not an error: it unwinds a killed process
    """Unwinds the threads of a process that was killed. No step of it has an effect any more."""


class EndlessError(Exception):
    """The world did not end within its bound of virtual time or of steps."""


@dataclass
class Machine:
    """A machine with a wall clock of its own, which may be wrong by hours and may jump."""

    name: str
    ahead: float = 0.0
    processes: list["Process"] = field(default_factory=list)


class Thread:
    """A thread of a process."""

    __slots__ = ("greenlet", "has_ended", "joiners", "process")

    def __init__(self, process: "Process", target: Callable[[], Any]) -> None:
        self.process = process
        self.has_ended = False
        self.joiners: list[Callable[[], None]] = []
        self.greenlet = greenlet(self._run(target), parent=process.world.hub)

    def _run(self, target: Callable[[], Any]) -> Callable[..., None]:
        def run(_value: object = None) -> None:
            try:
                target()
            except ProcessKilled:
                pass
            finally:
                self.has_ended = True
                for wake in self.joiners:
                    wake()

        return run


class Process:
    """A process: it lives, is frozen, is asked to stop, and exits or is killed."""

    def __init__(self, world: "World", machine: Machine, name: str, role: str) -> None:
        self.world = world
        self.machine = machine
        self.name = name
        self.role = role
        self.random = random.Random(f"{world.seed} {name}")
        self.is_alive = True
        self.is_orphan = False
        self.is_asked_to_stop = False
        self.frozen_until = 0.0
        self.cut_off_until = 0.0
        self.exit_code: Any = None
        self.number = len(world.processes)
        self.children: list[Process] = []
        self._threads: list[Thread] = []
        self._waiting: list[Callable[[], None]] = []
        world.every_process.append(self)

    def __str__(self) -> str:
        return self.name

    def spawn(self, target: Callable[[], Any], *, delay: float = 0.0) -> Thread:
        """Start a thread."""
        thread = Thread(self, target)
        self._threads.append(thread)
        self.world.after(delay, self.world.resume, thread)
        return thread

    def kill(self) -> None:
        """`kill -9`."""
        if self.is_alive:
            self._end(KILLED)

    def exit(self, code: Any) -> None:
        """End at once, from any of its threads (`os._exit`)."""
        self._end(code)
        raise ProcessKilled

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        self.is_asked_to_stop = True

    def freeze(self, seconds: float) -> None:
        """Stop all threads for a while; requests that were sent are carried out meanwhile."""
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)

    def when_ended(self, action: Callable[[], None]) -> None:
        """Call `action` once this process has ended."""
        if self.is_alive:
            self._waiting.append(action)
        else:
            self.world.after(0.0, action)

    def _end(self, code: Any) -> None:
        self.is_alive = False
        self.exit_code = code
        self.world.tell(self, f"ends: {code}")
        for child in self.children:
            child.is_orphan = True
        for thread in self._threads:
            if not thread.has_ended and thread is not self.world.current:
                self.world.unwind(thread)
        for action in self._waiting:
            self.world.after(0.0, action)


class World:
    """Virtual time, and whose turn it is.

    Args:
        seed: All randomness comes from it.
        most_seconds: The bound of virtual time.
        most_steps: The bound of steps: a loop that takes no time ends there, too.
    """

    def __init__(
        self, seed: int | str, *, most_seconds: float = 30 * 86400.0, most_steps: int = 400_000
    ) -> None:
        self.seed = seed
        self.random = random.Random(f"{seed} world")
        self.now = 0.0
        self.steps = 0
        self.current: Thread | None = None
        self.machines: dict[str, Machine] = {}
        self.processes: list[Process] = []
        self.every_process: list[Process] = []
        self.is_told = False
        self.watch_training: Callable[[Process, str, int], None] = lambda *_: None
        self.story: list[tuple[float, str, str]] = []
        self._most_seconds = most_seconds
        self._most_steps = most_steps
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self.hub = getcurrent()

    @property
    def process(self) -> Process:
        """The process whose code runs now."""
        assert self.current is not None
        return self.current.process

    def machine(self, name: str, *, ahead: float = 0.0) -> Machine:
        """Return a machine; its clock is `ahead` seconds before the true time."""
        return self.machines.setdefault(name, Machine(name, ahead))

    def start(
        self, machine: Machine, name: str, main: Callable[[], Any], *, role: str, delay: float = 0.0
    ) -> Process:
        """Start a process; `main` returns its exit code. An exception of it ends the world."""
        process = Process(self, machine, name, role)
        machine.processes.append(process)
        self.processes.append(process)

        def run() -> None:
            self.tell(process, f"starts on {machine.name}")
            process._end(main())

        process.spawn(run, delay=delay)
        return process

    def tell(self, who: object, text: str) -> None:
        """Add a line to the story, if anyone will read it."""
        if self.is_told:
            self.story.append((self.now, str(who), text))

    def trains(self, process: Process, trial_id: str, iteration: int) -> None:
        """Take note that a process trains a trial now."""
        self.tell(process, f"trains {trial_id}, iteration {iteration}")
        self.watch_training(process, trial_id, iteration)

    def after(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Call `action` in so many seconds; equal times keep their order."""
        self._number += 1
        heapq.heappush(self._queue, (self.now + seconds, self._number, action, args))

    def run(self, until: float | None = None) -> None:
        """Let everything happen, to its end or until that time.

        Raises:
            EndlessError: If a bound is reached.
        """
        queue = self._queue
        while queue and (until is None or queue[0][0] <= until):
            self.now, _, action, args = heapq.heappop(queue)
            self.steps += 1
            if self.now > self._most_seconds or self.steps > self._most_steps:
                waiting = ", ".join(p.name for p in self.processes if p.is_alive)
                raise EndlessError(
                    f"it has not ended after {self.now:.0f} s and {self.steps} steps; alive: {waiting}"
                )
            action(*args)
        if until is not None:
            self.now = max(self.now, until)

    def close(self) -> None:
        """End what still waits: the memory of a waiting greenlet would never be given back."""
        for process in self.every_process:
            process.kill()

    def resume(self, thread: Thread, value: Any = None, is_timer: bool = False) -> None:  # noqa: FBT001, FBT002  an argument of `after`
        """Let a thread go on: what it waited for returns `value`.

        When a process thaws, those of its threads go first that only waited for a time to pass.
        """
        process = thread.process
        if thread.has_ended or not process.is_alive:
            return
        if process.frozen_until > self.now:
            left = process.frozen_until - self.now + (0.0 if is_timer else THAW_SECONDS)
            self.after(left, self.resume, thread, value, is_timer)
            return
        self.current = thread
        thread.greenlet.switch(value)
        self.current = None

    def unwind(self, thread: Thread) -> None:
        """End a thread of a process that has ended."""
        if not thread.greenlet:  # it never ran
            thread.has_ended = True
            return
        before, self.current = self.current, thread
        thread.greenlet.parent = getcurrent()
        thread.greenlet.throw(ProcessKilled)
        self.current = before

    def living(self) -> Thread:
        """Return the current thread, if its process lives; end it if not."""
        thread = self.current
        assert thread is not None
        if not thread.process.is_alive:
            raise ProcessKilled
        return thread

    def wait(self) -> Any:
        """Let the current thread wait until it is resumed; return the value that it is resumed with.

        Its caller sees to that before, with the thread that `living` returns.
        """
        return self.hub.switch()

    def sleep(self, seconds: float) -> None:
        """Let the current thread sleep."""
        self.after(max(0.0, seconds), self.resume, self.living())
        self.wait()

    def wall(self, ahead: float) -> datetime:
        """Return the time by a clock that is so many seconds ahead."""
        return EPOCH + timedelta(seconds=self.now + ahead)
