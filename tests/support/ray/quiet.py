"""What lies in the directory of an experiment while its runner is frozen."""

import contextlib
import time

from tests.support.waiting import PATIENCE_SECONDS


def contents(directory):
    found = {}
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it had another name until it was whole
            if path.is_file():
                found[path] = path.read_bytes()
    return found


def without_beats(directory):
    """Leave out what is written as long as somebody lives: an attempt's beat, and its lease's."""
    beats = ("heartbeat.json", ".heartbeat.json")
    return {p: body for p, body in contents(directory).items() if not p.name.endswith(beats)}


def wait_until_quiet(directory, seconds=4.0):
    """Wait until nothing but beats was written for so long: what a runner had asked for is done."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    last, since = without_beats(directory), time.monotonic()
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, "somebody goes on writing"
        time.sleep(0.2)
        if (now := without_beats(directory)) != last:
            last, since = now, time.monotonic()
