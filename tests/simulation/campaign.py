"""Many worlds: in this process, or spread over processes, and what came of them."""

import logging
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from airflow_tune_restore.protocol.printable import counted
from tests.simulation.night import Ended, draw_script, installed, simulate, without_ray
from tests.simulation.shrink import kind_of, shrink
from tests.simulation.story import tell

SEEDS = 10_000_000
"""World seeds per campaign seed: campaigns with different seeds have no world in common."""

MOST_FAILURES = 20
PROGRESS_SECONDS = 60.0
_REPORT_SECONDS = 1.0
_HAPPENED = {
    "twice": "a task is started twice",
    "lost": "a living task is taken for dead",
    "clear": "a task is cleared",
    "stop": "a task is stopped by its `execution_timeout`",
    "runner twice": "a runner is started twice for one attempt",
    "time out": "a DAG run times out",
    "time out unheard": "a DAG run times out, and no worker hears of it",
}
_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Tally:
    """What came of some worlds.

    Args:
        steps: Events: requests, answers, and times that passed.
        struck: How often each kind of fault struck, and how often each thing was to be done.
        seconds: Processor time.
        failures: Seeds, and the invariants that were broken.
    """

    nights: int = 0
    worlds: int = 0
    steps: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)
    is_interrupted: bool = False

    def note(self, ended: Ended) -> None:
        """Add a world."""
        script = ended.script
        self.nights += ended.nights
        self.worlds += 1
        self.steps += ended.steps
        self.struck.update(str(fault.kind) for fault in ended.struck)
        self.struck.update(f"a person starts `{command.name}`" for command in script.commands)
        self.struck.update("a storm of 503s" for _ in script.storms)
        self.struck.update("a worker is lost" for _ in script.losses)
        self.struck.update("a clock jumps" for _ in script.jumps)
        self.struck.update(
            "the experiment's own driver is alive, or is started" for _ in script.drivers
        )
        self.struck.update(_HAPPENED[m.what] for night in script.nights for m in night.meddlings)
        if ended.failure:
            self.failures.append((script.seed, ended.failure))

    def add(self, other: "Tally") -> None:
        """Add the worlds of another process."""
        self.nights += other.nights
        self.worlds += other.worlds
        self.steps += other.steps
        self.struck += other.struck
        self.seconds += other.seconds
        self.failures += other.failures

    def line(self) -> str:
        """Return it in one line."""
        speed = self.nights / self.seconds * 60 if self.seconds else 0.0
        return (
            f"{self.nights:,} nights in {self.worlds:,} worlds, {self.steps:,} steps, "
            f"{self.seconds:,.0f} s of processor time ({speed:,.0f} nights per minute and core), "
            f"{counted(len(self.failures), 'failure')}"
        )


def world_seeds(seed: int, *, first: int = 0, step: int = 1) -> Iterator[int]:
    """Return the seeds of the worlds of a campaign, of every `step`th from the `first` on."""
    return iter(range(seed * SEEDS + first, (seed + 1) * SEEDS, step))


@contextmanager
def simulating() -> Iterator[None]:
    """Have the stand-ins in the code, and no records of the package: they cost more than its work."""
    logging.disable(logging.CRITICAL)
    try:
        with installed(), without_ray():
            yield
    finally:
        logging.disable(logging.NOTSET)


def run_worlds(
    seeds: Iterable[int], nights: int, report: Callable[[Tally], None] = lambda _newest: None
) -> Tally:
    """Simulate worlds until there were so many nights; `report` is given the newest from time to time.

    Needs `simulating`.
    """
    done, newest, reported = Tally(), Tally(), time.monotonic()
    began = time.process_time()
    for seed in seeds:
        newest.note(simulate(draw_script(seed)))
        is_last = done.nights + newest.nights >= nights
        if is_last or newest.failures or time.monotonic() - reported > _REPORT_SECONDS:
            newest.seconds, began = time.process_time() - began, time.process_time()
            report(newest)
            done.add(newest)
            newest, reported = Tally(), time.monotonic()
        if is_last:
            break
    return done


def run_campaign(seed: int, nights: int, processes: int, show: Callable[[str], None]) -> Tally:
    """Simulate so many nights in several processes; return what came of them.

    It ends before if `MOST_FAILURES` worlds have failed, or at Ctrl-C.
    """
    total, shown = Tally(), time.monotonic()
    readers: list[Connection] = []
    workers = []
    for number in range(processes):
        reader, writer = _SPAWN.Pipe(duplex=False)
        share = -(-nights // processes)
        worker = _SPAWN.Process(
            target=_work, args=(seed, number, processes, share, writer), daemon=True
        )
        worker.start()
        writer.close()
        readers.append(reader)
        workers.append(worker)
    try:
        while readers and len(total.failures) < MOST_FAILURES:
            for reader in wait(readers, PROGRESS_SECONDS):
                try:
                    newest = reader.recv()
                except EOFError:
                    readers.remove(reader)
                    continue
                total.add(newest)
                for world, failure in newest.failures:
                    show(f"World {world} fails: {first_line(failure)}")
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                show(total.line())
        if not readers:
            _check_ended(workers)
    except KeyboardInterrupt:
        total.is_interrupted = True
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return total


def _check_ended(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.join()
        if worker.exitcode != 0:
            raise RuntimeError(
                f"A process of the campaign ended with {worker.exitcode}, see above."
            )


def _work(seed: int, first: int, step: int, nights: int, writer: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that counts

    with simulating():
        run_worlds(world_seeds(seed, first=first, step=step), nights, writer.send)


def explain(seed: int, failure: str, *, most: int = 400) -> str:
    """Return a failure, and the story of the smallest world that fails like this one.

    Needs `simulating`, as `run_worlds` does. `most` is how many simulations it may take.
    """
    again = f"python -m tests.simulation --only {seed} --story"
    told = f"World {seed} fails: {failure.rstrip()}"
    ended = simulate(draw_script(seed))
    if not ended.failure:
        return (
            f"{told}\nSimulated again, it broke no invariant: what failed does not follow from its seed "
            f"alone. Something else in this process has touched it.\nThe whole world: {again}"
        )
    kind, smallest = kind_of(ended.failure), shrink(ended, most=most).script
    return (
        f"{told}\nMade smaller, so that it still breaks {kind}, perhaps in another way:\n\n"
        f"{tell(smallest)}\n\nAs code: {smallest!r}\nThe whole world: {again}"
    )


def first_line(failure: str) -> str:
    """Return a failure without its traceback."""
    return failure.partition("\n")[0]
