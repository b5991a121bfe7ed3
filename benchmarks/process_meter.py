"""What all processes that descend from this one cost together: processor time and memory.

Processor time is exact for a process that its parent waits for, however short it lived: the kernel adds
its time, and that of its own children, to its parent's (`cutime` in /proc/PID/stat), and at last to this
process's RUSAGE_CHILDREN. This process is the subreaper of all that descend from it, so a daemon whose
parent has ended is adopted and waited for here. A parent that ignores SIGCHLD, as a raylet does, does not
get the time of its children. They are counted as they were last seen, some 0.05 s before their end. So,
at any time, the sum of three is what all of them have used: RUSAGE_CHILDREN, the times of all that live
with those of the children they waited for, and what nobody waited for. The difference of two such sums is
a run, also if a cluster lives on between them.

Memory is the sum of the proportional set sizes (PSS, /proc/PID/smaps_rollup): memory that several
processes share counts once. It is sampled each second; a shorter peak may be missed.
"""

import contextlib
import ctypes
import os
import resource
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

_SET_CHILD_SUBREAPER = 36
_SIGCHLD_BIT = 1 << 16
_TICKS = os.sysconf("SC_CLK_TCK")
_GLANCE_SECONDS, _LOOK_SECONDS, _WEIGH_SECONDS = 0.05, 0.25, 1.0

_Key = tuple[int, int]
"""Process id and start time: ids are used again."""


class _Process(NamedTuple):
    parent: int
    state: str
    ticks: int


class Usage(NamedTuple):
    """The cost of a run.

    Args:
        cpu: Seconds of processor time, of all processes.
        unwaited: Those of them that are known by sampling only.
        peak: MiB of memory at the peak, of all processes.
        most: For each kind, how many of its processes lived at once, at most.
        seen: For each kind, how many of its processes were seen.
        peaks: For each kind, MiB of memory of all its processes, at the peak.
    """

    cpu: float
    unwaited: float
    peak: float
    most: dict[str, int]
    seen: dict[str, int]
    peaks: dict[str, float]


def adopt_orphans() -> None:
    """Make this process the subreaper of all that will descend from it."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class ProcessMeter:
    """Measures what descends from this process between `with` and its end.

    Args:
        kinds_of: Returns the kinds of a process by its command line.
        without: Processes that do not count, nor what descends from them.
    """

    def __init__(
        self, kinds_of: Callable[[list[str]], Collection[str]], *, without: Collection[int] = ()
    ) -> None:
        self._kinds_of, self._without = kinds_of, frozenset(without)
        self._orphans: set[_Key] = set()
        self._alive: dict[_Key, _Process] = {}
        self._ignoring: set[int] = set()
        self._unwaited = 0
        self._peak = 0.0
        self._most: dict[str, int] = defaultdict(int)
        self._seen: dict[str, set[_Key]] = defaultdict(set)
        self._peaks: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessMeter":
        self._look()
        self._before = frozenset(self._alive)
        self._began = self._total()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def usage(self) -> Usage:
        """Return the cost until now."""
        self._look()
        return Usage(
            cpu=self._total() - self._began,
            unwaited=self._unwaited / _TICKS,
            peak=self._peak,
            most=dict(self._most),
            seen={kind: len(keys) for kind, keys in self._seen.items()},
            peaks=dict(self._peaks),
        )

    def left(self) -> list[int]:
        """Return the ids of processes that were started since, and live."""
        self._look()
        return [
            key[0]
            for key, one in self._alive.items()
            if key not in self._before and one.state != "Z"
        ]

    def _total(self) -> float:
        waited = resource.getrusage(resource.RUSAGE_CHILDREN)
        alive = sum(one.ticks for one in self._alive.values())
        return waited.ru_utime + waited.ru_stime + (alive + self._unwaited) / _TICKS

    def _watch(self) -> None:
        looked = weighed = 0.0
        while not self._is_over.wait(_GLANCE_SECONDS):
            now = time.monotonic()
            if now - looked < _LOOK_SECONDS:
                self._glance()
                continue
            looked = now
            self._look()
            if now - weighed >= _WEIGH_SECONDS:
                weighed = now
                self._weigh()

    def _glance(self) -> None:
        """Look again at those that nobody will wait for."""
        with self._lock:
            for key, one in self._alive.items():
                if one.parent in self._ignoring:
                    read = _read(key[0])
                    if read is not None and read[0] == key:
                        self._alive[key] = read[1]

    def _look(self) -> None:
        with self._lock:
            alive, before, here = self._descendants(), self._alive, os.getpid()
            for key, one in before.items():
                if key not in alive and one.parent != here and one.parent in self._ignoring:
                    self._unwaited += one.ticks
            self._alive = alive
            parents = {one.parent for one in alive.values()} - {here}
            self._ignoring = {pid for pid in parents if _ignores_children(pid)}
            self._orphans |= {
                key
                for key, one in alive.items()
                if one.parent == here and key in before and before[key].parent != here
            }
            for key in [key for key in self._orphans if key in alive and alive[key].state == "Z"]:
                os.waitpid(key[0], 0)  # its seconds are in RUSAGE_CHILDREN from now on
                del alive[key]

    def _descendants(self) -> dict[_Key, _Process]:
        found: dict[int, tuple[_Key, _Process]] = {}
        children: dict[int, list[int]] = defaultdict(list)
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (read := _read(int(entry.name))) is not None:
                found[int(entry.name)] = read
                children[read[1].parent].append(int(entry.name))
        alive, waiting = {}, list(children[os.getpid()])
        while waiting:
            pid = waiting.pop()
            if pid not in self._without:
                key, one = found[pid]
                alive[key] = one
                waiting += children[pid]
        return alive

    def _weigh(self) -> None:
        whole, counts = 0.0, Counter[str]()
        weights: dict[str, float] = defaultdict(float)
        for key in list(self._alive):
            pss, command = _pss_mib(key[0]), _command(key[0])
            whole += pss
            for kind in self._kinds_of(command):
                weights[kind] += pss
                counts[kind] += 1
                self._seen[kind].add(key)
        self._peak = max(self._peak, whole)
        for kind, count in counts.items():
            self._most[kind] = max(self._most[kind], count)
            self._peaks[kind] = max(self._peaks[kind], weights[kind])


def _read(pid: int) -> tuple[_Key, _Process] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended
        return None
    state, parent, *more = text.rpartition(")")[2].split()  # a name may hold spaces
    ticks = sum(map(int, more[9:13]))  # utime, stime, cutime, cstime
    return (pid, int(more[17])), _Process(int(parent), state, ticks)


def _ignores_children(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    ignored = next((line for line in lines if line.startswith("SigIgn:")), "SigIgn: 0")
    return bool(int(ignored.split()[1], 16) & _SIGCHLD_BIT)


def _pss_mib(pid: int) -> float:
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
