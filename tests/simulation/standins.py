"""Stand-ins for what the package takes from the standard library: clocks, threads, random ids, processes.

Installed in place of `time`, `threading`, `secrets`, `os` and `ThreadPoolExecutor` in the modules of the
package that are under simulation, as `World` needs them. Nothing of the package itself is replaced.

They stand in for the thread that simulates alone. Threads that earlier tests have left behind go on in
the same modules: one that slept by this clock would wake a thread of the world during a request.
"""

import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from airflow_tune_restore.experiments import raw_row
from airflow_tune_restore.experiments.state import KEEP_ALL, Keep, State, parse_pieces
from airflow_tune_restore.protocol import layout, pickle_reader, planned
from airflow_tune_restore.protocol.record_fields import Record
from airflow_tune_restore.restore import commit_record, record_json
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.runner import outcome
from tests.simulation.world import ProcessKilled, Thread, World

PACKAGE = "airflow_tune_restore."


class Here:
    """The world that is simulated now; the stand-ins find it here."""

    world: World


class Time:
    """`time`."""

    @staticmethod
    def monotonic() -> float:
        return Here.world.now

    @staticmethod
    def sleep(seconds: float) -> None:
        Here.world.sleep(seconds)


class Os:
    """`os`, as far as a process asks about itself."""

    environ = os.environ

    @staticmethod
    def getpid() -> int:
        return 1

    @staticmethod
    def getppid() -> int:
        return int(Here.world.process.is_orphan)

    @staticmethod
    def kill(_pid: int, _signal: int) -> None:
        Here.world.process.ask_to_stop()

    @staticmethod
    def _exit(code: int) -> None:
        Here.world.process.exit(code)


def now() -> str:
    """`runner.outcome.now`: the time by the clock of the machine."""
    return Here.world.wall(Here.world.process.machine.ahead).isoformat()


class Secrets:
    """`secrets`."""

    @staticmethod
    def token_hex(size: int) -> str:
        return f"{Here.world.process.random.getrandbits(8 * size):0{2 * size}x}"


class Event:
    """`threading.Event`."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Thread] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            Here.world.after(0.0, Here.world.resume, thread)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            world = Here.world
            thread = world.living()
            self._waiting.append(thread)
            if timeout is not None:
                world.after(timeout, self._time_out, thread)
            world.wait()
        return self._is_set

    def _time_out(self, thread: Thread) -> None:
        if thread in self._waiting:
            self._waiting.remove(thread)
            Here.world.resume(thread, is_timer=True)


class Lock:
    """`threading.Lock`."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: deque[Thread] = deque()

    def __enter__(self) -> None:
        while self._is_held:
            self._waiting.append(Here.world.living())
            Here.world.wait()
        self._is_held = True

    def __exit__(self, *_details: object) -> None:
        self._is_held = False
        if self._waiting:
            thread = self._waiting.popleft()
            Here.world.after(0.0, Here.world.resume, thread)


class Barrier:
    """`threading.Barrier`."""

    def __init__(self, parties: int) -> None:
        self._left = parties
        self._open = Event()

    def wait(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._open.set()
        self._open.wait()


class SimulatedThread:
    """`threading.Thread`: it belongs to the process that starts it."""

    def __init__(
        self, *, target: Callable[..., Any], args: tuple[Any, ...] = (), **_more: object
    ) -> None:
        self._target = lambda: target(*args)
        self._thread: Thread | None = None

    def start(self) -> None:
        self._thread = Here.world.process.spawn(self._target)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.has_ended

    def join(self, timeout: float | None = None) -> None:
        thread = self._thread
        if thread is None or thread.has_ended:
            return
        ended = Event()
        thread.joiners.append(ended.set)
        ended.wait(timeout)


class Threading:
    """`threading`."""

    Thread, Event, Lock, Barrier = SimulatedThread, Event, Lock, Barrier


class Future:
    """`concurrent.futures.Future`."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._ended = Event()
        self._value: Any = None
        self._error: Exception | None = None
        Here.world.process.spawn(lambda: self._run(call))

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._value = call()
        except Exception as error:  # noqa: BLE001  raised again by `result`
            self._error = error
        self._ended.set()

    def wait(self) -> None:
        self._ended.wait()

    def cancel(self) -> bool:
        return False  # its thread has begun

    def result(self) -> Any:
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._value


class Pool:
    """`concurrent.futures.ThreadPoolExecutor`, with as many threads as there is work."""

    def __init__(self, _size: int) -> None:
        self._futures: list[Future] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        if kind is not None and issubclass(kind, ProcessKilled):
            return
        for future in self._futures:
            future.wait()

    def shutdown(self) -> None:
        for future in self._futures:
            future.wait()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        future = Future(lambda: function(*args))
        self._futures.append(future)
        return future

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
        work = list(zip(*iterables, strict=False))
        if len(work) == 1:  # the only one need not wait for a thread
            return iter([function(*work[0])])
        futures = [self.submit(function, *args) for args in work]
        return (future.result() for future in futures)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a pure function with a memory; nobody changes its results. Errors are not remembered."""
    return lru_cache(maxsize=_MOST_REMEMBERED)(function)


_MOST_REMEMBERED = 4096

_parse_body = remembered(lambda body, keep: parse_pieces([body], keep))


def _parse_remembered(pieces: Iterable[bytes], keep: Keep = KEEP_ALL) -> State:
    """`parse_pieces`, by the bytes of all pieces; a commit uses the rows of its state up."""
    state: State = _parse_body(b"".join(pieces), keep)
    return replace(state, packed=dict(state.packed))


_REMEMBERED: dict[Any, Any] = {
    parse_pieces: _parse_remembered,  # states: every task reads the newest, some several times
    record_json.decode: remembered(record_json.decode),  # ledgers: read by plan and commit
    commit_record._decode_record: remembered(commit_record._decode_record),  # read by every plan
    planned._parse: remembered(planned._parse),  # plans, by runners of whole experiments
    raw_row._read_hex: remembered(raw_row._read_hex),  # records of checkpoints
    layout.state_session: remembered(layout.state_session),  # names of states, in each listing
    pickle_reader.read_pickle: remembered(pickle_reader.read_pickle),  # states of searchers
}
"""Pure functions of bytes that many worlds read alike, and that take much of the time."""

_REMEMBERED_OF: dict[type, str] = {
    Record: "from_json",  # requests, outcomes and progress: followers read them again and again
    RestorePlan: "from_json",  # every task and retry reads the plan
}
"""Class methods of that kind."""

_IN_PLACE_OF: dict[Any, Any] = {
    time: Time,
    threading: Threading,
    secrets: Secrets,
    ThreadPoolExecutor: Pool,
    outcome.now: now,
}
_OF_RUNNERS: dict[Any, Any] = {os: Os}
"""Only a runner asks about its own process."""

_CLOCKS: dict[Any, Any] = {time.monotonic: Time.monotonic, time.sleep: Time.sleep}
"""By themselves, as imported from `time`, or as the defaults of arguments."""


class _OwnModule:
    """A module that is a stand-in in one thread, and the real one in all others."""

    def __init__(self, real: Any, stand_in: Any, thread: int) -> None:
        self._real, self._stand_in, self._thread = real, stand_in, thread

    def __getattr__(self, name: str) -> Any:
        is_own = threading.get_ident() == self._thread
        return getattr(self._stand_in if is_own else self._real, name)


def _own(real: Any, stand_in: Any, thread: int) -> Any:
    """Return what is a stand-in in one thread (by its ident), and the real thing in all others."""
    if isinstance(real, ModuleType):
        return _OwnModule(real, stand_in, thread)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (stand_in if threading.get_ident() == thread else real)(*args, **kwargs)

    return call


@contextmanager
def installed() -> Iterator[None]:
    """Put the stand-ins into all imported modules of the package, and the originals back at the end.

    The calling thread simulates. For others, nothing changes but that pure functions remember.
    """
    thread = threading.get_ident()
    in_place_of, of_runners, clocks = (
        {real: _own(real, stand_in, thread) for real, stand_in in group.items()}
        for group in (_IN_PLACE_OF, _OF_RUNNERS, _CLOCKS)
    )
    in_place_of |= clocks | _REMEMBERED
    modules = {
        name: module for name, module in sorted(sys.modules.items()) if name.startswith(PACKAGE)
    }
    undo: list[Callable[[], None]] = []
    for full_name, module in modules.items():
        of_runner = full_name.startswith(f"{PACKAGE}runner.")
        replaced = in_place_of | of_runners if of_runner else in_place_of
        for name, value in list(vars(module).items()):
            if _is_hashable(value) and value in replaced:
                setattr(module, name, replaced[value])
                undo.append(lambda m=module, n=name, v=value: setattr(m, n, v))
            elif isinstance(value, FunctionType) and value.__kwdefaults__:
                before = value.__kwdefaults__
                if any(_is_hashable(given) and given in clocks for given in before.values()):
                    value.__kwdefaults__ = {
                        key: clocks.get(given, given) if _is_hashable(given) else given
                        for key, given in before.items()
                    }
                    undo.append(lambda f=value, b=before: setattr(f, "__kwdefaults__", b))
    for kind, name in _REMEMBERED_OF.items():
        original = vars(kind)[name]
        undo.append(lambda k=kind, n=name, o=original: setattr(k, n, o))
        setattr(kind, name, classmethod(remembered(original.__func__)))
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _is_hashable(value: Any) -> bool:
    return type(value).__hash__ is not None and isinstance(
        value, type | FunctionType | ModuleType | BuiltinFunctionType
    )
