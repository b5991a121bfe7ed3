"""Files just under each limit, of shapes that take many times their size when they are decoded.

The limits are those that the code asks for: each reader is watched once. Each file is read in a process
of its own, forked from one that has imported everything; what that takes at most is compared with the
file's size.
"""

import contextlib
import json
import multiprocessing
import resource
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tests.support.airflow.home  # noqa: F401  first of all of Airflow: it sets AIRFLOW_HOME

from airflow_tune_restore.version_compat import AirflowException  # isort: skip

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.local import LocalStore
from campaigns.guards import GuardedStore
from campaigns.hostile_lab import Lab, Objects
from campaigns.hostile_records import READERS, RECORDS, next_night
from tests.support.experiments.built import STATE_NAME

MOST_TIMES, MOST_MIB = 3, 200
"""A file of so many MiB may take three times as many, and 200."""

ADDRESS_SPACE = 12 * 1024**3

SHAPES: dict[str, Callable[[int], bytes]] = {
    "lists": lambda size: b"[" + b"[]," * (size // 3) + b"0]",
    "objects": lambda size: b"[" + b"{}," * (size // 3) + b"0]",
    "texts": lambda size: b"[" + b'"",' * (size // 3) + b"0]",
    "numbers": lambda size: b"[" + b"0.5," * (size // 4) + b"0]",
    "keys": lambda size: b"{" + b"".join(b'"%x":0,' % n for n in range(size // 10)) + b'"":0}',
    "one text": lambda size: b'"' + b"x" * size + b'"',
    "deep": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "pairs": lambda size: b"[" + b'["",""],' * (size // 8) + b'["",""]]',
}
PICKLES: dict[str, Callable[[int], bytes]] = {
    "lists": lambda size: b"\x80\x05(" + b"]" * size + b"l.",
    "objects": lambda size: b"\x80\x05(" + b"}" * size + b"l.",
    "texts": lambda size: b"\x80\x05(" + b"\x8c\0" * (size // 2) + b"l.",
    "memo": lambda size: b"\x80\x05]" + b"\x94" * size + b".",
    "tuples": lambda size: b"\x80\x05)" + b"\x85" * size + b".",
}


@dataclass(frozen=True)
class Case:
    """A file of a shape in the place of a key.

    Args:
        key: Which key of the experiment.
        shape: Name of its shape, and where in the document it stands.
        size: Its size in bytes, just under the limit, or as large as was asked for.
        body: Makes it.
    """

    key: str
    shape: str
    size: int
    body: Callable[[], bytes]

    @property
    def most_mib(self) -> float:
        return MOST_TIMES * self.size / 1024**2 + MOST_MIB


def limits_of(lab: Lab) -> dict[str, int]:
    """Return how many bytes of each key our readers read at most, by watching them."""
    found: dict[str, int] = {}
    for base in (lab.restored, lab.whole):
        for read in READERS:
            store = GuardedStore(lab.store(dict(base)))
            with contextlib.suppress(TuneRestoreError, AirflowException):
                read(lab, store)
            for key, limit in store.limits.items():
                found[key] = max(limit, found.get(key, 0))
    return found


def all_cases(lab: Lab, most_bytes: int) -> Iterator[tuple[Objects, Case]]:
    """Yield each shape in each place, with the experiment that it is put into."""
    limits = limits_of(lab)
    for key in (STATE_NAME, layout.TUNER_FILE, *RECORDS.values()):
        base = lab.restored if key in lab.restored else lab.whole
        size = min(limits.get(key, 0), most_bytes) - 1000
        if size <= 0:
            continue
        if key.endswith(".pkl"):
            for name, make in PICKLES.items():
                yield base, Case(key, name, size, lambda make=make, size=size: make(size))
            continue
        body = base.get(key, (b"{}", None))[0]
        for where, place in _places(key, body):
            for name, make in SHAPES.items():
                size_left = size - len(body)
                made = lambda place=place, make=make, n=size_left: place(make(n))  # noqa: E731
                yield base, Case(key, f"{name} as {where}", size, made)


def _places(key: str, body: bytes) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Yield where in a document a shape can stand, and what puts it there."""
    yield "the whole", lambda shape: shape
    document = json.loads(body) if body.startswith(b"{") else {}
    for name, value in document.items():
        if isinstance(value, dict | list):
            yield name, lambda shape, name=name: _with(document, name, shape)
    yield "something new", lambda shape: _with(document, "new", shape)
    if key == STATE_NAME:
        yield "the config of a trial", lambda shape: _in_row(document, shape)


def _with(document: dict[str, Any], name: str, shape: bytes) -> bytes:
    marked = json.dumps({**document, name: "MARK"}).encode()
    return marked.replace(b'"MARK"', shape)


def _in_row(document: dict[str, Any], shape: bytes) -> bytes:
    trial, metadata = document["trial_data"][1]
    made = json.dumps({**json.loads(trial), "config": "MARK"})
    rows = [document["trial_data"][0], [made, metadata], *document["trial_data"][2:]]
    text = json.dumps({**document, "trial_data": rows}).encode()
    return text.replace(b'\\"MARK\\"', json.dumps(shape.decode())[1:-1].encode())


def measure(case: Case, base: Objects, directory: Path, *, all_readers: bool) -> tuple[float, str]:
    """Return how many MiB reading it takes at most, in a process of its own, and what got out of it."""
    store = LocalStore(directory)
    for key, (body, _) in base.items():
        store.put(key, body)
    path = directory / case.key
    path.write_bytes(case.body())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_read, args=(directory.as_posix(), all_readers, theirs))
    child.start()
    theirs.close()
    try:
        peak, words = ours.recv()
    except EOFError:
        peak, words = 0.0, "the process died"
    child.join()
    return peak, words


def _read(directory: str, all_readers: bool, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    lab = Lab(directory)
    start = _peak_mib()
    words = ""
    store = LocalStore(Path(directory))
    try:
        for read in READERS if all_readers else (READERS[0], next_night, *READERS[-1:]):
            with contextlib.suppress(TuneRestoreError, AirflowException):
                read(lab, store)
    except BaseException:  # noqa: BLE001  whatever gets out is what we look for
        words = traceback.format_exc(limit=-6)
    answer.send((_peak_mib() - start, words))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
