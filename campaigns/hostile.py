"""Hostile input: everything we read from storage, mutated, exploding, lying, executing.

    python -m campaigns.hostile --inputs 200000 --seed 1     the campaign
    python -m campaigns.hostile --seed 1 --only 1234         one input again, with its traceback
    python -m campaigns.hostile --large [--streamed]         files of 1 GiB in the place of each
    python -m campaigns.hostile --limits --most-mib 512      files just under each limit, and their memory
    python -m campaigns.hostile --odd --inputs 5000          odd, but genuine: what Ray reads, we read

Each input is made from the seed and its number alone, so that any of them can be tried again. It is read
in a child process whose memory is limited, under a watchdog, with a tripwire that hears of whatever
Python is told to execute, import, open or connect to; what is logged meanwhile must be fit to be shown,
and waiting is counted. What fails is printed and saved.

The targets (campaigns/hostile_targets.py): state files, pickles, result rows, every record that
protocol/layout.py can build, with all that reads it, lines and names; dashboards and API servers on
127.0.0.1 that answer anything; links and pipes on a disk wherever a key can stand; impossible times and
claims; and whole nights, through the real operators, over a bad experiment and a good one, which must be
found, planned, run and committed whatever the bad one is. The first inputs of each seed go through all
targets in turn.
"""

import argparse
import codecs
import contextlib
import ctypes
import encodings
import faulthandler
import json
import logging
import multiprocessing
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from airflow_tune_restore.exceptions import TuneRestoreError
from tests.support.waiting import PATIENCE_SECONDS

MEMORY_LIMIT = 2 * 1024**3
"""Address space of a child: interpreter, Airflow and msgspec take about half of it."""

TIME_LIMIT_SECONDS = 20.0
"""Of the processor, which a busy machine hardly adds to: the slowest input on record took 0.9 s."""

WALL_LIMIT_SECONDS = PATIENCE_SECONDS
"""For an input that makes us wait for something; a starved machine is through with any in a minute."""

MOST_FAILURES = 50

_WARM_UPS, _WARM_UP_SECONDS = 50, 1.0
_M_ARENA_MAX = -8
_WRITTEN_EVERY = 20
_EACH_FIRST = 5
"""How often every target has its turn before chance decides."""


@dataclass
class Report:
    """What came of a campaign, or of one child's share of it."""

    tried: int = 0
    by_target: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)  # of the processor, by target
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, int, str] = (0.0, -1, "")
    peak_mib: float = 0.0
    start_mib: float = 0.0

    def add(self, other: "Report") -> None:
        self.tried += other.tried
        self.by_target.update(other.by_target)
        self.seconds.update(other.seconds)
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.peak_mib = max(self.peak_mib, other.peak_mib)
        self.start_mib = max(self.start_mib, other.start_mib)


def run(inputs: int, seed: int, *, processes: int = 2, save_to: Path | None = None) -> Report:
    """Try that many inputs and return what came of it; a child that dies is a failure, too."""
    total = Report()
    with (
        tempfile.TemporaryDirectory(prefix="tune-hostile-") as scratch,
        ThreadPoolExecutor(processes) as pool,
    ):
        for report in pool.map(
            lambda number: _run_share(
                inputs, seed, number, processes, Path(scratch, str(number)), save_to
            ),
            range(processes),
        ):
            total.add(report)
    return total


def _run_share(
    inputs: int, seed: int, first: int, step: int, own: Path, save_to: Path | None
) -> Report:
    """Run one child's share; where it dies of an input, another goes on behind that."""
    context = multiprocessing.get_context("spawn")
    total = Report()
    while first < inputs and len(total.failures) < MOST_FAILURES:
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        share = (inputs, seed, first, step, own.as_posix(), save_to)
        child = context.Process(target=_child, args=share)
        child.start()
        child.join()
        report = _collect(own)
        total.add(report)
        if child.exitcode == 0:
            break
        current = _read_current(own)
        where = "before the first input" if current is None else f"input {current}"
        total.failures.append(f"seed {seed} {where}: the process died with {child.exitcode}")
        if current is None:
            break
        first = current + step
    return total


def _read_current(own: Path) -> int | None:
    try:
        return int((own / "current").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _collect(own: Path) -> Report:
    """Read what a child has written last; nothing of one that died at once."""
    try:
        found = json.loads((own / "report.json").read_text())
    except FileNotFoundError:
        return Report()
    for name in ("by_target", "seconds"):
        found[name] = Counter(found[name])
    return Report(**{**found, "slowest": tuple(found["slowest"])})


def _child(
    inputs: int, seed: int, first: int, step: int, scratch: str, save_to: Path | None
) -> None:
    import tests.support.airflow.home  # noqa: F401  first of all: it sets AIRFLOW_HOME
    from campaigns.guards import Tripwire
    from campaigns.hostile_lab import Lab

    os.chdir(scratch)  # what is opened by a name alone is taken to lie there
    os.environ["NETRC"] = f"{scratch}/netrc"  # aiohttp would read the user's
    os.fsync = lambda _file: None  # no power is cut here
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)  # or each thread would take address space for itself
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    for number in (signal.SIGALRM, signal.SIGPROF):
        faulthandler.register(number, chain=True)  # the traceback, then death
    signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT_SECONDS)
    _targets()  # all must be imported before the lab lets time fly in them
    lab, wire = Lab(scratch), Tripwire(scratch)
    for logger in (logging.getLogger(), logging.getLogger("urllib3")):
        logger.handlers = [logging.NullHandler()]  # a traceback is compiled where it is shown
    _warm_up(lab)
    report = Report(start_mib=_peak_mib())
    current = os.open(f"{scratch}/current", os.O_RDWR | os.O_CREAT)
    for index in range(first, inputs, step):
        os.pwrite(current, f"{index:<20}".encode(), 0)
        failure = try_one(seed, index, lab, wire, report)
        if failure is not None:
            report.failures.append(failure)
            _save(save_to, seed, index, failure, lab)
            if len(report.failures) >= MOST_FAILURES:
                break
        if report.tried % _WRITTEN_EVERY == 0:
            _write(report, scratch)
    _write(report, scratch)


def _write(report: Report, scratch: str) -> None:
    report.peak_mib = _peak_mib()
    Path(scratch, "report.json").write_text(json.dumps(vars(report)))


def _warm_up(lab) -> None:
    """Let every lazy import happen before the tripwire is armed: inputs that do not count."""
    for module in pkgutil.iter_modules(encodings.__path__):
        with contextlib.suppress(LookupError, ImportError):
            codecs.lookup(
                module.name
            )  # JSON may be in any of UTF's, and a server says what it likes
    for name, (target, _) in _targets().items():
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT_SECONDS)
        for index in range(_WARM_UPS):
            lab.begin()
            with contextlib.suppress(BaseException):
                target(random.Random(f"warm/{name}/{index}"), lab)
            if time.monotonic() - started > _WARM_UP_SECONDS:
                break


def _targets():  # noqa: ANN202
    from campaigns.hostile_targets import TARGETS

    return TARGETS


def try_one(seed: int, index: int, lab, wire, report: Report) -> str | None:
    """Try one input; return what went wrong."""
    targets = _targets()
    rng = random.Random(f"{seed}/{index}")
    (name,) = rng.choices(list(targets), [weight for _, weight in targets.values()])
    if index < _EACH_FIRST * len(targets):
        name = list(targets)[index % len(targets)]
    lab.begin()
    failure = None
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT_SECONDS)
    try:
        with wire:
            with contextlib.suppress(TuneRestoreError):
                targets[name][0](rng, lab)
            lab.check_said()
    except BaseException:  # noqa: BLE001  whatever gets out is what we look for
        failure = f"seed {seed} input {index} ({name}): {traceback.format_exc(limit=-6)}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if wire.trips and failure is None:
        failure = f"seed {seed} input {index} ({name}): swallowed {wire.trips}"
    wire.trips.clear()
    report.tried += 1
    report.by_target[name] += 1
    seconds = time.process_time() - started
    report.seconds[name] += seconds
    report.slowest = max(report.slowest, (seconds, index, name))
    return failure


def _save(save_to: Path | None, seed: int, index: int, failure: str, lab) -> None:
    if save_to is None:
        return
    directory = save_to / f"seed-{seed}-input-{index}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "failure.txt").write_text(failure, errors="replace")
    for number, (name, body) in enumerate(lab.kept.items()):
        (directory / f"{number}.bin").write_bytes(body)
        with (directory / "failure.txt").open("a", errors="replace") as file:
            file.write(f"\n{number}.bin is {name!r}")


def odd_inputs(inputs: int, seed: int, first: int = 0) -> Report:
    """Try inputs that are odd but genuine, from `first` on; those that Ray cannot read are counted."""
    from campaigns import hostile_odd

    logging.getLogger("ray.tune").setLevel(
        logging.ERROR
    )  # it names every result.json that is missing

    report = Report(start_mib=_peak_mib())
    with tempfile.TemporaryDirectory(prefix="tune-odd-") as scratch:
        for index in range(first, inputs):
            rng = random.Random(f"{seed}/{index}")
            started = time.process_time()
            genuine, odd = hostile_odd.make_odd(rng, Path(scratch))
            try:
                is_read = hostile_odd.check(genuine, odd)
                report.by_target["read by Ray" if is_read else "not read by Ray"] += 1
            except Exception:  # noqa: BLE001  whatever gets out is what we look for
                words = traceback.format_exc(limit=-6)
                report.failures.append(f"seed {seed} input {index} ({genuine.name}): {words}")
            report.tried += 1
            seconds = time.process_time() - started
            report.slowest = max(report.slowest, (seconds, index, genuine.name))
            if len(report.failures) >= MOST_FAILURES:
                break
    report.peak_mib = _peak_mib()
    return report


_SMALL_BYTES = 512 * 1024
LARGE_BYTES = 1024**3
LARGE_NAMES = ("state", "older state", "tuner.pkl", "searcher", "result.json", "plan.json", "commit.json",
               "claim", "heartbeat", "snapshot", "outcome.json")  # fmt: skip


def large_files(*, streamed: bool = False) -> Report:
    """Put a file of 1 GiB in the place of each, one after another, and read the experiment.

    Args:
        streamed: From an object store whose listing lies about sizes and that sends zeros, instead of a
            sparse file on disk.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="tune-hostile-") as scratch:
        child = context.Process(target=_large_child, args=(scratch, streamed))
        child.start()
        child.join()
        report = _collect(Path(scratch))
        if child.exitcode != 0:
            report.failures.append(f"the process died with {child.exitcode}")
        return report


def _large_child(scratch: str, streamed: bool) -> None:
    from campaigns import hostile_large
    from campaigns.hostile_lab import ROOMS_THAT_WAIT, Clock

    clock = Clock()
    clock.replace_time(ROOMS_THAT_WAIT)
    report = Report(start_mib=_peak_mib())
    for index, name in enumerate(LARGE_NAMES):
        started = time.perf_counter()
        clock.slept = 0.0
        try:
            hostile_large.read_all(Path(scratch), name, LARGE_BYTES, streamed=streamed)
        except BaseException:  # noqa: BLE001  whatever gets out is what we look for
            report.failures.append(f"1 GiB as {name}: {traceback.format_exc(limit=-6)}")
        report.tried += 1
        report.slowest = max(report.slowest, (time.perf_counter() - started, index, name))
    report.peak_mib = _peak_mib()
    Path(scratch, "report.json").write_text(json.dumps(vars(report)))


def limits(most_bytes: int, *, share: int | None = None, seed: int = 0) -> Report:
    """Read files just under each limit, one process each, and compare what they take with their size.

    Args:
        most_bytes: Larger limits are tried with files of this size.
        share: How many of all cases are tried, those of a MiB and more only; None for all.
        seed: Chooses the share.
    """
    from campaigns import hostile_limits
    from campaigns.hostile_lab import Lab

    report = Report(start_mib=_peak_mib())
    with tempfile.TemporaryDirectory(prefix="tune-hostile-") as scratch:
        with contextlib.closing(Lab(scratch)) as lab:
            cases = list(hostile_limits.all_cases(lab, most_bytes))
        if share is not None:
            large = [case for case in cases if case[1].size > _SMALL_BYTES]
            cases = random.Random(seed).sample(large, share)
        for index, (base, case) in enumerate(cases):
            started = time.monotonic()
            own = Path(scratch, str(index))
            own.mkdir()
            peak, words = hostile_limits.measure(case, base, own, all_readers=share is None)
            shutil.rmtree(own)
            name = f"{case.key}, {case.size} bytes, {case.shape}"
            if words or peak > case.most_mib:
                report.failures.append(f"{name}: {peak:.0f} MiB of {case.most_mib:.0f}. {words}")
            report.tried += 1
            report.by_target[case.key] += 1
            report.slowest = max(report.slowest, (time.monotonic() - started, index, name))
            report.peak_mib = max(report.peak_mib, peak)
    return report


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _rate(count: int, seconds: float) -> str:
    return f", {count / seconds:.0f} a second of the processor" if seconds else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="files of 1 GiB instead")
    parser.add_argument("--limits", action="store_true", help="files just under each limit instead")
    parser.add_argument(
        "--most-mib", type=int, default=512, help="with --limits: no file is larger than this"
    )
    parser.add_argument(
        "--streamed", action="store_true", help="with --large: from an object store"
    )
    parser.add_argument("--odd", action="store_true", help="odd but genuine inputs instead")
    parser.add_argument("--only", type=int, help="try this input again")
    parser.add_argument(
        "--save-to", type=Path, default=Path(tempfile.gettempdir(), "tune-hostile-failures")
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.large:
        report = large_files(streamed=options.streamed)
    elif options.limits:
        report = limits(options.most_mib * 1024**2)
    elif options.odd:
        first = options.only or 0
        report = odd_inputs(
            first + 1 if options.only is not None else options.inputs, options.seed, first
        )
    elif options.only is not None:
        with tempfile.TemporaryDirectory() as scratch:
            _child(options.only + 1, options.seed, options.only, 1, scratch, options.save_to)
            report = _collect(Path(scratch))
    else:
        report = run(
            options.inputs, options.seed, processes=options.processes, save_to=options.save_to
        )
    print(*report.failures, sep="\n")
    seconds, index, name = report.slowest
    print(f"{report.tried} inputs of seed {options.seed} in {time.monotonic() - started:.0f} s")
    for target, count in report.by_target.most_common():
        print(f"  {target}: {count}" + _rate(count, report.seconds[target]))
    print(f"slowest: input {index} ({name}), {seconds:.2f} s of the processor")
    print(
        f"peak memory: {report.peak_mib:.0f} MiB ({report.start_mib:.0f} MiB before the first input)"
    )
    print(
        f"failures: {len(report.failures)}"
        + (f", saved in {options.save_to}" if report.failures else "")
    )
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
